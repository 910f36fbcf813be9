// Notices of problems, and of actions that are done. They stay until they are dismissed; a notice of an action that
// cannot be undone disappears by itself.

import { $, node } from "./dom.js";

const SHOWN = 12000;     // milliseconds

// kind: "problem" is read out at once, "done" when there is a pause. about: a notice about the same thing is replaced.
export function notice(about, kind, text, action) {
  dismiss(about);
  const button = action && node("button", { type: "button", class: "small", onclick: async () => {
    dismiss(about);
    await action.run();
  } }, action.name);
  const box = node("div", { class: `notice ${kind}`, role: kind === "problem" ? "alert" : "status", "data-about": about },
    node("p", {}), button, node("button", { type: "button", class: "small", "aria-label": "Dismiss", onclick: () => dismiss(about) }, "\u00d7"));
  $("notices").append(box);
  if (kind === "done" && !action) setTimeout(() => box.remove(), SHOWN);
  box.firstElementChild.textContent = text;  // after the element is added, or some screen readers do not read it
}

export function dismiss(about) {
  for (const box of [...$("notices").children]) if (box.dataset.about === about) box.remove();
}

// Reports a lasting problem when it begins or changes, and not each time that it occurs; "" ends it.
const lasting = new Map();

export function trouble(about, text) {
  if ((lasting.get(about) ?? "") === text) return;
  lasting.set(about, text);
  if (text) notice(about, "problem", text);
  else dismiss(about);
}

// Runs the action of a control, which is disabled meanwhile; an error is shown in a notice.
export async function act(about, button, work) {
  const back = button && document.activeElement === button;
  if (button) {
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
  }
  try {
    dismiss(about);
    return await work();
  } catch (error) {
    notice(about, "problem", error.message);
  } finally {
    if (button) {
      button.disabled = false;
      button.removeAttribute("aria-busy");
      if (back && document.activeElement === document.body && button.isConnected) button.focus({ preventScroll: true });
    }
  }
}
