// Sign-in: where the token comes from, and what it allows.

import { call, session, may } from "./api.js";
import { $, say } from "./dom.js";
import { trouble } from "./notices.js";

const TOKEN_KEY = "wise-token";
const AGAIN = 1500;      // milliseconds until the next attempt if the service did not answer
const LINKED = "This link signs you in with a token that somebody put into it. Sign in with it?";
let attempts = 0;

// The token of this tab, or that of the address if the user confirms it: anyone can make a link, and the user's actions
// would run under its token. The token is removed from the address. "" if there is none.
function initialToken() {
  const linked = location.hash.slice(1), stored = sessionStorage.getItem(TOKEN_KEY) || "";
  if (linked) history.replaceState(null, "", location.pathname);
  return linked && linked !== stored && confirm(LINKED) ? linked : stored;
}

// Signs in with the initial token, and with each token that is typed in. onSignIn: called after each sign-in.
export function signIn(onSignIn) {
  const take = async (token) => {
    const attempt = ++attempts;
    session.token = token;
    let holder = null;
    while (!holder) {
      try {
        holder = await call("/v1/token");
      } catch (error) {
        if (attempt !== attempts) return;
        if ([401, 403].includes(error.status)) return signOut(error.message);
        trouble("token", `${error.message}; it is asked again`);
        await new Promise((done) => setTimeout(done, AGAIN));
      }
      if (attempt !== attempts) return;
    }
    [session.scope, session.holder] = [holder.scope, holder.name];
    sessionStorage.setItem(TOKEN_KEY, token);
    trouble("token", "");
    say($("holder"), `${session.holder} (${session.scope})`);
    allow();
    onSignIn();
  };
  $("access").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = $("token").value.trim();
    $("token").value = "";
    trouble("token", "");
    if (typed) take(typed);
  });
  $("leave").addEventListener("click", () => {
    sessionStorage.removeItem(TOKEN_KEY);
    location.reload();  // nothing that the token showed stays on the page
  });
  allow();
  const token = initialToken();
  if (token) take(token);
}

// Asks for a token, since the current one is refused. The page keeps its content for the next sign-in.
export function signOut(why) {
  session.scope = session.holder = session.token = "";
  sessionStorage.removeItem(TOKEN_KEY);
  allow();
  trouble("token", why);
  $("token").focus();
}

// Shows what the token allows: an element names the scope that it needs.
function allow() {
  for (const element of document.querySelectorAll("[data-needs]")) element.hidden = !may(element.dataset.needs);
  $("access").hidden = may("reader");
}
