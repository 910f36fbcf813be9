// Elements: made in one call, and lists that are updated by key, so that focus and open parts stay.

export const $ = (id) => document.getElementById(id);

export function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "hue") made.style.setProperty("--hue", value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

// Sets a text only if it differs: an element that stays the same is not read out again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Brings a list to hold one element for each item, in this order. An element of a known key is kept and updated; none
// that stays in its order is moved, so focus, selection and what is open stay. If the focused one goes, the list gets it.
export function keyed(list, items, key, make, update) {
  const focused = document.activeElement;
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const id = String(key(item));
    let element = known.get(id);
    if (!element) {
      element = make(item);
      element.dataset.key = id;
    }
    update(element, item);
    return element;
  });
  const kept = new Set(wanted);
  const had = list.contains(focused);
  for (const child of [...list.children]) if (!kept.has(child)) child.remove();
  let at = list.firstElementChild;
  for (const element of wanted) {
    if (element === at) at = at.nextElementSibling;
    else list.insertBefore(element, at);
  }
  if (had && !list.contains(document.activeElement)) list.focus({ preventScroll: true });
}

// Shows or hides a control; one that is hidden while it has the focus gives it to `instead`.
export function show(element, shown, instead) {
  if (!shown && instead && element.contains(document.activeElement)) instead.focus({ preventScroll: true });
  element.hidden = !shown;
}

export const hue = (id) => [...String(id)].reduce((sum, char) => (sum * 31 + char.charCodeAt(0)) % 360, 7);
export const when = (at) => (at ? new Date(at).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "");
