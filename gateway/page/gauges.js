// The row of instruments: speed, latency, queue, prefix cache.

import { drawLine, drawPercentiles, line, percentiles } from "./charts.js";
import { byId, element, keyed, place, setText } from "./dom.js";
import { count, counted, digits } from "./format.js";
import { History } from "./history.js";

const REDRAW_MS = 1000;
const speed = new History();
const speedLine = line();
const firstToken = percentiles();
const interToken = percentiles();

export function startGauges() {
  byId("speed-line").append(speedLine);
  byId("first-token").append(firstToken);
  byId("inter-token").append(interToken);
  setInterval(draw, REDRAW_MS);
}

export function showGauges(status) {
  speed.add(status.tokens_per_second);
  setText(byId("speed-now"), digits(status.tokens_per_second));
  drawPercentiles(firstToken, status.latency?.time_to_first_token_ms);
  drawPercentiles(interToken, status.latency?.inter_token_ms);
  setText(byId("generated"), count(status.counters.generation_tokens));
  setText(byId("hit-rate"), `${(status.prefix_hit_rate * 100).toFixed(1)} %`);
  showQueue(status);
  draw();
}

/** What is not seen is no zero. */
export function gaugesLost() {
  speed.gap();
}

function draw() {
  const most = digits(speed.most());
  setText(byId("speed-most"), most);
  drawLine(speedLine, speed, `Tokens per second over two minutes: now ${byId("speed-now").textContent}, most ${most}`);
}

function showQueue(status) {
  const sum = (name) => status.groups.reduce((sum, group) => sum + group[name], 0);
  const longest = Math.max(1, ...status.groups.map((group) => group.running + group.waiting));
  setText(byId("waiting"), count(sum("waiting")));
  setText(byId("running"), count(sum("running")));
  keyed(byId("queue"), status.groups, (group) => group.id, queueRow, (row, group) => {
    const [name, track, text] = row.children;
    setText(name, `G${group.id}`);
    place(track.children[0], 0, group.running / longest);
    place(track.children[1], group.running / longest, group.waiting / longest);
    setText(text, `${count(group.waiting)} waiting`);
    row.title = `group ${group.id}: ${counted(group.waiting, "sequence")} waiting, ${count(group.running)} running`;
  });
}

function queueRow() {
  const track = element("span", { class: "track", "aria-hidden": "true" }, element("i", { class: "ran" }), element("i", { class: "waits" }));
  return element("li", {}, element("span", { class: "queue-name" }), track, element("span", { class: "queue-text" }));
}
