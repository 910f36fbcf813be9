// Sign-in: where the token comes from, and what it allows.

import { call, session, may } from "./api.js";
import { $, say } from "./dom.js";
import { notice, dismiss } from "./notices.js";

const KEPT = "wise-token";
const ASK = "Give a token to connect; `wise serve` shows one when it starts, and `wise token` makes them.";

const LINKED = "This link signs you in with a token that somebody put into it. Sign in with it?";

// The token of this tab, or that of the address if the user wants it: anyone can make a link, and what is done after it
// would be done in the name of whoever has its token. It is taken out of the address. "" if there is none.
function given() {
  const linked = location.hash.slice(1), kept = sessionStorage.getItem(KEPT) || "";
  if (linked) history.replaceState(null, "", location.pathname);
  return linked && linked !== kept && confirm(LINKED) ? linked : kept;
}

// Signs in with the token that was given, and with each that is typed in. connected: called after each sign-in.
export function signIn(connected) {
  const take = async (token) => {
    session.token = token;
    try {
      const told = await call("/v1/token");
      [session.scope, session.holder] = [told.scope, told.name];
      sessionStorage.setItem(KEPT, token);
      dismiss("token");
    } catch (error) {
      session.scope = session.holder = "";
      notice("token", "problem", error.message);
    }
    say($("holder"), session.holder ? `${session.holder} (${session.scope})` : "");
    allow();
    connected(session.scope !== "");
  };
  $("access").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = $("token").value.trim();
    $("token").value = "";
    if (typed) take(typed);
  });
  allow();
  const token = given();
  if (token) take(token);
  else notice("token", "problem", ASK);
}

// Shows what the token allows: an element names the scope that it needs.
export function allow(root = document) {
  for (const element of root.querySelectorAll("[data-needs]")) element.hidden = !may(element.dataset.needs);
}
