// The groups, and what each of their ranks holds. A rank is one row; its pieces lie where they lie in the whole model,
// so that a shard plan reads as a staircase.

import { arrows, byId, element, keyed, place, setAttribute, setHidden, setText } from "./dom.js";
import { bytes, count, counted, milliseconds, plain, runs, units } from "./format.js";

const NUMBERED_HEADS_MAX = 16;
const STATES = [["held", "held"], ["in_flight", "in flight"], ["cached", "cached"], ["free", "free"]];

/** `open(key)` is called with what was chosen. */
export function startGroups(open) {
  const list = byId("group-list");
  list.addEventListener("click", (event) => opened(event, open));
  byId("spares").addEventListener("click", (event) => opened(event, open));
  arrows(list);
}

function opened(event, open) {
  const button = event.target.closest("button[data-detail]");
  if (button) open(button.dataset.detail, button);
}

export function showGroups(status, chosen) {
  const totals = modelUnits(status);
  keyed(byId("group-list"), status.groups, (group) => group.id, createGroup, (node, group) => updateGroup(node, group, totals, chosen));
  setHidden(byId("spare-part"), status.spares.length === 0);
  keyed(byId("spares"), status.spares, (spare) => spare.worker, createSpare, (node, spare) => updateSpare(node, spare, chosen));
}

/** The units of the whole model: every group has all of them, once it is formed. */
export function modelUnits(status) {
  const ranks = status.groups.flatMap((group) => group.ranks);
  const end = (kind) => ranks.reduce((most, rank) => Math.max(most, rank.units[kind][1]), 0);
  return { attention: end("attention"), ffn: end("ffn"), vocab: end("vocab") };
}

function createGroup(group) {
  const title = element("h3", { text: `Group ${group.id}` });
  const facts = element("p", { class: "group-facts" });
  for (const name of ["state", "epoch", "role", "transport", "ranks", "load", "step"]) facts.append(element("span", { class: `fact fact-${name}` }));
  const cause = element("p", { class: "cause", hidden: true });
  const header = element("div", { class: "rank-head", "aria-hidden": "true" });
  for (const name of ["rank", "KV heads", "FFN units", "vocab units", "bytes a token", "last step"]) header.append(element("span", { text: name }));
  const ranks = element("ul", { class: "ranks", "aria-label": `Ranks of group ${group.id}` });
  return element("li", { class: "group", "data-group": group.id }, element("div", { class: "group-title" }, title, facts), cause, blocks(), header, ranks);
}

function updateGroup(node, group, totals, chosen) {
  const fact = (name, text) => setText(node.querySelector(`.fact-${name}`), text);
  setAttribute(node, "data-state", group.state);
  setAttribute(node, "data-epoch", `${group.epoch.term}.${group.epoch.number}`);
  fact("state", group.state);
  fact("epoch", `epoch ${group.epoch.term}.${group.epoch.number}`);
  fact("role", group.role === "both" ? "" : group.role);
  fact("transport", { solo: "", shm: "shared memory", tcp: "TCP" }[group.transport] ?? group.transport);
  const full = group.ranks.length === group.workers_wanted;
  fact("ranks", full ? counted(group.ranks.length, "rank") : `${group.ranks.length} of ${counted(group.workers_wanted, "rank")}`);
  fact("load", `${count(group.running)} running, ${count(group.waiting)} waiting`);
  fact("step", group.usual_step_ms > 0 ? `step ${milliseconds(group.usual_step_ms)}` : "");
  const cause = node.querySelector(".cause");
  setHidden(cause, !group.cause);
  setText(cause, group.cause ? `No group forms: ${plain(group.cause)}` : "");
  updateBlocks(node.querySelector(".blocks"), group);
  const largest = Math.max(1, ...group.ranks.map((rank) => rank.bytes));
  const slowest = Math.max(1, ...group.ranks.map((rank) => (rank.compute_us ?? 0) + (rank.reduce_us ?? 0)));
  node.classList.toggle("timed", group.ranks.some((rank) => Number.isFinite(rank.compute_us)));
  const of = { group, totals, largest, slowest, chosen };
  keyed(node.querySelector(".ranks"), group.ranks, (rank) => rank.rank, createRank, (row, rank) => updateRank(row, rank, of));
}

function blocks() {
  const bar = element("div", { class: "block-bar", role: "img" });
  const numbers = element("dl", { class: "block-numbers" });
  for (const [state, name] of STATES) {
    bar.append(element("i", { class: state }));
    const key = element("dt", {}, element("i", { class: `swatch ${state}`, "aria-hidden": "true" }), name);
    numbers.append(element("div", { "data-blocks": state }, key, element("dd")));
  }
  numbers.append(element("div", { class: "lost", hidden: true }, element("dt", { text: "\u25b2 unaccounted" }), element("dd")));
  return element("div", { class: "blocks" }, element("span", { class: "caps", text: "blocks" }), bar, numbers);
}

function updateBlocks(node, { blocks, block_size }) {
  const [, bar, numbers] = node.children;
  let before = 0;
  STATES.forEach(([state], at) => {
    const part = blocks.total > 0 ? blocks[state] / blocks.total : 0;
    place(bar.children[at], before, part);
    before += part;
    setText(numbers.children[at].lastChild, count(blocks[state]));
  });
  const said = STATES.map(([state, name]) => `${blocks[state]} ${name}`).join(", ");
  setAttribute(bar, "aria-label", `Of ${counted(blocks.total, "block")} of ${block_size} tokens: ${said}`);
  const lost = numbers.querySelector(".lost");
  setHidden(lost, !blocks.unaccounted);
  setText(lost.lastChild, count(blocks.unaccounted));
}

function createRank() {
  const cell = (name, ...inside) => element("span", { class: name }, ...inside);
  const track = () => element("span", { class: "track" }, element("i"));
  const button = element("button", { type: "button", class: "rank", "aria-controls": "detail" },
    cell("rank-name", cell("rank-number"), cell("rank-worker")),
    cell("kv amount", cell("heads"), cell("text")),
    cell("ffn amount", track(), cell("text")),
    cell("vocab amount", track(), cell("text")),
    cell("bytes amount", track(), cell("text")),
    cell("times amount", element("span", { class: "track" }, element("i", { class: "compute" }), element("i", { class: "reduce" })), cell("text")));
  return element("li", {}, button);
}

function updateRank(row, rank, { group, totals, largest, slowest, chosen }) {
  const button = row.firstChild;
  const key = `rank:${group.id}:${rank.rank}`;
  setAttribute(button, "data-detail", key);
  setAttribute(button, "data-rank", rank.rank);
  setAttribute(button, "data-worker", rank.worker);
  setAttribute(button, "aria-expanded", chosen === key);
  setText(button.querySelector(".rank-number"), String(rank.rank));
  setText(button.querySelector(".rank-worker"), plain(rank.worker));
  heads(button.querySelector(".kv"), rank.kv_heads, totals.attention);
  amount(button.querySelector(".ffn"), rank.units.ffn, totals.ffn);
  amount(button.querySelector(".vocab"), rank.units.vocab, totals.vocab);
  const size = button.querySelector(".bytes");
  place(size.querySelector("i"), 0, rank.bytes / largest);
  setText(size.lastChild, bytes(rank.bytes));
  times(button.querySelector(".times"), rank, slowest);
  setAttribute(button, "aria-label", said(rank, group, totals));
}

/** A cell for each head of the model, with its number where there is room; else the numbers stand below. */
function heads(node, held, total) {
  const owned = new Set(held);
  const all = Array.from({ length: total }, (_, head) => head);
  const many = total > NUMBERED_HEADS_MAX;
  node.classList.toggle("many", many);
  setText(node.lastChild, many ? runs(held) : "");
  keyed(node.firstChild, all, (head) => head, (head) => element("i", { "data-head": head, text: String(head) }), (cell, head) => {
    setAttribute(cell, "class", owned.has(head) ? "owned" : "other");
  });
}

function amount(node, [begin, end], total) {
  place(node.querySelector("i"), total > 0 ? begin / total : 0, total > 0 ? (end - begin) / total : 0);
  setText(node.lastChild, `${count(end - begin)}/${count(total)}`);
}

/** Nothing, as long as no step has been measured. */
function times(node, { compute_us, reduce_us }, slowest) {
  const [compute, reduce] = node.querySelectorAll("i");
  const computed = compute_us || 0;
  const reduced = computed > 0 ? (reduce_us ?? 0) : 0;
  place(compute, 0, computed / slowest);
  place(reduce, computed / slowest, reduced / slowest);
  setText(node.lastChild, computed > 0 ? milliseconds((computed + reduced) / 1000) : "\u2013");
}

function said(rank, group, totals) {
  return [
    `Rank ${rank.rank} of group ${group.id}, worker ${plain(rank.worker)}`,
    `KV heads ${runs(rank.kv_heads)}`,
    `FFN units ${units(rank.units.ffn, totals.ffn)}`,
    `vocab units ${units(rank.units.vocab, totals.vocab)}`,
    `${bytes(rank.bytes)} a token`,
  ].join("; ");
}

function createSpare() {
  return element("li", {}, element("button", { type: "button", class: "spare", "aria-controls": "detail" }));
}

function updateSpare(node, spare, chosen) {
  const key = `spare:${spare.worker}`;
  setAttribute(node.firstChild, "data-detail", key);
  setAttribute(node.firstChild, "aria-expanded", chosen === key);
  setText(node.firstChild, plain(spare.worker));
}
