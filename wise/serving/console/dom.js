// Elements that are made in one call, and lists that are updated by key, so that focus and open parts stay.

export const $ = (id) => document.getElementById(id);

export function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "hue") element.style.setProperty("--hue", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

// Sets a text only if it differs: an element that stays the same is not read out again.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Makes a list hold one element for each item, in this order. An element of a known key is updated. It is moved only if
// its order changes, so that focus, selection and open parts stay. If the focused element is removed, the list gets the
// focus.
export function keyed(list, items, key, make, update) {
  const focused = document.activeElement;
  const previous = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const elements = items.map((item) => {
    const id = String(key(item));
    let element = previous.get(id);
    if (!element) {
      element = make(item);
      element.dataset.key = id;
    }
    update(element, item);
    return element;
  });
  const listed = new Set(elements);
  const hadFocus = list.contains(focused);
  for (const child of [...list.children]) if (!listed.has(child)) child.remove();
  let at = list.firstElementChild;
  for (const element of elements) {
    if (element === at) at = at.nextElementSibling;
    else list.insertBefore(element, at);
  }
  if (hadFocus && !list.contains(document.activeElement)) list.focus({ preventScroll: true });
}

// Shows or hides a control. If it is hidden while it has the focus, `instead` gets the focus.
export function show(element, shown, instead) {
  if (!shown && instead && element.contains(document.activeElement)) instead.focus({ preventScroll: true });
  element.hidden = !shown;
}

export const hue = (id) => [...String(id)].reduce((sum, char) => (sum * 31 + char.charCodeAt(0)) % 360, 7);
export const when = (at) => (at ? new Date(at).toLocaleString([], { dateStyle: "short", timeStyle: "medium" }) : "");
