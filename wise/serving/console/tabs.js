// Tabs: one part of the console at a time, with the keys that screen readers announce for tabs.

import { $ } from "./dom.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

export function open(name) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
}

$("tabs").addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (tab) open(tab.getAttribute("aria-controls"));
});
$("tabs").addEventListener("keydown", (event) => {
  const at = tabs.indexOf(event.target), shown = tabs.filter((tab) => !tab.hidden);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  const tab = shown[(next + shown.length) % shown.length];
  open(tab.getAttribute("aria-controls"));
  tab.focus();
});
