// Small drawings: a line over two minutes, and percentiles on a scale of powers of ten.

import { element, place, setAttribute, setStyle, setText, svg } from "./dom.js";
import { milliseconds } from "./format.js";
import { SPAN_MS } from "./history.js";

const WIDTH = 480;
const HEIGHT = 64;
const SCALE_MIN_MS = 0.1;
const DECADES = 6;

/** A line that `drawLine` fills. */
export function line() {
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "line" };
  return svg("svg", frame, svg("path", { class: "line-rules", d: rules() }), svg("path", { class: "line-area" }), svg("path", { class: "line-ink" }));
}

/** A rule every 30 seconds. */
function rules() {
  return [1, 2, 3].map((part) => `M${(WIDTH * part) / 4} 0V${HEIGHT}`).join("");
}

export function drawLine(node, history, label) {
  const now = performance.now();
  const most = history.most() || 1;
  const strokes = [];
  let stroke = null;
  for (const { at, value } of history.samples()) {
    if (value === null) {
      stroke = null;
      continue;
    }
    if (!stroke) strokes.push((stroke = []));
    const x = WIDTH * (1 - (now - at) / SPAN_MS);
    const y = HEIGHT - 2 - (HEIGHT - 6) * (value / most);
    stroke.push([x.toFixed(1), y.toFixed(1)]);
  }
  const path = (points) => `M${points.map((point) => point.join(" ")).join("L")}`;
  const under = (points) => `${path(points)}L${points[points.length - 1][0]} ${HEIGHT}L${points[0][0]} ${HEIGHT}Z`;
  setAttribute(node.children[1], "d", strokes.map(under).join(""));
  setAttribute(node.children[2], "d", strokes.map(path).join(""));
  setAttribute(node, "aria-label", label);
}

const MARKS = { p50: "half", p90: "nine in ten", p99: "99 in 100" };

/** Three marks on a scale from 0.1 ms to 100 s, and their numbers. */
export function percentiles() {
  const track = element("div", { class: "scale", "aria-hidden": "true" });
  for (let decade = 0; decade <= DECADES; decade += 1) {
    const tick = element("i", { class: "scale-tick" });
    setStyle(tick, "left", `${(100 * decade) / DECADES}%`);
    track.append(tick);
  }
  track.append(element("i", { class: "scale-span" }));
  for (const name of Object.keys(MARKS)) track.append(element("i", { class: `scale-mark ${name}` }));
  const numbers = element("dl", { class: "scale-numbers" });
  for (const [name, meaning] of Object.entries(MARKS)) {
    const term = element("dt", { title: `${meaning} took no longer` }, element("i", { class: `key-mark ${name}`, "aria-hidden": "true" }), name);
    numbers.append(element("div", {}, term, element("dd", { class: name })));
  }
  return element("div", { class: "percentiles" }, track, numbers);
}

/** `found` may be null: nothing came in the last minute. */
export function drawPercentiles(node, found) {
  const at = (ms) => Math.min(Math.max(Math.log10(ms / SCALE_MIN_MS) / DECADES, 0), 1);
  node.classList.toggle("none", !found);
  for (const name of Object.keys(MARKS)) {
    setText(node.querySelector(`dd.${name}`), milliseconds(found?.[name] ?? NaN));
    if (found) setStyle(node.querySelector(`.scale-mark.${name}`), "left", `${(at(found[name]) * 100).toFixed(2)}%`);
  }
  if (found) place(node.querySelector(".scale-span"), at(found.p50), at(found.p99) - at(found.p50));
}
