// A new edit: previewed in the words of its form, then committed.

import { call, request, session } from "./api.js";
import { $, node, say } from "./dom.js";
import { follow, names } from "./edits.js";
import { broken, formsTable } from "./forms.js";
import { act } from "./notices.js";

const HINT = "A preview changes nothing; it must be good before the edit can be committed.";
let running = null;      // what ends the preview that is running
let previewed = null;    // what Commit submits: the edit of a good preview, and where it was previewed

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

export function connected() {
  say($("prompt-hint"), session.chat ? "a question as users ask it" : "a text that ends right before the answer");
}

async function preview() {
  const edit = wanted(), begun = performance.now(), mine = running = new AbortController();
  const tick = () => say($("preview-progress"), `The editor tries it: ${Math.round((performance.now() - begun) / 1000)} s`);
  tick();
  const timer = setInterval(tick, 1000);
  $("cancel").hidden = false;
  try {
    const { model } = session, body = { edit, model, prompts: lines("probes") };
    await show(edit, model, await (await request("/v1/edits/preview", { body, signal: mine.signal })).json());
  } catch (error) {
    if (!mine.signal.aborted) throw error;
  } finally {
    clearInterval(timer);
    $("cancel").hidden = true;
    say($("preview-progress"), HINT);
  }
}

async function show(edit, model, told) {
  const replaced = await names(told.replaced), same = model === session.model && JSON.stringify(wanted()) === JSON.stringify(edit);
  const good = ["verified", "partial"].includes(told.outcome.status), wrong = broken(told.outcome).length;
  const said = [
    good ? "Nothing is changed yet." : "The model does not learn it; other words may help.",
    wrong ? `${wrong} of ${Object.keys(told.outcome.holds).length} are not as promised.` : "",
    same ? "" : "The form was changed since: preview it again.",
    told.replaced.length ? `It would replace ${told.replaced.map((id) => `\u201c${replaced.get(id) ?? id}\u201d`).join(", ")}.` : "",
  ];
  $("previewed").replaceChildren(
    node("p", { class: "verdict", role: "status" }, node("span", { class: `chip ${good ? "live" : "failed"}` }, told.outcome.status), ` ${said.filter(Boolean).join(" ")}`),
    formsTable(edit, told.outcome, told.answers.slice(1 + edit.paraphrases.length)) ?? "");
  offer(good && same ? { edits: [edit], model } : null);
  $("previewed").scrollIntoView({ block: "nearest" });
}

// Null until the next preview.
function offer(body) {
  previewed = body;
  $("commit").disabled = !body;
}

async function commit() {
  const [edit] = (await call("/v1/edits", previewed)).edits;
  $("words").value = edit.prompt;
  $("edit").reset();
  $("previewed").replaceChildren();
  follow(edit);
  offer(null);
}

say($("preview-progress"), HINT);

$("edit").addEventListener("submit", (event) => { event.preventDefault(); act("preview", $("preview"), preview); });
$("edit").addEventListener("input", (event) => { if (event.target.id !== "probes") offer(null); });
$("space").addEventListener("change", () => offer(null));
$("cancel").addEventListener("click", () => running?.abort());
$("commit").addEventListener("click", () => act("commit", $("commit"), commit).then(() => offer(previewed)));
