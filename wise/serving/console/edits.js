// The list of edits: searched on the server, page by page, and kept up to date by events.

import { call, may } from "./api.js";
import { $, keyed, node, say, show, when } from "./dom.js";
import { broken, formsTable } from "./forms.js";
import { act, notice } from "./notices.js";
import { open } from "./tabs.js";

const ERASED = "(erased)";  // stands for a text that was erased
const PAGE = 50;
const MOST_ASKED = 5;    // edits that are requested for their names
const EMPTY = 10;        // empty pages that a search reads by itself
let edits = [];          // edits as the service has them, the newest first
let after = null;        // where the next page begins
let searches = 0;
let searched = conditions();  // of the last search, not those typed since
const submitted = new Map();  // ticket -> name of an edit that was submitted here, until it is live or failed

function conditions() {
  const parameters = new URLSearchParams({ newest: "true", limit: String(PAGE) });
  for (const [name, value] of new FormData($("filters"))) if (value.trim()) parameters.set(name, value.trim());
  for (const name of ["accepted_from", "accepted_until", "valid_at"]) if (parameters.has(name)) parameters.set(name, instant(name, parameters.get(name)));
  return parameters;
}

// The instant that a field of a form means, in the reader's time zone; `until` a day is up to its end.
function instant(name, value) {
  const at = new Date(value.length === 10 ? `${value}T00:00` : value);
  if (name === "accepted_until") at.setDate(at.getDate() + 1);
  return at.toISOString();
}

export async function search(query = searched) {
  const number = ++searches;
  searched = query;
  edits = [];
  after = null;
  await more(number);
}

async function more(number = searches) {
  say($("found"), "Searching \u2026");
  let page;
  try {
    for (let i = 0; i < EMPTY; i++) {
      const parameters = new URLSearchParams(searched);
      if (after !== null) parameters.set("after", String(after));
      page = await call(`/v1/edits?${parameters}`);
      if (number !== searches) return;  // a newer search took over
      edits.push(...page.data);
      after = page.has_more ? page.next_after : null;
      if (page.data.length || after === null) break;
    }
  } catch (error) {
    say($("found"), "The search failed.");
    throw error;
  }
  draw();
}

function draw() {
  keyed($("list"), edits, (edit) => edit.ticket, make, update);
  const more = after === null ? "" : "; older ones were not searched yet", all = [...searched.keys()].length === 2;
  const none = after !== null ? "None so far" : all ? "There are no edits yet." : "No edit was found.";
  say($("found"), (edits.length ? `${edits.length} edit${edits.length === 1 ? "" : "s"}` : none) + more);
  show($("more"), after !== null, $("list"));
}

function make() {
  const item = node("li", {}), parts = {
    chip: node("span"), flag: node("span", { class: "chip warn" }), what: node("span", { class: "what" }), meta: node("div", { class: "meta" }), body: node("div", { class: "body" }),
    replace: node("button", { type: "button", class: "small", onclick: (event) => replace(item, event.target) }, "Replace"),
    remove: node("button", { type: "button", class: "small", onclick: (event) => act("edit", event.target, () => remove(item.edit)) }, "Delete"),
    form: node("form", { class: "row", hidden: true }),
  };
  const summary = node("summary", {}, node("span", { class: "line" }, parts.chip, parts.flag, parts.what), parts.meta);
  const details = node("details", { ontoggle: () => details.open && act("edit", null, () => detail(item)) }, summary,
    node("div", { class: "acts" }, parts.replace, parts.remove), parts.form, parts.body);
  item.append(details);
  return Object.assign(item, { parts, details, summary });
}

function update(item, edit) {
  const { parts } = item, changed = JSON.stringify(item.edit) !== JSON.stringify(edit);
  item.edit = edit;
  if (!changed) return;
  item.dataset.edit = edit.id;
  item.dataset.status = edit.status;
  const state = edit.problem ? "damaged" : erased(edit) ? "erased" : edit.status;
  parts.chip.className = `chip ${state}`;
  say(parts.chip, state);
  say(parts.flag, edit.status !== "live" ? "" : edit.unsaid !== null ? "not said" : broken(edit.outcome).length ? "in part" : "");
  parts.flag.hidden = !parts.flag.textContent;
  if (edit.problem || erased(edit)) say(parts.what, edit.problem ? `Edit ${edit.id}` : "Its text was erased");
  else parts.what.replaceChildren(`${edit.prompt} \u2192 `, node("b", {}, edit.target));
  say(parts.meta, about(edit).filter(Boolean).join(" \u00b7 "));
  show(parts.replace, edit.status === "live" && may("editor"), item.summary);
  show(parts.remove, ["live", "queued", "training"].includes(edit.status) && may("editor"), item.summary);
  if (edit.status !== "live") parts.form.hidden = true;
  if (item.details.open) act("edit", null, () => detail(item));
}

const erased = (edit) => edit.prompt === ERASED && edit.target === ERASED;

function about(edit) {
  const wrong = broken(edit.outcome), answer = edit.outcome?.answer == null ? "" : `it said \u201c${edit.outcome.answer}\u201d`;
  const why = { failed: edit.outcome?.why ?? answer, superseded: "a later edit took its place" }[edit.status];
  const promised = wrong.length && ["live", "failed"].includes(edit.status) ? `${wrong.length} of ${Object.keys(edit.outcome.holds).length} not as promised` : "";
  return [
    `#${edit.ticket}`, when(edit.accepted_at), edit.author, edit.namespace === "default" ? "" : `namespace ${edit.namespace}`,
    edit.status === "live" ? `since version ${edit.live_in}` : edit.retired_in ? `until version ${edit.retired_in}` : "",
    edit.valid_from && `valid from ${when(edit.valid_from)}`, edit.valid_until && `valid until ${when(edit.valid_until)}`,
    why, promised, edit.unsaid === null ? "" : `this engine says \u201c${edit.unsaid}\u201d in its place`, edit.reason, edit.problem,
  ];
}

async function detail(item) {
  const shown = `${item.edit.ticket} ${item.edit.status}`;
  if (item.shown === shown) return;
  const history = await call(`/v1/edits/${encodeURIComponent(item.edit.id)}`);
  item.shown = shown;
  const events = history.ticket === item.edit.ticket ? history.events : [];
  item.parts.body.replaceChildren(...[
    ...moreDetails(item.edit),
    formsTable(item.edit, item.edit.outcome) ?? node("p", { class: "soft" }, UNKNOWN[item.edit.status] ?? "Nothing is kept of its answers."),
    item.edit.outcome?.also_answers?.length ? node("p", { class: "soft" }, `It also answers: ${item.edit.outcome.also_answers.join("; ")}`) : null,
    events.length ? node("ol", { class: "steps", "aria-label": "Its events" }, events.map((event) =>
      node("li", {}, node("span", { class: `chip ${event.kind}` }, event.kind), ` ${[when(event.at), event.author, event.detail.why !== item.edit.outcome?.why && event.detail.why].filter(Boolean).join(", ")}`))) : null,
  ].filter(Boolean));
}

const UNKNOWN = { queued: "It waits to be trained.", training: "It is being trained." };

// The fields of an edit besides its prompt and answer that its table of forms does not show.
function moreDetails(edit) {
  const details = [
    ["Subject", edit.subject], ["Aliases", edit.aliases.join(", ")], ["Conversation", edit.messages.map((one) => `${one.role}: ${one.content}`).join("\n")],
    ...(edit.outcome?.holds ? [] : [["Paraphrases", edit.paraphrases.join("\n")], ["Neighbours", edit.locality.join("\n")]]),
  ].filter(([, text]) => text);
  return details.length && !edit.problem ? [node("dl", {}, details.flatMap(([name, text]) => [node("dt", {}, name), node("dd", {}, text)]))] : [];
}

// Reports each new status of an edit that was submitted here.
export function follow(edit) {
  submitted.set(edit.ticket, `\u201c${edit.prompt}\u201d \u2192 \u201c${edit.target}\u201d`);
  tell(edit.ticket, edit.status);
}

function tell(ticket, state, why) {
  notice("commit", state === "failed" ? "problem" : "done", `Edit ${ticket}, ${submitted.get(ticket)}, is ${state}${why ? `: ${why}` : ""}.`);
  if (["live", "failed", "superseded", "retired"].includes(state)) submitted.delete(ticket);
}

export function onEvents(events) {
  for (const { ticket, kind, detail } of events) if (submitted.has(ticket)) tell(ticket, detail.status === "superseded" ? detail.status : kind, detail.why);
}

function replace(item, button) {
  const { form } = item.parts, id = `target-${item.edit.ticket}`;
  form.hidden = !form.hidden;
  if (form.hidden) return button.focus();
  const field = node("input", { id, required: true });
  field.value = item.edit.target;
  const send = node("button", { class: "quiet" }, "Submit");
  form.replaceChildren(node("div", {}, node("label", { for: id }, "New answer"), field), send);
  form.onsubmit = (event) => {
    event.preventDefault();
    act("edit", send, async () => {
      follow((await call(`/v1/edits/${encodeURIComponent(item.edit.id)}`, { target: field.value }, "PUT")).edits[0]);
      form.hidden = true;
      item.summary.focus();
    });
  };
  field.select();
}

async function remove(edit) {
  if (!confirm(`Delete the edit \u201c${edit.prompt}\u201d \u2192 \u201c${edit.target}\u201d?`)) return;
  const version = await call(`/v1/edits/${encodeURIComponent(edit.id)}`, undefined, "DELETE");
  notice("edit", "done", `The edit is deleted, in version ${version.number}.`);
}

// Opens the tab of edits at one edit, also if the search does not match it.
export async function showEdit(id) {
  const edit = await call(`/v1/edits/${encodeURIComponent(id)}`);
  open("edits");
  if (!edits.some((listed) => listed.ticket === edit.ticket)) {
    edits = [edit, ...edits];
    draw();
  }
  const item = [...$("list").children].find((child) => child.dataset.key === String(edit.ticket));
  item.details.open = true;
  item.summary.focus();
  item.scrollIntoView({ block: "center" });
}

// Updates the edits of new events: listed ones are read again, and new ones appear if the search matches them.
export async function refresh(changed) {
  const listedIds = new Set(edits.map((edit) => edit.id));
  const number = searches;
  const page = await call(`/v1/edits?${searched}`);
  if (number !== searches) return;
  const fresh = new Map(page.data.map((edit) => [edit.ticket, edit]));
  for (const id of changed.slice(0, PAGE)) {
    if (listedIds.has(id) && ![...fresh.values()].some((edit) => edit.id === id)) {
      const edit = await call(`/v1/edits/${encodeURIComponent(id)}`);
      fresh.set(edit.ticket, edit);
    }
  }
  const rest = edits.filter((edit) => !fresh.has(edit.ticket));
  const matching = new Set(page.data.map((edit) => edit.ticket));
  edits = [...[...fresh.values()].filter((edit) => matching.has(edit.ticket) || edits.some((listed) => listed.ticket === edit.ticket)), ...rest]
    .sort((a, b) => b.ticket - a.ticket);
  draw();
}

// Names of edits, by id: of those in the list, and of a few others that are requested.
export async function names(ids) {
  const editsById = new Map(edits.map((edit) => [edit.id, edit]));
  for (const id of ids.filter((editId) => !editsById.has(editId)).slice(0, MOST_ASKED)) {
    const edit = await call(`/v1/edits/${encodeURIComponent(id)}`).catch(() => null);
    if (edit) editsById.set(id, edit);
  }
  return new Map([...editsById].map(([id, edit]) => [id, `${edit.prompt} \u2192 ${edit.target}`]));
}

$("filters").addEventListener("submit", (event) => { event.preventDefault(); act("search", $("search"), () => search(conditions())); });
$("filters").addEventListener("reset", () => setTimeout(() => act("search", $("search"), () => search(conditions()))));
$("more").addEventListener("click", () => act("search", $("more"), () => more()));
