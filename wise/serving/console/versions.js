// Versions: listed, compared two by two, and rolled back, which can be undone.

import { call, may } from "./api.js";
import { $, keyed, node, show, when } from "./dom.js";
import { act, notice } from "./notices.js";

const PAGE = 100;
let current = null;
let listLength = PAGE;   // versions to show

export const served = () => current;

export async function load() {
  const versions = [];   // the newest first
  let page = null;
  do {
    page = await call(`/v1/versions?limit=${PAGE}${page ? `&after=${page.next_after}` : ""}`);
    versions.push(...page.data);
  } while (page.has_more && versions.length < listLength);
  current = page.current;
  if (!$("after").value) {
    $("after").value = current;
    $("before").value = Math.max(0, current - 1);
  }
  keyed($("versions"), versions, (version) => version.number, make, update);
  show($("older"), page.has_more, $("versions"));
}

function make(version) {
  const parts = {
    name: node("span"), count: node("span", { class: "soft" }), meta: node("div", { class: "meta" }),
    changes: node("button", { type: "button", class: "small", onclick: (event) => act("compare", event.target, () => compare(parts.version.parent, version.number)) }, "Changes"),
    back: node("button", { type: "button", class: "small", onclick: (event) => act("rollback", event.target, () => rollback(version.number)) }, "Roll back"),
  };
  return Object.assign(node("li", { "data-version": version.number }, node("div", { class: "line" }, parts.name, parts.count), parts.meta,
    node("div", { class: "acts" }, parts.changes, parts.back)), { parts });
}

function update(item, version) {
  const { parts } = item, now = version.number === current;
  parts.version = version;
  parts.name.className = now ? "what current" : "what";
  parts.name.textContent = `${version.number}. ${version.kind}${now ? " (served)" : ""}`;
  parts.count.textContent = `${version.edits} edit${version.edits === 1 ? "" : "s"}`;
  parts.meta.textContent = [when(version.at), version.author, version.reason, version.collected && "collected"].filter(Boolean).join(" \u00b7 ");
  parts.changes.setAttribute("aria-label", `Changes of version ${version.number}`);
  parts.back.setAttribute("aria-label", `Roll back to version ${version.number}`);
  show(parts.changes, version.number > 0 && !version.collected, $("versions"));
  show(parts.back, !now && !version.collected && may("admin"), $("versions"));
}

async function compare(before, after) {
  [$("before").value, $("after").value] = [before, after];
  $("difference").replaceChildren();
  const difference = await call(`/v1/versions/${after}/diff?against=${before}`);
  const line = (css, sign, word, edit) => node("li", { class: css }, node("span", { "aria-hidden": "true" }, `${sign} `), node("span", { class: "hidden" }, `${word}: `),
    `${edit.prompt} \u2192 `, node("b", {}, edit.target), edit.namespace === "default" ? null : node("small", {}, ` ${edit.namespace}`));
  const lines = [
    ...difference.added.map((edit) => line("plus", "+", "added", edit)), ...difference.removed.map((edit) => line("minus", "\u2212", "removed", edit)),
    ...difference.changed.flatMap(([old, edit]) => [line("minus", "\u2212", "was", old), line("plus", "+", "is", edit)]),
  ];
  $("difference").replaceChildren(node("p", { class: "soft" }, `Version ${before} to version ${after}: ${difference.added.length} added, ${difference.removed.length} removed, ${difference.changed.length} changed.`),
    lines.length ? node("ul", { class: "diff" }, lines) : "");
  $("difference").scrollIntoView({ block: "nearest" });
}

async function rollback(number) {
  const before = current;
  if (!confirm(`Serve version ${number} again? What came later is retired; this can be undone.`)) return;
  await back(number, `back to ${number}, from the console`);
  notice("rollback", "done", `Version ${number} is served again.`, { name: "Undo", run: () => act("rollback", null, async () => {
    await back(before, `undoes the rollback to ${number}`);
    notice("rollback", "done", `The rollback to version ${number} was undone.`);
  }) });
}

async function back(number, reason) {
  await call(`/v1/versions/${number}/rollback`, { reason });
  await load();
}

$("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  act("compare", event.submitter, () => compare(Number($("before").value), Number($("after").value)));
});
$("older").addEventListener("click", () => act("versions", $("older"), () => { listLength += PAGE; return load(); }));
