// What the service reports about itself: metrics, the state of its editor, and events.

import { call, request } from "./api.js";
import { $, keyed, node, say, when } from "./dom.js";
import { trouble } from "./notices.js";

const NEWS = 60;         // events in the list
const POINTS = 40;       // of a sparkline
const pace = [];         // tokens per second
const news = [];
let last = null;         // counters of the last look

function numbers(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{([^}]*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    values[match[1]] = (values[match[1]] ?? 0) + Number(match[3]);
    if (match[2]) values[`${match[1]}{${match[2]}}`] = Number(match[3]);
  }
  return values;
}

function tile(name, value, alarm = false) {
  return { name, value, alarm };
}

function make({ name }) {
  const value = node("b"), box = node("div", { class: "tile" }, value, node("span", {}, name));
  if (name === "tokens a second") {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 20`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    box.append(svg);
  }
  return Object.assign(box, { value });
}

function update(box, { value, alarm }) {
  say(box.value, value);
  box.classList.toggle("alarm", alarm);
  const line = box.querySelector("polyline"), top = Math.max(1, ...pace);
  line?.setAttribute("points", pace.map((rate, i) => `${i + POINTS - pace.length},${19 - 18 * rate / top}`).join(" "));
}

const seconds = (value) => (value == null || !Number.isFinite(value) ? "\u2013" : value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`);

// The mean of a histogram since the last look.
function mean(now, name) {
  const count = now[`${name}_count`] - (last?.now[`${name}_count`] ?? 0);
  return count ? (now[`${name}_sum`] - (last?.now[`${name}_sum`] ?? 0)) / count : null;
}

export async function measure() {
  const now = numbers(await (await request("/metrics")).text()), at = performance.now();
  const rate = last ? 1000 * (now.wise_generated_tokens_total - last.now.wise_generated_tokens_total) / (at - last.at) : 0;
  pace.push(rate);
  if (pace.length > POINTS) pace.shift();
  const cache = now.wise_cache_tokens_limit ? `${Math.round(100 * now.wise_cache_tokens / now.wise_cache_tokens_limit)}%` : "\u2013";
  keyed($("tiles"), [
    tile("tokens a second", rate.toFixed(0)),
    tile("answers running / waiting", `${now.wise_running_answers ?? 0} / ${now.wise_waiting_answers ?? 0}`),
    tile("first token", seconds(mean(now, "wise_first_token_seconds"))),
    tile("between tokens", seconds(mean(now, "wise_inter_token_seconds"))),
    tile("cache used", cache),
    tile("edits live", String(now.wise_live_edits ?? 0)),
    tile("live edits not said by the engine", String(now.wise_unsaid_edits ?? 0), now.wise_unsaid_edits > 0),
    tile("edits queued", String(now['wise_tickets{status="queued"}'] ?? 0)),
    tile("wait of the oldest queued edit", now.wise_oldest_queued_seconds ? seconds(now.wise_oldest_queued_seconds) : "\u2013"),
    tile("tokens routed to edits", (now.wise_routed_tokens_total ?? 0).toLocaleString()),
    tile("canary tokens routed to edits", now.wise_canary_tokens ? String(now.wise_canary_false_routes) : "no canaries", now.wise_canary_alarm > 0),
  ], ({ name }) => name, make, update);
  last = { now, at };
}

// Shows whether the service answers and edits, why not, and the editor's progress.
export async function look() {
  const { answering, editing, store, editor } = await status();
  trouble("answering", answering ? `Questions are not answered: ${answering}.` : "");
  const lines = [answering ? `Not answering: ${answering}.` : "Questions are answered.", store && `Store: ${store}.`];
  if (editor) lines.push(...editorTold(editor, editing));
  keyed($("state"), lines.filter(Boolean), (line) => lines.indexOf(line), () => node("li"), say);
}

function editorTold({ state, why, training, done, previews, restarts }, editing) {
  const now = editing && state === "ready" ? "silent" : state, trains = now === "ready" && training.length > 0;
  say($("editor"), trains ? `training ${done} of ${training.length}` : `editor ${now}`);
  $("editor").classList.toggle("busy", trains || ["starting", "waiting", "preparing"].includes(now));
  $("editor").classList.toggle("bad", ["silent", "failing", "ended"].includes(now));
  $("not-editing").hidden = !editing;
  say($("not-editing"), editing ? `New edits wait: ${editing}.` : "");
  $("editor-progress").hidden = !trains && now !== "preparing";
  if (trains) [$("editor-progress").max, $("editor-progress").value] = [training.length, done];
  else $("editor-progress").removeAttribute("value");
  return [
    editing ? `Edits are not trained here: ${editing}.` : trains ? `Edits are trained: ${done} of ${training.length} are done.` : "The editor is ready.",
    why && `The editor says: ${why}`, previews > 0 && `Previews that wait: ${previews}.`,
    restarts > 0 && `The editor ended and was started again: ${restarts} times.`,
  ];
}

// A token that is bound to namespaces may only ask whether the service answers.
async function status() {
  try {
    return await call("/v1/status");
  } catch (error) {
    if (error.status !== 403) throw error;
  }
  const answering = await call("/ready").then(() => null, (problem) => {
    if (problem.status !== 503) throw problem;
    return problem.message;
  });
  return { answering };
}

export function onEvents(events, names) {
  for (const event of events) news.unshift({ ...event, about: names.get(event.edit) ?? event.edit ?? `version ${event.version}` });
  news.length = Math.min(news.length, NEWS);
  $("no-events").hidden = news.length > 0;
  keyed($("events"), news, (event) => `${event.number} ${event.kind}`, (event) => node("li", {}, node("span", { class: "soft" }, `${when(event.at)} `),
    node("span", { class: `chip ${event.kind}` }, event.kind), ` ${event.about}`), () => {});
}
