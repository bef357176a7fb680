// The sequences, each with its tape: tokens from the left, a tick for each block, one scale for all of them.

import { arrows, byId, element, keyed, place, setAttribute, setHidden, setStyle, setText } from "./dom.js";
import { count, counted, plain } from "./format.js";

const SHOWN_MAX = 100;
const SCALE_BLOCKS_MIN = 8;
const arrived = new Map();
let arrivals = 0;

export function startSequences(open) {
  const list = byId("sequence-list");
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-detail]");
    if (button) open(button.dataset.detail, button);
  });
  arrows(list);
}

export function showSequences(status, chosen) {
  const sizes = new Map(status.groups.map((group) => [group.id, group.block_size]));
  const sorted = inOrder(status.sequences);
  const shown = sorted.slice(0, SHOWN_MAX);
  const moving = new Set(status.transfers.map((transfer) => transfer.request_id));
  const scale = { tokens: scaleOf(shown, sizes), sizes };
  setText(byId("sequence-count"), count(sorted.length));
  setHidden(byId("no-sequences"), sorted.length > 0);
  setHidden(byId("more-sequences"), sorted.length <= SHOWN_MAX);
  setText(byId("more-sequences"), `and ${count(sorted.length - SHOWN_MAX)} more`);
  setText(byId("sequence-scale"), sorted.length > 0 ? `tapes: 0 to ${counted(scale.tokens, "token")}, a tick for each block` : "");
  keyed(byId("sequence-list"), shown, (sequence) => sequence.request_id, create, (node, sequence) => {
    update(node, sequence, { scale, chosen, moves: moving.has(sequence.request_id) });
  });
}

/** As they came, those that wait after those that run: rows stay where they are. */
function inOrder(sequences) {
  const live = new Set(sequences.map((sequence) => sequence.request_id));
  for (const id of arrived.keys()) if (!live.has(id)) arrived.delete(id);
  for (const id of live) if (!arrived.has(id)) arrived.set(id, (arrivals += 1));
  const waits = (sequence) => (sequence.state === "running" ? 0 : 1);
  return [...sequences].sort((a, b) => waits(a) - waits(b) || arrived.get(a.request_id) - arrived.get(b.request_id));
}

/** The first of 8, 16, 32, ... blocks that holds the longest. */
function scaleOf(sequences, sizes) {
  const longest = Math.max(0, ...sequences.map((sequence) => sequence.tokens));
  const block = Math.max(1, ...sizes.values());
  let blocks = SCALE_BLOCKS_MIN;
  while (blocks * block < longest) blocks *= 2;
  return blocks * block;
}

function create(sequence) {
  const cell = (name) => element("span", { class: name });
  const tape = element("span", { class: "tape" }, element("i", { class: "whole" }), element("i", { class: "computed" }), element("i", { class: "from-cache" }), element("i", { class: "ticks" }));
  const button = element("button", { type: "button", class: "sequence", "aria-controls": "detail" }, cell("state"), cell("request"), cell("tenant"), cell("where"), tape, cell("tokens"), cell("held"));
  setAttribute(button, "data-request", sequence.request_id);
  return element("li", {}, button);
}

function update(node, sequence, { scale, chosen, moves }) {
  const button = node.firstChild;
  const text = (name, value) => setText(button.querySelector(`.${name}`), value);
  const key = `sequence:${sequence.request_id}`;
  const state = moves ? "moving" : sequence.state;
  const block = scale.sizes.get(sequence.group) || 64;
  const computed = Math.min(sequence.computed, sequence.tokens);
  setAttribute(button, "data-detail", key);
  setAttribute(button, "data-state", state);
  setAttribute(button, "aria-expanded", chosen === key);
  text("state", state);
  text("request", plain(sequence.request_id));
  text("tenant", plain(sequence.tenant));
  text("where", `G${sequence.group}`);
  text("tokens", computed < sequence.tokens ? `${count(computed)}/${count(sequence.tokens)}` : count(sequence.tokens));
  text("held", Number.isFinite(sequence.blocks) ? counted(sequence.blocks, "block") : "");
  const part = (tokens) => Math.min(tokens / scale.tokens, 1);
  place(button.querySelector(".whole"), 0, part(sequence.tokens));
  place(button.querySelector(".computed"), 0, part(computed));
  place(button.querySelector(".from-cache"), 0, part(Math.min(sequence.cached_tokens, computed)));
  setStyle(button.querySelector(".tape"), "--block", `${(100 * block) / scale.tokens}%`);
  setAttribute(button, "aria-label", said(sequence, state, computed));
}

function said(sequence, state, computed) {
  const tenant = sequence.tenant ? `, tenant ${plain(sequence.tenant)}` : "";
  const blocks = Number.isFinite(sequence.blocks) ? `, ${counted(sequence.blocks, "block")}` : "";
  return `Request ${plain(sequence.request_id)}, ${state} in group ${sequence.group}, ${computed} of ${counted(sequence.tokens, "token")} computed${blocks}${tenant}`;
}
