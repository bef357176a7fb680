// How values are written: units, counts, times, and what other people named.

const COUNT = new Intl.NumberFormat("en");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
// What would not be seen, or would turn the text around: controls, marks of direction, separators of lines.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** What a client or a worker named, as it can be shown: on one line, from left to right. */
export function plain(name) {
  return String(name ?? "").replace(UNSEEN, "\ufffd");
}

export function count(number) {
  return Number.isFinite(number) ? COUNT.format(number) : "\u2013";
}

/** `3 cells`, `1 cell`. */
export function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Three digits that count, whatever the size. */
export function digits(number) {
  if (!Number.isFinite(number)) return "\u2013";
  if (number !== 0 && Math.abs(number) < 100) return number.toFixed(Math.abs(number) < 10 ? 2 : 1);
  return COUNT.format(Math.round(number));
}

export function bytes(number) {
  if (!Number.isFinite(number)) return "\u2013";
  let unit = 0;
  while (number >= 1024 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? count(number) : digits(number)} ${UNITS[unit]}`;
}

export function milliseconds(ms) {
  if (!Number.isFinite(ms)) return "\u2013";
  if (ms < 1) return `${count(Math.round(ms * 1000))} \u00b5s`;
  if (ms < 1000) return `${digits(ms)} ms`;
  return `${digits(ms / 1000)} s`;
}

/** `3 d 4 h`, `5 min 6 s`: the two largest parts. */
export function duration(ms) {
  if (!Number.isFinite(ms)) return "\u2013";
  const parts = [];
  let rest = Math.floor(ms / 1000);
  for (const [seconds, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    const whole = Math.floor(rest / seconds);
    rest -= whole * seconds;
    if (whole > 0 || (unit === "s" && parts.length === 0)) parts.push(`${whole} ${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

/** The time of day on this machine. */
export function clock(unixMs) {
  return new Date(unixMs).toLocaleTimeString("en-GB");
}

/** Numbers in runs: `0\u20133, 7`. */
export function runs(numbers) {
  const found = [];
  for (const number of numbers) {
    const last = found[found.length - 1];
    if (last && last[1] === number - 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([first, last]) => (first === last ? `${first}` : `${first}\u2013${last}`)).join(", ") || "none";
}

/** A half-open range of units: `12\u201323 (12 of 24)`. */
export function units([begin, end], total) {
  if (end <= begin) return `none of ${count(total)}`;
  const range = end - begin === 1 ? `${begin}` : `${begin}\u2013${end - 1}`;
  return `${range} (${count(end - begin)} of ${count(total)})`;
}
