// The console: uses the service's routes with the user's token, and holds no state of its own.

import { call, events, request, session } from "./api.js";
import * as chat from "./chat.js";
import { $, node, say } from "./dom.js";
import * as edits from "./edits.js";
import * as editing from "./editing.js";
import * as files from "./files.js";
import { notice, trouble } from "./notices.js";
import * as service from "./service.js";
import { signOut, signIn } from "./signin.js";
import { open } from "./tabs.js";
import * as versions from "./versions.js";

const EVERY = 2000;      // milliseconds between two looks at the metrics
const AGAIN = 1500;      // milliseconds until a lost stream of events is opened again
let following = null;
const waiting = [];      // events that are not processed yet
let working = false;

// Hides the tabs whose routes the token may not use.
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
  const names = models.map((model) => model.id);
  if (!session.model) session.model = names[0];
  else if (!names.includes(session.model)) names.push(session.model);  // without live edits: it stays chosen
  const options = names.map((name) => [name, name.split("@")[1] ?? "default"]);
  const spaces = [...$("space").options].map((option) => option.value);
  if (spaces.join("\n") !== names.join("\n")) {
    $("space").replaceChildren(...options.map(([value, text]) => node("option", { value }, text)));
  }
  $("space").value = session.model;
  say($("model"), names[0]?.split("@")[0] ?? "");
  session.chat = models[0]?.chat ?? false;
  chat.onConnect();
  editing.onConnect();
}

async function showVersions() {
  await allowed("tab-history", versions.load);
  const number = versions.served();
  say($("version"), number === null ? "" : `version ${number}`);
}

// on: null while it connects.
function status(on) {
  const label = on === null ? "connecting" : on ? "connected" : "not connected";
  $("status").className = `dot ${on === null ? "" : on ? "on" : "off"}`;
  $("status").setAttribute("aria-label", label);
  $("status").title = label;
  if (on) $("facts").hidden = false;
}

async function follow(connection) {
  let since = null;
  while (!connection.signal.aborted) {
    try {
      await Promise.all([showModels(), showVersions(), edits.search()]);
      const path = since === null ? "/v1/events" : `/v1/events?since=${since}`;
      const answer = await request(path, { signal: connection.signal });
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
      if (connection.signal.aborted) return;
      if (error.status === 401) {
        status(false);
        return signOut(error.message);
      }
      trouble("service", `${error.message}; the page connects again by itself`);
    }
    status(false);
    await new Promise((done) => setTimeout(done, AGAIN));
  }
}

// Processes events; those that come meanwhile are processed together afterwards.
async function work() {
  if (working) return;
  working = true;
  try {
    while (waiting.length) await onEvents(waiting.splice(0));
  } catch (error) {
    notice("service", "problem", error.message);
  } finally {
    working = false;
  }
}

async function onEvents(newEvents) {
  const changed = [...new Set(newEvents.map((event) => event.edit).filter(Boolean))];
  files.onEvents(newEvents);
  edits.onEvents(newEvents);
  await edits.refresh(changed);
  service.onEvents(newEvents, await edits.names(changed));
  if (newEvents.some((event) => event.version !== null)) await Promise.all([showVersions(), showModels()]);
}

async function look() {
  await service.look().catch(() => {});  // the stream of events reports it
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
