// The rail beside the groups: a node for each, and an arc for each movement. Sequences travel as dots along the arc; where
// motion is not wanted, the arc alone says it.

import { byId, keyed, setAttribute, svg } from "./dom.js";

const NODE_RADIUS = 9;
const STEP = 7;
/** What took less is seen to flow all the same. */
const FLOW_MIN_MS = 700;

export function drawRail(lanes) {
  const rail = byId("rail");
  const list = byId("group-list");
  const top = list.getBoundingClientRect().top;
  const groups = [...list.children].map((node) => {
    const box = node.getBoundingClientRect();
    return { id: node.dataset.group, y: box.top - top + 22, end: box.bottom - top };
  });
  const height = list.offsetHeight;
  const width = rail.clientWidth || 44;
  setAttribute(rail, "viewBox", `0 0 ${width} ${Math.max(height, 1)}`);
  setAttribute(rail, "height", height);
  const x = width - NODE_RADIUS - 2;
  const [line, arcs, nodes] = rail.children;
  const at = new Map(groups.map((group) => [group.id, group.y]));
  const ends = groups.length > 0 ? [groups[0].y, groups[groups.length - 1].y] : [0, 0];
  setAttribute(line, "d", `M${x} ${ends[0]}V${ends[1]}`);
  keyed(nodes, groups, (group) => group.id, createNode, (node, group) => {
    setAttribute(node, "transform", `translate(${x} ${group.y})`);
    setAttribute(node, "class", lanes.some((lane) => flows(lane) && touches(lane, group.id)) ? "node busy" : "node");
  });
  const drawn = lanes.filter((lane) => at.has(String(lane.source)) && at.has(String(lane.target)));
  keyed(arcs, drawn, (lane) => lane.key, createArc, (arc, lane) => {
    const place = drawn.indexOf(lane);
    const source = at.get(String(lane.source));
    const target = at.get(String(lane.target));
    const bow = Math.max(4, x - NODE_RADIUS - 8 - STEP * (place % 3));
    const path = source === target ? loop(x, source) : bend(x, source, target, bow);
    setAttribute(arc, "class", `arc ${lane.what}${flows(lane) ? "" : " ended"}`);
    setAttribute(arc, "data-arc", `${lane.source}-${lane.target}`);
    const tip = source === target ? [x - 2, source + NODE_RADIUS] : [x - NODE_RADIUS - 1, target];
    setAttribute(arc.children[0], "d", path);
    setAttribute(arc.children[1], "d", path);
    setAttribute(arc.children[2], "d", source === target ? `M${tip[0]} ${tip[1]}l-8 1l4 7z` : `M${tip[0]} ${tip[1]}l-8 -4.5v9z`);
  });
}

function flows(lane) {
  return !lane.ended || performance.now() - lane.began < FLOW_MIN_MS;
}

function touches(lane, id) {
  return String(lane.source) === id || String(lane.target) === id;
}

/** From the left of one node to the left of the other. */
function bend(x, source, target, bow) {
  const from = x - NODE_RADIUS;
  const to = x - NODE_RADIUS - 8;
  const left = from - bow;
  const turn = Math.sign(target - source) * Math.min(16, Math.abs(target - source) / 2);
  return `M${from} ${source}Q${left} ${source} ${left} ${source + turn}V${target - turn}Q${left} ${target} ${to} ${target}`;
}

/** Around a node, back to it. */
function loop(x, y) {
  const outer = NODE_RADIUS + 6;
  return `M${x + 1} ${y - outer}A${outer} ${outer} 0 1 0 ${x - 6} ${y + outer - 1}`;
}

function createNode(group) {
  return svg("g", { class: "node" }, svg("circle", { r: NODE_RADIUS }), svg("text", { text: group.id, "text-anchor": "middle", y: 3.6 }));
}

function createArc() {
  return svg("g", { class: "arc" }, svg("path", { class: "way" }), svg("path", { class: "flow" }), svg("path", { class: "tip" }));
}
