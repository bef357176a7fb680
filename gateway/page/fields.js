// Any object of a status as pairs of a name and a text. Fields that this page has never heard of are written too.

import { bytes, count, milliseconds, plain } from "./format.js";

const WORDS = { id: "id", kv: "KV", ffn: "FFN", pid: "pid", us: "", ms: "" };

export function pairs(object, before = "") {
  return Object.entries(object).flatMap(([name, value]) => {
    if (value === null || value === undefined || value === "") return [];
    const full = before ? `${before} ${name}` : name;
    if (Array.isArray(value)) return [[label(full), list(value)]];
    if (typeof value === "object") return pairs(value, full);
    return [[label(full), written(name, value)]];
  });
}

function label(name) {
  const words = name.split(/[_ ]/).map((word) => WORDS[word] ?? word);
  return words.filter(Boolean).join(" ");
}

function list(values) {
  if (values.length === 0) return "none";
  return values.map((value) => (typeof value === "object" ? JSON.stringify(value) : plain(value))).join(", ");
}

function written(name, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return plain(value);
  if (name === "bytes" || name.endsWith("_bytes")) return bytes(value);
  if (name.endsWith("_ms")) return milliseconds(value);
  if (name.endsWith("_us")) return milliseconds(value / 1000);
  if (name === "pid" || name === "id") return String(value);
  return count(value);
}
