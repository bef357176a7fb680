// The key that is shown to the cluster: kept while this tab is open.

import { byId, setHidden, setText } from "./dom.js";

const STORED = "kvasir-key";
const waiting = new Set();

/** For every request: with the key, where there is one. */
export function headers(more = {}) {
  const key = sessionStorage.getItem(STORED);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

/** Shows the form, with what stands in the way; ends when a key has been given. */
export function askForKey(why) {
  setText(byId("key-why"), sessionStorage.getItem(STORED) ? `${why} The key that was given is not enough.` : why);
  setHidden(byId("key"), false);
  return new Promise((resolve) => waiting.add(resolve));
}

/** A key that was given did what was needed. */
export function keyServed() {
  setHidden(byId("key"), true);
}

export function startKey() {
  byId("key").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = byId("key-field");
    const key = field.value.trim();
    if (!key) return field.focus();
    sessionStorage.setItem(STORED, key);
    field.value = "";
    setHidden(byId("key"), true);
    for (const resolve of waiting) resolve();
    waiting.clear();
  });
}
