// The answers across an edit's forms, before and after it: its prompt, wordings, neighbours and sister questions.

import { node } from "./dom.js";

const GROUPS = [
  ["Said", (label) => /(^|: )(prompt|later turn|system message)$/.test(label)],
  ["Wordings", (label) => /(^|: )paraphrases\[\d+\]$/.test(label)],
  ["Neighbours", (label) => label.startsWith("locality[")],
  ["Sister questions", (label) => label.startsWith("sister: ")],
];

// The text that a label of an outcome stands for.
function textOf(edit, label) {
  const place = Number(/\[(\d+)\]$/.exec(label)?.[1]);
  if (label.startsWith("locality[")) return edit.locality?.[place] ?? label;
  if (label.startsWith("sister: ")) return label.slice(8);
  if (/paraphrases\[\d+\]$/.test(label)) return edit.paraphrases?.[place] ?? label;
  return edit.messages?.at(-1)?.content || edit.prompt || label;
}

const formOf = (label) => label.replace(/paraphrases\[(\d+)\]/, (_, n) => `paraphrase ${Number(n) + 1}`).replace(/^locality\[(\d+)\]$/, (_, n) => `neighbour ${Number(n) + 1}`).replace(/^sister: .*/, "");

export const broken = (outcome) => Object.entries(outcome?.holds ?? {}).filter(([, holds]) => !holds).map(([label]) => label);

export function formsTable(edit, outcome, further = []) {
  const labels = Object.keys(outcome?.holds ?? {});
  if (!labels.length && !further.length) return null;
  const body = [];
  for (const [name, belongs] of GROUPS) {
    const groupLabels = labels.filter(belongs);
    if (groupLabels.length) body.push(head(name), ...groupLabels.map((label) => row(edit, outcome, label)));
  }
  if (further.length) body.push(head("Also asked"), ...further.map((answer) => cells(answer.prompt, "", answer.before, answer.after, null)));
  return node("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Answers before and after the edit" },
    node("table", { class: "forms" }, node("thead", {}, node("tr", {}, ["Asked", "Before", "After", "As promised"].map((name) => node("th", { scope: "col" }, name)))),
      node("tbody", {}, body)));
}

const head = (name) => node("tr", { class: "group" }, node("th", { colspan: "4", scope: "rowgroup" }, name));

function row(edit, outcome, label) {
  const before = outcome.before?.[label];
  const after = outcome.said?.[label] ?? before;
  return cells(textOf(edit, label), formOf(label), before, after, outcome.holds[label]);
}

// The text of an answer: "" is an empty answer, and undefined was not asked.
const shown = (text) => (text === undefined ? "\u2013" : text || "(nothing)");

function cells(text, form, before, after, holds) {
  const changed = before !== after;
  return node("tr", {}, node("td", {}, text, form ? node("small", {}, ` ${form}`) : null),
    node("td", { class: "kept" }, shown(before)), node("td", { class: holds === false ? "broken" : changed ? "changed" : "kept" }, changed ? shown(after) : "unchanged"),
    node("td", {}, holds === null ? "" : node("span", { class: `chip ${holds ? "live" : "failed"}` }, holds ? "yes" : "no")));
}
