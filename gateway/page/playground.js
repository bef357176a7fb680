// A prompt, and its answer as it comes. It needs no cluster behind the door, only its OpenAI API.

import { byId, setAttribute, setText } from "./dom.js";
import { counted, digits, milliseconds, plain } from "./format.js";
import { askForKey, headers, keyServed } from "./key.js";
import { readEvents } from "./server_events.js";

let model = null;
let running = null;

export function startPlayground() {
  byId("play").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) send();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("play").requestSubmit();
  });
}

async function send() {
  running = new AbortController();
  busy(true);
  setText(byId("answer"), "");
  say("waits for the first token", "");
  const timing = { sent: performance.now(), first: null, tokens: 0, usage: null, finish: null };
  try {
    await stream(timing);
    say(`${plain(timing.finish ?? "ended")}: ${summary(timing)}`, "good");
  } catch (error) {
    if (error.name === "AbortError") say(`stopped: ${summary(timing)}`, "good");
    else say(error instanceof Refused ? error.message : `the connection broke: ${error.message}`, "bad");
  }
  running = null;
  busy(false);
}

class Refused extends Error {}

async function stream(timing) {
  model ??= await firstModel();
  const body = {
    model,
    messages: [{ role: "user", content: byId("prompt").value }],
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  await readEvents(response, (_, data) => data !== "[DONE]" && take(JSON.parse(data), timing));
  if (!timing.finish) throw new Refused("the stream ended before the answer did");
}

function take(chunk, timing) {
  if (chunk.error) throw new Refused(told(chunk.error));
  if (chunk.usage) timing.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const text = choice.delta?.content;
  if (text) {
    timing.first ??= performance.now();
    timing.tokens += 1;
    write(text);
    say(`streams: ${summary(timing)}`, "");
  }
  if (choice.finish_reason) timing.finish = choice.finish_reason;
}

/** With the key, and once more where one is needed. Errors with what the server says. */
async function ask(path, options = {}) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: headers(options.headers), signal: running.signal });
    if (response.ok) {
      keyServed();
      return response;
    }
    if (response.status !== 401) throw new Refused(await whatItSays(response));
    say("a key is needed", "");
    await Promise.race([askForKey("This cluster answers only those who show a key."), stopped(running.signal)]);
  }
}

function stopped(signal) {
  return new Promise((_, refuse) => signal.addEventListener("abort", () => refuse(signal.reason), { once: true }));
}

async function firstModel() {
  const response = await ask("/v1/models");
  const [first] = (await response.json()).data;
  if (!first) throw new Refused("the server has no model");
  return first.id;
}

async function whatItSays(response) {
  const text = await response.text();
  try {
    return `${response.status}: ${told(JSON.parse(text).error)}`;
  } catch {
    return `${response.status}: ${plain(text) || response.statusText}`;
  }
}

function told(error) {
  return plain(error.message ?? JSON.stringify(error));
}

/** The answer may be long: it follows its end only where the reader has not scrolled away. */
function write(text) {
  const answer = byId("answer");
  const follows = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 24;
  if (answer.lastChild?.nodeType === Node.TEXT_NODE) answer.lastChild.appendData(text);
  else answer.append(text);
  if (follows) answer.scrollTop = answer.scrollHeight;
}

/** After the first token: its wait is no part of the speed. */
function summary(timing) {
  const tokens = timing.usage?.completion_tokens ?? timing.tokens;
  if (!timing.first) return counted(tokens, "token");
  const seconds = (performance.now() - timing.first) / 1000;
  const speed = tokens > 1 && seconds > 0 ? `, ${digits((tokens - 1) / seconds)} tokens/s` : "";
  return `${counted(tokens, "token")}, first after ${milliseconds(Math.round(timing.first - timing.sent))}${speed}`;
}

function say(text, state) {
  setText(byId("play-status"), text);
  setAttribute(byId("play-status"), "data-state", state || null);
}

function busy(is) {
  setAttribute(byId("send"), "aria-disabled", is ? "true" : null);
  byId("stop").disabled = !is;
  setAttribute(byId("answer"), "aria-busy", is ? "true" : "false");
}
