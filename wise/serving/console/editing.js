// A new edit: previewed as the form describes it, then committed.

import { call, request, session } from "./api.js";
import { $, node, say } from "./dom.js";
import { follow, names } from "./edits.js";
import { broken, formsTable } from "./forms.js";
import { act } from "./notices.js";

const HINT = "A preview changes nothing; it must be good before the edit can be committed.";
let running = null;      // the controller that ends the running preview
let previewed = null;    // the body that Commit submits: the edit and the model of a good preview

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const moment = (id) => ($(id).value ? new Date($(id).value).toISOString() : null);

function editOfForm() {
  const optional = { subject: $("subject").value.trim(), reason: $("reason").value.trim(), valid_from: moment("valid-from"), valid_until: moment("valid-until") };
  return {
    prompt: $("prompt").value, target: $("target").value, aliases: lines("aliases"),
    paraphrases: lines("paraphrases"), locality: lines("locality"),
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value)),
  };
}

export function onConnect() {
  say($("prompt-hint"), session.chat ? "a question as users ask it" : "a text that ends right before the answer");
}

async function preview() {
  const edit = editOfForm(), startTime = performance.now(), controller = running = new AbortController();
  const tick = () => say($("preview-progress"), `The editor tries it: ${Math.round((performance.now() - startTime) / 1000)} s`);
  tick();
  const timer = setInterval(tick, 1000);
  $("cancel").hidden = false;
  try {
    const { model } = session, body = { edit, model, prompts: lines("probes") };
    await show(edit, model, await (await request("/v1/edits/preview", { body, signal: controller.signal })).json());
  } catch (error) {
    if (!controller.signal.aborted) throw error;
  } finally {
    clearInterval(timer);
    $("cancel").hidden = true;
    say($("preview-progress"), HINT);
  }
}

async function show(edit, model, result) {
  const replaced = await names(result.replaced), unchanged = model === session.model && JSON.stringify(editOfForm()) === JSON.stringify(edit);
  const good = ["verified", "partial"].includes(result.outcome.status), wrong = broken(result.outcome).length;
  const sentences = [
    good ? "Nothing is changed yet." : "The model does not learn it; other words may help.",
    wrong ? `${wrong} of ${Object.keys(result.outcome.holds).length} are not as promised.` : "",
    unchanged ? "" : "The form was changed since: preview it again.",
    result.replaced.length ? `It would replace ${result.replaced.map((id) => `\u201c${replaced.get(id) ?? id}\u201d`).join(", ")}.` : "",
  ];
  $("previewed").replaceChildren(
    node("p", { class: "verdict", role: "status" }, node("span", { class: `chip ${good ? "live" : "failed"}` }, result.outcome.status), ` ${sentences.filter(Boolean).join(" ")}`),
    formsTable(edit, result.outcome, result.answers.slice(1 + edit.paraphrases.length)) ?? "");
  offer(good && unchanged ? { edits: [edit], model } : null);
  $("previewed").scrollIntoView({ block: "nearest" });
}

// body: for Commit; null until the next preview.
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
