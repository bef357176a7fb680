// Numbers over the last two minutes.

export const SPAN_MS = 120000;

export class History {
  #samples = [];

  /** `value` null: nothing is known, and the line has a gap. */
  add(value, at = performance.now()) {
    this.#samples.push({ at, value: Number.isFinite(value) ? value : null });
    while (this.#samples.length > 0 && this.#samples[0].at < at - SPAN_MS) this.#samples.shift();
  }

  /** Only where something was known before: the page does not see. */
  gap() {
    if (this.#samples.length > 0) this.add(null);
  }

  samples() {
    return this.#samples;
  }

  most() {
    return this.#samples.reduce((most, { value }) => Math.max(most, value ?? 0), 0);
  }
}
