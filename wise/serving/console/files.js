// Files of edits: one is read by the service, shown, and submitted in parts; the live edits of a namespace are exported.

import { request, session } from "./api.js";
import { $, node, say } from "./dom.js";
import { act, notice } from "./notices.js";

const PART = 100;        // edits of one request
const SETTLED = new Set(["live", "failed", "retired"]);
let following = null;    // the import that is under way

const space = (model) => model.split("@")[1] ?? "default";

async function read(file) {
  const { model } = session;
  const told = await request(`/v1/files/edits?name=${encodeURIComponent(file.name)}`, { body: file, raw: true }).then(
    (answer) => answer.json(), (error) => { throw new Error(`${file.name} cannot be imported, and nothing was submitted: ${error.message}`); });
  const count = told.edits.length, few = told.edits.slice(0, 5);
  const submit = node("button", { type: "button", onclick: () => act("import", submit, () => send(told.edits, model, file.name)) }, `Submit ${count} edit${count === 1 ? "" : "s"}`);
  box(node("p", { role: "status" }, `${file.name} holds ${count} edit${count === 1 ? "" : "s"}, which would go into the namespace ${space(model)}:`),
    node("ul", { class: "few" }, few.map((edit) => node("li", {}, `${edit.prompt} \u2192 `, node("b", {}, edit.target))), count > few.length ? node("li", { class: "soft" }, "\u2026") : null),
    ...told.warnings.map((warning) => node("p", { class: "soft" }, warning)),
    node("div", { class: "acts" }, submit, node("button", { type: "button", class: "small", onclick: close }, "Cancel")));
  submit.focus();
}

function send(edits, model, name) {
  const bar = node("progress", { max: String(edits.length), value: "0", "aria-label": `Import of ${name}` }), told = node("p", { role: "status" });
  const rest = node("button", { type: "button", hidden: true, onclick: () => act("import", rest, () => submit(mine)) });
  const mine = following = { edits, model, key: `${Date.now()}-${Math.random()}`, sent: 0, tickets: new Set(), settled: {}, bar, told, rest };
  box(node("p", {}, `Import of ${name}`), bar, told,
    node("div", { class: "acts" }, rest, node("button", { type: "button", class: "small", onclick: close }, "Close")));
  return submit(mine);
}

// Submits what was not submitted yet. A part whose answer was lost is not taken twice: it has a key.
async function submit(mine) {
  const { edits, model, rest } = mine;
  rest.hidden = true;
  try {
    while (mine.sent < edits.length) {
      draw(mine);
      const headers = { "Idempotency-Key": `${mine.key}-${mine.sent}` };
      const answer = await request("/v1/edits", { body: { edits: edits.slice(mine.sent, mine.sent + PART), model }, headers });
      const part = (await answer.json()).edits;
      for (const edit of part) mine.tickets.add(edit.ticket);
      mine.sent += part.length;
    }
  } finally {
    draw(mine);
    rest.hidden = mine.sent === edits.length;
    say(rest, `Submit the remaining ${edits.length - mine.sent}`);
  }
}

// What events tell of an import that is under way; they may come before the answer that names its tickets.
export function happened(events) {
  if (!following) return;
  for (const event of events) if (SETTLED.has(event.kind)) following.settled[event.ticket] = event.kind;
  draw(following);
}

function draw({ edits, sent, tickets, settled, bar, told }) {
  const kinds = [...tickets].map((ticket) => settled[ticket]).filter(Boolean), live = kinds.filter((kind) => kind === "live").length;
  bar.value = kinds.length;
  say(told, `${sent} of ${edits.length} submitted, ${live} live${kinds.length > live ? `, ${kinds.length - live} not` : ""}`);
}

function box(...children) {
  $("import").hidden = false;
  $("import").replaceChildren(...children);
}

function close() {
  following = null;
  $("import").hidden = true;
  $("import").replaceChildren();
  $("export").focus();
}

async function save() {
  const namespace = space(session.model), answer = await request(`/v1/files/edits?namespace=${encodeURIComponent(namespace)}`);
  const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition"))?.[1] ?? "edits.jsonl";
  const link = node("a", { href: URL.createObjectURL(await answer.blob()), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
  notice("export", "done", `${name} was saved: the live edits of the namespace ${namespace}.`);
}

$("export").addEventListener("click", () => act("export", $("export"), save));
$("import-file").addEventListener("change", () => {
  const [file] = $("import-file").files;
  if (file) act("import", $("import-file"), () => read(file)).then(() => ($("import-file").value = ""));
});
