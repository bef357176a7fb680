// The page: what comes from the cluster goes to each of its parts.

import { chosenKey, openDetail, showDetail, startDetail } from "./detail.js";
import { byId, element, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { startFeed } from "./feed.js";
import { count, plain } from "./format.js";
import { gaugesLost, showGauges, startGauges } from "./gauges.js";
import { showGroups, startGroups } from "./groups.js";
import { showConnection, showHead } from "./head.js";
import { startKey } from "./key.js";
import { forgetMovements, moveByNews, showMovements, startMovements } from "./movements.js";
import { addNews, drawNews, newsAreHeard, showStanding } from "./news.js";
import { startPlayground } from "./playground.js";
import { showSequences, startSequences } from "./sequences.js";

/** News that come this soon after the connection are of the past, unless their time says otherwise. */
const REPLAY_MS = 500;
const RECENT_MS = 2500;

let status = null;
let seenMs = 0;
let openedAt = 0;
let wasLost = false;

function start() {
  startKey();
  startGauges();
  startGroups(open);
  startSequences(open);
  startMovements();
  startDetail(show);
  startPlayground();
  showConnection("connecting");
  const again = startFeed({ opened, status: arrived, news, lost, absent, refused });
  byId("again").addEventListener("click", again);
}

function open(key, button) {
  openDetail(key, button, show);
}

function opened() {
  openedAt = performance.now();
  newsAreHeard(false);
  setTimeout(() => newsAreHeard(true), 2 * REPLAY_MS);
}

function arrived(next) {
  if (status && next.uptime_ms < status.uptime_ms) restarted(next);
  status = next;
  seenMs = Date.now();
  if (wasLost) tell("The connection is back.");
  wasLost = false;
  showConnection("live", seenMs);
  setAttribute(document.body, "data-cluster", "shown");
  showGauges(status);
  showMovements(status);
  show();
}

/** Another coordinator, or the same one anew: what it counts begins at 0. */
function restarted(next) {
  gaugesLost();
  forgetMovements();
  tell(`A coordinator that has just started answers now${next.coordinator ? `: ${plain(next.coordinator)}` : ""}.`);
}

/** Also when another detail was chosen. */
function show() {
  if (!status) return;
  const chosen = chosenKey();
  showHead(status);
  showGroups(status, chosen);
  showSequences(status, chosen);
  showStanding(status);
  showCounters(status.counters);
  showDetail(status, seenMs);
}

function news(item) {
  if (!addNews(item)) return;
  const replayed = performance.now() - openedAt < REPLAY_MS && Math.abs(Date.now() - item.time_ms) > RECENT_MS;
  if (!replayed) moveByNews(item);
  drawNews();
}

function lost() {
  if (!wasLost && status) {
    gaugesLost();
    forgetMovements();
    tell("The connection was lost.");
  }
  wasLost = wasLost || Boolean(status);
  showConnection(status ? "lost" : "connecting", seenMs);
}

/** The page's own news. */
function tell(text) {
  addNews({ time_ms: Date.now(), kind: "page", severity: "info", text, local: true });
  drawNews();
}

function absent() {
  showConnection("absent");
  setAttribute(document.body, "data-cluster", "absent");
  setHidden(byId("absent"), false);
}

function refused() {
  showConnection("key");
}

function showCounters(counters) {
  const counted = Object.entries(counters).filter(([, value]) => value > 0);
  setText(byId("counter-count"), count(counted.length));
  keyed(byId("counter-list"), counted, ([name]) => name, ([name]) => element("div", {}, element("dt", { text: plain(name).replaceAll("_", " ") }), element("dd")), (node, [, value]) => {
    setText(node.lastChild, count(value));
  });
}

start();
