// Elements, changed only where they differ: what has the focus, or a selection, stays as it is. Texts of others are set
// as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

/** A new element. `attributes` may have `text`. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, { text, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** `null`, `undefined` and `false` take the attribute away; `true` sets it empty. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

export function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

/** Where a piece lies on its track: both are parts of the whole, 0 to 1. */
export function place(node, begin, length) {
  setStyle(node, "left", `${(begin * 100).toFixed(3)}%`);
  setStyle(node, "width", `${(length * 100).toFixed(3)}%`);
}

export function setStyle(node, name, value) {
  if (node.style.getPropertyValue(name) !== value) node.style.setProperty(name, value);
}

const children = new WeakMap();

/**
 * Makes `parent` hold one element for each item, in their order. `create(item)` makes an element for a key that is new,
 * `update(node, item)` changes it. An element that has the focus is never moved: its neighbours are. Where it goes,
 * the focus goes to the one that takes its place, or to `parent`.
 */
export function keyed(parent, items, keyOf, create, update = () => {}) {
  const known = children.get(parent) ?? new Map();
  const next = new Map(items.map((item) => [String(keyOf(item)), item]));
  for (const [key, node] of known) {
    if (!next.has(key)) {
      leave(node);
      known.delete(key);
    }
  }
  let cursor = parent.firstElementChild;
  for (const [key, item] of next) {
    let node = known.get(key);
    if (!node) {
      node = create(item);
      known.set(key, node);
    }
    cursor = put(parent, node, cursor);
    update(node, item);
  }
  children.set(parent, known);
}

/** Returns what comes after. */
function put(parent, node, cursor) {
  if (node.parentNode === parent && node.contains(document.activeElement)) {
    while (cursor !== node) {
      const after = cursor.nextElementSibling;
      parent.append(cursor);
      cursor = after;
    }
  }
  if (cursor === node) return node.nextElementSibling;
  parent.insertBefore(node, cursor);
  return cursor;
}

function leave(node) {
  const parent = node.parentElement;
  const focused = node.contains(document.activeElement);
  const heir = node.nextElementSibling ?? node.previousElementSibling;
  node.remove();
  if (!focused) return;
  const target = (heir && focusable(heir)) ?? parent;
  if (target === parent && !parent.hasAttribute("tabindex")) parent.tabIndex = -1;
  target.focus({ preventScroll: true });
}

function focusable(node) {
  return node.matches("button") ? node : node.querySelector("button");
}

/** The keys up and down go from one button of a list to the next. */
export function arrows(list) {
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...list.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    if (at < 0) return;
    event.preventDefault();
    buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)].focus();
  });
}
