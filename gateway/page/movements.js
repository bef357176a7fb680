// What moves: sequences and cached blocks between groups, groups to other ranks. Most take less time than an eye needs,
// so each stays in sight for a while after its end.

import { byId, element, keyed, place, setAttribute, setHidden, setText } from "./dom.js";
import { bytes, count, counted, milliseconds, plain } from "./format.js";
import { drawRail } from "./rail.js";

const LINGER_MS = 2200;
const SHOWN_MIN_MS = 2500;
/** Its end was not told: the coordinator that knew is gone. */
const FORGOTTEN_MS = 3000;
const LANES_MAX = 12;
const lanes = new Map();
/** Of each group, as the last status had it. */
let ranks = new Map();
let last = null;

/** Once a second would be late: lanes leave by their own time. */
export function startMovements() {
  setInterval(draw, 250);
  new ResizeObserver(draw).observe(byId("group-list"));
}

export function showMovements(status) {
  const now = performance.now();
  for (const transfer of status.transfers) {
    progress(`transfer:${transfer.id}`, transfer, () => ({
      what: transfer.reason === "prefix" ? "copy" : "migration",
      source: transfer.source_group,
      target: transfer.target_group,
      name: transfer.request_id,
    }));
  }
  for (const reshard of status.reshards) {
    progress(`reshard:${reshard.group}`, reshard, () => ({ what: "reshard", source: reshard.group, target: reshard.group, name: "" }));
    Object.assign(lanes.get(`reshard:${reshard.group}`), { from: reshard.from_ranks, to: reshard.workers.length });
  }
  ranks = new Map(status.groups.map((group) => [group.id, group.ranks.length]));
  for (const [key, lane] of lanes) if (!lane.ended && now - lane.seen > FORGOTTEN_MS) lanes.delete(key);
  draw();
}

/** A status may be older than the news of the end: then what it tells began before that end. */
function progress(key, told, create) {
  const now = performance.now();
  const known = lanes.get(key);
  if (known?.ended && told.age_ms >= now - known.ended) return;
  if (!known || known.ended) lanes.set(key, { key, began: now, ...create() });
  Object.assign(lanes.get(key), { seen: now, planned: told.cells_planned, arrived: told.cells_arrived, size: told.bytes, stage: told.stage });
}

/** News of what began and what ended. */
export function moveByNews(news) {
  const begun = beginnings[news.kind];
  if (begun) {
    const now = performance.now();
    const { key, ...lane } = begun(news);
    const known = lanes.get(key);
    lanes.set(key, { ...(known?.ended ? {} : known), key, began: now, seen: now, ...lane });
    draw();
  }
  const ended = endings[news.kind];
  if (ended) {
    const { key, ...lane } = ended(news);
    end(key, lane, news);
    draw();
  }
}

const beginnings = {
  migration_began: (news) => ({ key: `transfer:${news.transfer}`, what: "migration", source: news.source, target: news.target, name: news.request_id }),
  reshard_began: (news) => ({ key: `reshard:${news.group}`, what: "reshard", source: news.group, target: news.group, name: "", from: ranks.get(news.group), to: news.ranks }),
};

const endings = {
  migration_ended: (news) => ({ key: `transfer:${news.transfer}`, what: "migration", source: news.source, target: news.target, name: news.request_id }),
  prefix_copy_ended: (news) => ({ key: `transfer:${news.transfer}`, what: "copy", source: news.source, target: news.target, name: news.request_id }),
  reshard_ended: (news) => ({ key: `reshard:${news.group}`, what: "reshard", source: news.group, target: news.group, name: "", to: news.ranks }),
};

/** Also what was never seen while it moved. */
function end(key, told, news) {
  const now = performance.now();
  const lane = lanes.get(key) ?? { key, began: now };
  for (const [name, value] of Object.entries(told)) if (value !== undefined) lane[name] = value;
  const cells = news.cells ?? lane.arrived;
  Object.assign(lane, { seen: now, ended: now, outcome: news.outcome ?? "ended", pause: news.pause_ms, planned: cells, arrived: cells, size: news.bytes ?? lane.size });
  lanes.set(key, lane);
  last = { text: `${title(lane)}, ${result(lane)}`, at: news.time_ms };
}

/** Nothing that was moving moves any more. */
export function forgetMovements() {
  lanes.clear();
  draw();
}

function draw() {
  const now = performance.now();
  for (const [key, lane] of lanes) {
    if (lane.ended && now - lane.ended > LINGER_MS && now - lane.began > SHOWN_MIN_MS) lanes.delete(key);
  }
  const shown = [...lanes.values()].slice(-LANES_MAX);
  keyed(byId("lanes"), shown, (lane) => lane.key, createLane, updateLane);
  setHidden(byId("no-lanes"), shown.length > 0);
  setText(byId("no-lanes"), last ? `Nothing moves. Last: ${last.text}.` : "Nothing moves.");
  drawRail(shown.filter((lane) => lane.source !== undefined && lane.target !== undefined));
}

function createLane() {
  const cell = (name) => element("span", { class: name });
  const track = element("span", { class: "track", "aria-hidden": "true" }, element("i"));
  return element("li", { class: "lane" }, cell("lane-what"), cell("lane-way"), track, cell("lane-cells"), cell("lane-stage"), cell("lane-name"));
}

function updateLane(node, lane) {
  const text = (name, value) => setText(node.querySelector(`.${name}`), value);
  setAttribute(node, "data-lane", lane.what);
  setAttribute(node, "data-source", lane.source);
  setAttribute(node, "data-target", lane.target);
  setAttribute(node, "data-request", lane.name || null);
  setAttribute(node, "data-ended", lane.ended ? lane.outcome : null);
  text("lane-what", lane.what);
  text("lane-way", way(lane));
  text("lane-cells", lane.planned === undefined ? "" : `${count(lane.arrived)}/${counted(lane.planned, "cell")}, ${bytes(lane.size ?? 0)}`);
  text("lane-stage", lane.ended ? result(lane) : plain(lane.stage ?? "begins"));
  text("lane-name", plain(lane.name ?? ""));
  const part = lane.ended ? 1 : lane.planned > 0 ? lane.arrived / lane.planned : 0;
  place(node.querySelector("i"), 0, Math.min(part, 1));
}

function way(lane) {
  if (lane.what !== "reshard") return `G${lane.source ?? "?"} \u2192 G${lane.target ?? "?"}`;
  return lane.to ? `G${lane.source}: ${lane.from ?? "?"} \u2192 ${counted(lane.to, "rank")}` : `G${lane.source}`;
}

function title(lane) {
  return lane.what === "reshard" ? `reshard of group ${lane.source}` : `${lane.what} from group ${lane.source} to ${lane.target}`;
}

function result(lane) {
  const pause = Number.isFinite(lane.pause) && lane.pause > 0 ? `, pause ${milliseconds(lane.pause)}` : "";
  return `${plain(lane.outcome)}${pause}`;
}
