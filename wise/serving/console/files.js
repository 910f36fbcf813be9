// Files of edits: one is read by the service, shown, and submitted in parts; the live edits of a namespace are exported.

import { request, session } from "./api.js";
import { $, node, say } from "./dom.js";
import { act, notice } from "./notices.js";

const PART = 100;        // edits of one request
const SETTLED = new Set(["live", "failed", "retired"]);
let following = null;    // the running import

const space = (model) => model.split("@")[1] ?? "default";

async function read(file) {
  const { model } = session;
  const upload = await request(`/v1/files/edits?name=${encodeURIComponent(file.name)}`, { body: file, raw: true }).then(
    (answer) => answer.json(), (error) => { throw new Error(`${file.name} cannot be imported, and nothing was submitted: ${error.message}`); });
  const count = upload.edits.length, few = upload.edits.slice(0, 5);
  const submit = node("button", { type: "button", onclick: () => act("import", submit, () => send(upload.edits, model, file.name)) }, `Submit ${count} edit${count === 1 ? "" : "s"}`);
  box(node("p", { role: "status" }, `${file.name} holds ${count} edit${count === 1 ? "" : "s"}, which would go into the namespace ${space(model)}:`),
    node("ul", { class: "few" }, few.map((edit) => node("li", {}, `${edit.prompt} \u2192 `, node("b", {}, edit.target))), count > few.length ? node("li", { class: "soft" }, "\u2026") : null),
    ...upload.warnings.map((warning) => node("p", { class: "soft" }, warning)),
    node("div", { class: "acts" }, submit, node("button", { type: "button", class: "small", onclick: close }, "Cancel")));
  submit.focus();
}

function send(edits, model, name) {
  const bar = node("progress", { max: String(edits.length), value: "0", "aria-label": `Import of ${name}` }), status = node("p", { role: "status" });
  const rest = node("button", { type: "button", hidden: true, onclick: () => act("import", rest, () => submit(job)) });
  const job = following = { edits, model, key: `${Date.now()}-${Math.random()}`, sent: 0, tickets: new Set(), settled: {}, bar, status, rest };
  box(node("p", {}, `Import of ${name}`), bar, status,
    node("div", { class: "acts" }, rest, node("button", { type: "button", class: "small", onclick: close }, "Close")));
  return submit(job);
}

// Submits the remaining edits. A part whose answer was lost is not accepted twice: it has a key.
async function submit(job) {
  const { edits, model, rest } = job;
  rest.hidden = true;
  try {
    while (job.sent < edits.length) {
      draw(job);
      const headers = { "Idempotency-Key": `${job.key}-${job.sent}` };
      const answer = await request("/v1/edits", { body: { edits: edits.slice(job.sent, job.sent + PART), model }, headers });
      const part = (await answer.json()).edits;
      for (const edit of part) job.tickets.add(edit.ticket);
      job.sent += part.length;
    }
  } finally {
    draw(job);
    rest.hidden = job.sent === edits.length;
    say(rest, `Submit the remaining ${edits.length - job.sent}`);
  }
}

// Updates the running import from events, which may come before the answer that names its tickets.
export function onEvents(events) {
  if (!following) return;
  for (const event of events) if (SETTLED.has(event.kind)) following.settled[event.ticket] = event.kind;
  draw(following);
}

function draw({ edits, sent, tickets, settled, bar, status }) {
  const kinds = [...tickets].map((ticket) => settled[ticket]).filter(Boolean), live = kinds.filter((kind) => kind === "live").length;
  bar.value = kinds.length;
  say(status, `${sent} of ${edits.length} submitted, ${live} live${kinds.length > live ? `, ${kinds.length - live} not` : ""}`);
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
