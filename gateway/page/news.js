// What happened: news of the cluster, newest first, and the faults among them, which stay in sight.

import { byId, element, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { clock, count, counted, plain } from "./format.js";

const KEPT_MAX = 200;
const FAULTS_SHOWN_MAX = 50;
/** Counters that stay at 0 in a cluster without faults. */
const MUST_BE_ZERO = {
  conservation_violations: "blocks do not add up",
  cells_corrupt: "cached cells are damaged",
};
const news = [];
const faults = [];
let standing = [];

/** Returns false where it was known. `local`: the page's own. */
export function addNews(item) {
  const key = item.local ? `page:${item.time_ms}:${item.text}` : `${item.time_ms}:${item.id}`;
  if (news.some((known) => known.key === key)) return false;
  const kept = { ...item, key };
  insert(news, kept, KEPT_MAX);
  if (item.severity === "warning") insert(faults, kept, KEPT_MAX);
  return true;
}

/** The newest first; several of one millisecond as they came. */
function insert(list, item, most) {
  const at = list.findIndex((known) => known.time_ms <= item.time_ms);
  list.splice(at < 0 ? list.length : at, 0, item);
  if (list.length > most) list.pop();
}

/** Those that name what the detail shows. */
export function newsOf(matches) {
  return news.filter(matches);
}

/** What is wrong now, whether or not there was news of it. */
export function showStanding(status) {
  standing = [];
  for (const group of status.groups) {
    if (group.state !== "serving") standing.push(`group ${group.id} is ${group.state}${group.cause ? `: ${group.cause}` : ""}`);
    if (group.blocks.unaccounted) standing.push(`group ${group.id} has lost ${counted(Math.abs(group.blocks.unaccounted), "block")}`);
  }
  for (const [name, text] of Object.entries(MUST_BE_ZERO)) {
    if (status.counters[name] > 0) standing.push(`${text} (${name} ${count(status.counters[name])})`);
  }
  drawFaults();
}

export function drawNews() {
  setHidden(byId("no-news"), news.length > 0);
  keyed(byId("news-list"), news, (item) => item.key, newsRow);
  drawFaults();
}

/** What comes from now on is read out; what was there when the page came is not. */
export function newsAreHeard(heard) {
  setAttribute(byId("news-log"), "aria-live", heard ? "polite" : "off");
}

function drawFaults() {
  const now = standing.map((text) => ({ key: `now:${text}`, text, now: true }));
  const all = [...now, ...faults];
  setHidden(byId("no-faults"), all.length > 0);
  setText(byId("fault-count"), all.length > 0 ? `\u25b2 ${counted(all.length, "fault")}` : "no faults");
  setAttribute(byId("fault-count"), "data-state", all.length > 0 ? "bad" : "good");
  setAttribute(byId("faults"), "data-some", all.length > 0);
  keyed(byId("fault-list"), all.slice(0, FAULTS_SHOWN_MAX), (item) => item.key, faultRow);
}

function newsRow(item) {
  const severity = item.severity === "warning" ? "\u25b2" : item.local ? "\u25c7" : "\u00b7";
  const sign = element("span", { class: "sign", "aria-hidden": "true", text: severity });
  const text = element("span", { class: "news-text", text: `${item.severity === "warning" ? "Warning: " : ""}${plain(item.text)}` });
  const kind = element("span", { class: "kind", text: item.local ? "page" : String(plain(item.kind)).replaceAll("_", " ") });
  return element("li", { "data-kind": item.kind, "data-severity": item.severity, "data-transfer": item.transfer, "data-time": item.time_ms }, time(item), sign, text, kind);
}

function faultRow(item) {
  const when = item.now ? element("span", { class: "when", text: "now" }) : time(item);
  return element("li", {}, when, element("span", { class: "sign", "aria-hidden": "true", text: "\u25b2" }), element("span", { class: "news-text", text: plain(item.text) }));
}

function time(item) {
  return element("time", { class: "when", datetime: new Date(item.time_ms).toISOString(), text: clock(item.time_ms) });
}
