// The head of the page: which cluster this is, whether it can answer, and whether the page still sees it.

import { byId, setAttribute, setHidden, setText } from "./dom.js";
import { clock, counted, duration, plain } from "./format.js";

export function showHead(status) {
  setText(byId("model"), plain(status.model));
  lamp(byId("ready"), status.ready ? "good" : "bad", status.ready ? "ready" : "not ready");
  setHidden(byId("coordinator").closest("div"), !status.coordinator);
  setText(byId("coordinator"), plain(status.coordinator));
  setText(byId("leader"), status.leader === false ? "stands by" : "leads");
  setText(byId("uptime"), duration(status.uptime_ms));
  const held = status.groups.reduce((sum, group) => sum + group.ranks.length, 0);
  setText(byId("workers"), `${held} of ${status.workers_wanted} ranks, ${counted(status.spares.length, "spare")}`);
  setText(byId("numerics"), plain(status.numerics_id).slice(0, 8));
  setAttribute(byId("numerics"), "title", `numerics_id ${plain(status.numerics_id)}`);
  setText(byId("context"), counted(status.context_len, "token"));
  document.title = `${status.ready ? "" : "Not ready: "}${plain(status.model)} \u2013 Kvasir`;
}

function lamp(node, state, text) {
  setAttribute(node, "data-state", state);
  setText(node.querySelector(".lamp-text"), text);
}

const CONNECTION = { live: "live", connecting: "connecting", lost: "connection lost", key: "a key is needed", absent: "no cluster here" };
const LAMPS = { live: "good", connecting: "idle", lost: "bad", key: "idle", absent: "idle" };

/** `lastSeenMs`: when the last status came, of what is shown now. */
export function showConnection(state, lastSeenMs) {
  setAttribute(document.body, "data-connection", state);
  lamp(byId("connection"), LAMPS[state], CONNECTION[state]);
  const stale = state === "lost" && lastSeenMs;
  setHidden(byId("stale"), !stale);
  if (stale) setText(byId("stale-text"), `The coordinator does not answer. What is shown is of ${clock(lastSeenMs)}; this page goes on trying.`);
}
