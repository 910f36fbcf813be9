// The console: works the service's own routes with the token that it is given, and holds no state of its own.

import { call, events, request, session } from "./api.js";
import * as chat from "./chat.js";
import { $, node, say } from "./dom.js";
import * as edits from "./edits.js";
import * as editing from "./editing.js";
import * as files from "./files.js";
import { notice, trouble } from "./notices.js";
import * as service from "./service.js";
import { signedOut, signIn } from "./signin.js";
import { open } from "./tabs.js";
import * as versions from "./versions.js";

const EVERY = 2000;      // milliseconds between two looks at the metrics
const AGAIN = 1500;      // milliseconds until a lost stream of events is opened again
let following = null;
const waiting = [];      // events that were not worked off yet
let working = false;

// What a token may not see is not shown: a part that is refused has no tab.
async function allowed(tab, work) {
  try {
    await work();
    $(tab).hidden = false;
  } catch (error) {
    if (error.status !== 403) throw error;
    $(tab).hidden = true;
    if ($(tab).ariaSelected === "true") open("chat");
  }
}

async function showModels() {
  const models = (await call("/v1/models")).data;
  const names = models.map((one) => one.id);
  if (!session.model) session.model = names[0];
  else if (!names.includes(session.model)) names.push(session.model);  // without live edits: it stays chosen
  const options = names.map((name) => [name, name.split("@")[1] ?? "default"]);
  const known = [...$("space").options].map((option) => option.value);
  if (known.join("\n") !== names.join("\n")) {
    $("space").replaceChildren(...options.map(([value, text]) => node("option", { value }, text)));
  }
  $("space").value = session.model;
  say($("model"), names[0]?.split("@")[0] ?? "");
  session.chat = models[0]?.chat ?? false;
  chat.connected();
  editing.connected();
}

async function showVersions() {
  await allowed("tab-history", versions.load);
  const number = versions.served();
  say($("version"), number === null ? "" : `version ${number}`);
}

// on: null while it connects.
function status(on) {
  const told = on === null ? "connecting" : on ? "connected" : "not connected";
  $("status").className = `dot ${on === null ? "" : on ? "on" : "off"}`;
  $("status").setAttribute("aria-label", told);
  $("status").title = told;
  if (on) $("facts").hidden = false;
}

async function follow(mine) {
  let since = null;
  while (!mine.signal.aborted) {
    try {
      await Promise.all([showModels(), showVersions(), edits.search()]);
      const path = since === null ? "/v1/events" : `/v1/events?since=${since}`;
      const answer = await request(path, { signal: mine.signal });
      status(true);
      trouble("service", "");
      for await (const data of events(answer)) {
        const event = JSON.parse(data);
        if (event.error) throw new Error(event.error.message);  // of the token: the next request says so, too
        waiting.push(event);
        since = waiting.at(-1).number;
        work();
      }
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) {
        status(false);
        return signedOut(error.message);
      }
      trouble("service", `${error.message}; the page connects again by itself`);
    }
    status(false);
    await new Promise((done) => setTimeout(done, AGAIN));
  }
}

// What came while the last events were worked off is worked off together.
async function work() {
  if (working) return;
  working = true;
  try {
    while (waiting.length) await happened(waiting.splice(0));
  } catch (error) {
    notice("service", "problem", error.message);
  } finally {
    working = false;
  }
}

async function happened(told) {
  const changed = [...new Set(told.map((event) => event.edit).filter(Boolean))];
  files.happened(told);
  edits.happened(told);
  await edits.refresh(changed);
  service.happened(told, await edits.names(changed));
  if (told.some((event) => event.version !== null)) await Promise.all([showVersions(), showModels()]);
}

async function look() {
  await service.look().catch(() => {});  // said by the stream of events
  await allowed("tab-service", service.measure).catch(() => {});
}

async function watch() {
  for (;;) {
    if (session.scope && !document.hidden) await look();
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

signIn(() => {
  following?.abort();
  following = new AbortController();
  status(null);
  follow(following);
  look();
});
$("space").addEventListener("change", () => { session.model = $("space").value; });
watch();
