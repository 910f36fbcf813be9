// What the service reports about itself: metrics, the state of its editor, and events.

import { call, request } from "./api.js";
import { $, keyed, node, say, when } from "./dom.js";

const NEWS = 60;         // events in the list
const POINTS = 40;       // of a sparkline
const pace = [];         // tokens per second
const news = [];
let last = null;         // counters of the last look
let hasStatus = true;

function numbers(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{([^}]*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    found[match[1]] = (found[match[1]] ?? 0) + Number(match[3]);
    if (match[2]) found[`${match[1]}{${match[2]}}`] = Number(match[3]);
  }
  return found;
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
    tile("edits the engine does not say", String(now.wise_unheld_edits ?? 0), now.wise_unheld_edits > 0),
    tile("edits queued", String(now['wise_tickets{status="queued"}'] ?? 0)),
    tile("age of the oldest queued", now.wise_oldest_queued_seconds ? seconds(now.wise_oldest_queued_seconds) : "\u2013"),
    tile("tokens routed to edits", (now.wise_routed_tokens_total ?? 0).toLocaleString()),
    tile("false routes on canaries", now.wise_canary_tokens ? String(now.wise_canary_false_routes) : "no set", now.wise_canary_alarm > 0),
  ], (one) => one.name, make, update);
  last = { now, at };
}

// What the editor does: its state, and while it prepares or trains its stage and how far it is.
export async function editor() {
  const { state, stage, why, seconds: since, training = [], done = 0, previews = 0 } = await status();
  const told = [
    `The editor is ${state}${stage ? `: ${stage}` : ""}${since > 10 && state !== "ready" ? `, for ${Math.round(since)} s` : ""}.`,
    training.length ? `${done} of ${training.length} edits are trained.` : "", previews ? `${previews} previews wait.` : "", why ?? "",
  ];
  say($("editor"), training.length ? `training ${done} of ${training.length}` : `editor ${state}`);
  $("editor").classList.toggle("busy", state !== "ready" || training.length > 0);
  say($("editor-told"), told.filter(Boolean).join(" "));
  $("editor-progress").hidden = !training.length && state !== "preparing";
  if (training.length) [$("editor-progress").max, $("editor-progress").value] = [training.length, done];
  else $("editor-progress").removeAttribute("value");
}

// A service that has no route for its status says in /ready what its editor does.
async function status() {
  try {
    if (hasStatus) return (await call("/v1/status")).editor;
  } catch (error) {
    if (error.status !== 404) throw error;
    hasStatus = false;
  }
  return { state: await call("/ready").then((told) => told.editor ?? "unknown", (problem) => problem.message) };
}

export function happened(events, names) {
  for (const event of events) news.unshift({ ...event, about: names.get(event.edit) ?? event.edit ?? `version ${event.version}` });
  news.length = Math.min(news.length, NEWS);
  $("no-events").hidden = news.length > 0;
  keyed($("events"), news, (event) => event.number, (event) => node("li", {}, node("span", { class: "soft" }, `${when(event.at)} `),
    node("span", { class: `chip ${event.kind}` }, event.kind), ` ${event.about}`), () => {});
}
