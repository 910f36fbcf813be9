// Sign-in: where the token comes from, and what it allows.

import { call, session, may } from "./api.js";
import { $, say } from "./dom.js";
import { trouble } from "./notices.js";

const KEPT = "wise-token";
const AGAIN = 1500;      // milliseconds until a service that did not answer is asked again
const LINKED = "This link signs you in with a token that somebody put into it. Sign in with it?";
let attempts = 0;

// The token of this tab, or that of the address if the user wants it: anyone can make a link, and what is done after it
// would be done in the name of the holder of its token. It is taken out of the address. "" if there is none.
function given() {
  const linked = location.hash.slice(1), kept = sessionStorage.getItem(KEPT) || "";
  if (linked) history.replaceState(null, "", location.pathname);
  return linked && linked !== kept && confirm(LINKED) ? linked : kept;
}

// Signs in with the token that was given, and with each that is typed in. connected: called after each sign-in.
export function signIn(connected) {
  const take = async (token) => {
    const mine = ++attempts;
    session.token = token;
    let told = null;
    while (!told) {
      try {
        told = await call("/v1/token");
      } catch (error) {
        if (mine !== attempts) return;
        if ([401, 403].includes(error.status)) return signedOut(error.message);
        trouble("token", `${error.message}; it is asked again`);
        await new Promise((done) => setTimeout(done, AGAIN));
      }
      if (mine !== attempts) return;
    }
    [session.scope, session.holder] = [told.scope, told.name];
    sessionStorage.setItem(KEPT, token);
    trouble("token", "");
    say($("holder"), `${session.holder} (${session.scope})`);
    allow();
    connected();
  };
  $("access").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = $("token").value.trim();
    $("token").value = "";
    trouble("token", "");
    if (typed) take(typed);
  });
  $("leave").addEventListener("click", () => {
    sessionStorage.removeItem(KEPT);
    location.reload();  // nothing that the token showed stays on the page
  });
  allow();
  const token = given();
  if (token) take(token);
}

// Asks for a token: the one there was is refused. What is on the page stays, and is shown again after the next sign-in.
export function signedOut(why) {
  session.scope = session.holder = session.token = "";
  sessionStorage.removeItem(KEPT);
  allow();
  trouble("token", why);
  $("token").focus();
}

// Shows what the token allows: an element names the scope that it needs.
function allow() {
  for (const element of document.querySelectorAll("[data-needs]")) element.hidden = !may(element.dataset.needs);
  $("access").hidden = may("reader");
}
