// All that is known of one rank, spare or sequence, as long as it is open. What is gone stays as it was last seen.

import { drawLine, line } from "./charts.js";
import { byId, element, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { pairs } from "./fields.js";
import { clock, counted, digits, milliseconds, plain, runs, units } from "./format.js";
import { modelUnits } from "./groups.js";
import { History } from "./history.js";
import { newsOf } from "./news.js";

const NEWS_MAX = 6;
let chosen = null;
let opener = null;
let trend = new History();
let before = null;
let drawing = null;

export function startDetail(changed) {
  drawing = line();
  byId("detail-trend").append(drawing);
  byId("detail-close").addEventListener("click", () => close(changed));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chosen) close(changed);
  });
}

export function chosenKey() {
  return chosen;
}

/** The same once more closes it. `changed()` shows the page anew. */
export function openDetail(key, button, changed) {
  if (chosen === key) return close(changed);
  chosen = key;
  opener = button;
  trend = new History();
  before = null;
  setHidden(byId("detail"), false);
  changed();
  byId("detail-title").focus({ preventScroll: true });
  byId("detail").scrollIntoView({ block: "nearest" });
}

function close(changed) {
  chosen = null;
  setHidden(byId("detail"), true);
  changed();
  if (opener?.isConnected) opener.focus();
  opener = null;
}

/** `seenMs`: when this status came. */
export function showDetail(status, seenMs) {
  if (!chosen) return;
  const found = find(status);
  setAttribute(byId("detail"), "data-shows", chosen);
  setHidden(byId("detail-gone"), Boolean(found));
  if (!found) {
    if (!byId("detail-gone").textContent) setText(byId("detail-gone"), `Gone since ${clock(seenMs)}: this is how it was seen last.`);
    return;
  }
  setText(byId("detail-gone"), "");
  setText(byId("detail-title"), found.title);
  keyed(byId("detail-fields"), found.fields, ([name]) => name, pair, (node, [, value]) => setText(node.lastChild, value));
  showTrend(found, seenMs);
  const told = newsOf(found.tells).slice(0, NEWS_MAX);
  setHidden(byId("detail-news-part"), told.length === 0);
  keyed(byId("detail-news"), told, (item) => item.key, (item) => element("li", { text: `${clock(item.time_ms)} ${plain(item.text)}` }));
}

/** A number over time, where there is one. */
function showTrend({ trend: told }, seenMs) {
  setHidden(byId("detail-trend-part"), !told);
  if (!told || before?.at === seenMs) return;
  trend.add(told.value(before, seenMs));
  before = { at: seenMs, ...told.now };
  const label = `${told.name}, two minutes, at most ${told.written(trend.most())}`;
  setText(byId("detail-trend-name"), label);
  drawLine(drawing, trend, label);
}

function pair([name]) {
  return element("div", {}, element("dt", { text: name }), element("dd"));
}

function find(status) {
  const [kind, ...rest] = chosen.split(":");
  if (kind === "rank") return rankOf(status, Number(rest[0]), Number(rest[1]));
  const name = rest.join(":");
  return kind === "spare" ? spareOf(status, name) : sequenceOf(status, name);
}

function rankOf(status, groupId, number) {
  const group = status.groups.find(({ id }) => id === groupId);
  const rank = group?.ranks.find(({ rank }) => rank === number);
  if (!rank) return null;
  const totals = modelUnits(status);
  const { kv_heads, units: held, ...others } = rank;
  const serves = status.sequences.filter((sequence) => sequence.group === groupId);
  const fields = [
    ["KV heads", runs(kv_heads)],
    ["attention units", units(held.attention, totals.attention)],
    ["FFN units", units(held.ffn, totals.ffn)],
    ["vocab units", units(held.vocab, totals.vocab)],
    ...pairs(others).map(([name, value]) => (name === "bytes" ? ["weights read a token", value] : [name, value])),
    ["group", `${groupId}, ${group.state}, epoch ${group.epoch.term}.${group.epoch.number}`],
    ["transport", group.transport],
    ["sequences of the group", counted(serves.length, "sequence")],
  ];
  const step = Number.isFinite(rank.compute_us)
    ? { name: "last step", value: () => (rank.compute_us + (rank.reduce_us ?? 0)) / 1000, written: milliseconds }
    : null;
  const tells = (item) => item.worker === rank.worker || (item.group === groupId && item.rank === number);
  return { title: `Rank ${number} of group ${groupId}`, fields, tells, trend: step };
}

function spareOf(status, name) {
  const spare = status.spares.find(({ worker }) => worker === name);
  if (!spare) return null;
  return { title: `Spare ${plain(name)}`, fields: pairs(spare), tells: (item) => item.worker === name };
}

function sequenceOf(status, id) {
  const sequence = status.sequences.find(({ request_id }) => request_id === id);
  if (!sequence) return null;
  const fields = pairs(sequence);
  const moves = status.transfers.find(({ request_id }) => request_id === id);
  if (moves) fields.push(["moves", `group ${moves.source_group} to ${moves.target_group}, ${plain(moves.stage)}, ${moves.cells_arrived} of ${counted(moves.cells_planned, "cell")}`]);
  const speed = {
    name: "tokens/s",
    now: { tokens: sequence.tokens },
    value: (before, at) => (before && at > before.at ? (1000 * (sequence.tokens - before.tokens)) / (at - before.at) : null),
    written: digits,
  };
  return { title: "Sequence", fields, tells: (item) => item.request_id === id, trend: speed };
}
