// The cluster's events, as long as the page is open: it connects again when the connection breaks or falls silent, also
// when another coordinator answers at the same address.

import { askForKey, headers, keyServed } from "./key.js";
import { readEvents } from "./server_events.js";

const SILENCE_MAX_MS = 6000;
const PAUSE_MIN_MS = 250;
const PAUSE_MAX_MS = 4000;

/**
 * `on` has `opened()`, `status(status)`, `news(news)`, `lost(retryMs)`, `absent()` (this door has no cluster behind
 * it) and `refused(why)`. Returns a function that tries again at once.
 */
export function startFeed(on) {
  let wake = () => {};
  follow(on, (ms) => new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  }));
  const again = () => wake();
  addEventListener("online", again);
  document.addEventListener("visibilitychange", () => document.hidden || again());
  return again;
}

async function follow(on, pause) {
  let pauseMs = PAUSE_MIN_MS;
  let seen = false;
  for (;;) {
    const end = await once(on, () => {
      seen = true;
      pauseMs = PAUSE_MIN_MS;
    });
    // A door that had a cluster once has it again when its coordinator is back.
    if (end === "absent" && !seen) return on.absent();
    if (end === "key") {
      on.refused();
      await askForKey("This cluster shows itself only to an administrator.");
      continue;
    }
    on.lost(pauseMs);
    await pause(pauseMs);
    pauseMs = Math.min(pauseMs * 2, PAUSE_MAX_MS);
  }
}

/** One connection. Returns why it ended. */
async function once(on, arrived) {
  const abort = new AbortController();
  let silence;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => abort.abort(), SILENCE_MAX_MS);
  };
  heard();
  try {
    const response = await fetch("/cluster/events", { headers: headers(), signal: abort.signal, cache: "no-store" });
    if (response.status === 404) return "absent";
    if (response.status === 401 || response.status === 403) return "key";
    if (!response.ok || !response.body) return "lost";
    keyServed();
    on.opened();
    await readEvents(response, (event, data) => {
      heard();
      arrived();
      deliver(on, event, data);
    });
  } catch {
    // The connection broke, or was silent for too long.
  } finally {
    clearTimeout(silence);
    abort.abort();
  }
  return "lost";
}

/** What one event does wrong is told, and does not end the connection. */
function deliver(on, event, data) {
  try {
    if (event === "status") on.status(JSON.parse(data));
    else if (event === "news") on.news(JSON.parse(data));
  } catch (error) {
    reportError(error);
  }
}
