// A new edit: previewed in the words of its form, then committed.

import { call, session } from "./api.js";
import { $, node, say } from "./dom.js";
import { broken, formsTable } from "./forms.js";
import { act, notice } from "./notices.js";

const committed = new Map();  // ticket -> what to call it, until it is live or failed

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const moment = (id) => ($(id).value ? new Date($(id).value).toISOString() : null);

function wanted() {
  const optional = { subject: $("subject").value.trim(), reason: $("reason").value.trim(), valid_from: moment("valid-from"), valid_until: moment("valid-until") };
  return {
    prompt: $("prompt").value, target: $("target").value, aliases: lines("aliases"),
    paraphrases: lines("paraphrases"), locality: lines("locality"),
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value)),
  };
}

async function preview() {
  const edit = wanted(), begun = performance.now();
  const tick = () => say($("preview-progress"), `The editor tries it: ${Math.round((performance.now() - begun) / 1000)} s`);
  tick();
  const timer = setInterval(tick, 1000);
  try {
    show(edit, await call("/v1/edits/preview", { edit, model: session.model, prompts: lines("probes") }));
  } finally {
    clearInterval(timer);
    say($("preview-progress"), "");
  }
}

function show(edit, told) {
  const good = ["verified", "partial"].includes(told.outcome.status), wrong = broken(told.outcome).length;
  const said = [
    good ? "Nothing is changed yet." : "The model does not learn it; other words may help.",
    wrong ? `${wrong} of ${Object.keys(told.outcome.holds).length} are not as promised.` : "",
    told.replaced.length ? `It takes the place of ${told.replaced.join(", ")}.` : "",
  ];
  $("previewed").replaceChildren(
    node("p", { class: "verdict", role: "status" }, node("span", { class: `chip ${good ? "live" : "failed"}` }, told.outcome.status), ` ${said.filter(Boolean).join(" ")}`),
    formsTable(edit, told.outcome, told.answers.slice(1 + edit.paraphrases.length)) ?? "");
  ready(true);
}

function ready(previewed) {
  $("commit").disabled = !previewed;
  $("commit").title = previewed ? "" : "Preview it first";
}

async function commit() {
  const [edit] = (await call("/v1/edits", { edits: [wanted()], model: session.model })).edits;
  $("words").value = edit.prompt;
  $("edit").reset();
  $("previewed").replaceChildren();
  committed.set(edit.ticket, `\u201c${edit.prompt}\u201d \u2192 \u201c${edit.target}\u201d`);
  tell(edit.ticket, edit.status);
  setTimeout(() => ready(false));  // until the next preview
}

function tell(ticket, state) {
  notice("commit", state === "failed" ? "problem" : "done", `Edit ${ticket}, ${committed.get(ticket)}, is ${state}.`);
  if (["live", "failed", "retired"].includes(state)) committed.delete(ticket);
}

// What events tell of edits that were committed here.
export function happened(events) {
  for (const event of events) if (committed.has(event.ticket)) tell(event.ticket, event.kind);
}

$("edit").addEventListener("submit", (event) => { event.preventDefault(); act("preview", $("preview"), preview); });
$("edit").addEventListener("input", (event) => { if (event.target.id !== "probes") ready(false); });
$("commit").addEventListener("click", () => act("commit", $("commit"), commit));
