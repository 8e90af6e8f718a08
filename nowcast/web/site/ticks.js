// What stands behind the slider: observed and forecast frames, hours, where radar ends, and the clock.

import { hhmm, stamp } from "./format.js";

export class Ticks {
  #box; #timeline;

  constructor(box) {
    this.#box = box;
  }

  /** @param ready tells whether the picture of a file is here; @param local hours in local time. */
  draw(timeline, { ready, local }) {
    this.#timeline = timeline;
    const { frames, now } = timeline, first = frames[0].time, last = frames.at(-1).time, border = frames[now].time;
    const ticks = frames.map((frame) => {
      const node = this.#node(`tick ${frame.kind}`, frame.time);
      node.dataset.file = frame.file;
      node.classList.toggle("ready", ready(frame.file));
      return node;
    });
    const hours = round(first, last).map((time) => this.#node("hour", time, stamp(time, local).time));
    const flag = this.#node("flag", border);
    flag.style.setProperty("--at", this.#position(border));
    this.#box.replaceChildren(this.#band("observed", first, border), this.#band("forecast", border, last),
                              ...ticks, ...hours, flag, this.#node("present", border));
  }

  /** The flag stands where radar ends; it says "now" only while that is true. The small mark is the clock. */
  mark(clock, radar) {
    const { frames, pinned, run } = this.#timeline;
    const [flag, present] = [".flag", ".present"].map((name) => this.#box.querySelector(name));
    const text = pinned ? `run ${hhmm(Date.parse(run.reference_time))}` : radar === "ok" ? "now" : "last radar";
    if (flag.textContent !== text) flag.textContent = text;
    flag.dataset.state = pinned ? "ok" : radar;
    present.hidden = clock > frames.at(-1).time || clock < frames[0].time;
    present.style.left = `${this.#position(clock)}%`;
  }

  loaded(file) {
    for (const node of this.#box.querySelectorAll(".tick")) if (node.dataset.file === file) node.classList.add("ready");
  }

  #position(time) {
    const { frames } = this.#timeline, span = frames.at(-1).time - frames[0].time;
    return span ? (100 * (time - frames[0].time)) / span : 0;
  }

  #node(kind, time, text = "") {
    const node = Object.assign(document.createElement("i"), { className: kind, textContent: text });
    node.style.left = `${this.#position(time)}%`;
    return node;
  }

  #band(kind, from, to) {
    const node = this.#node(`band ${kind}`, from);
    node.style.width = `${this.#position(to) - this.#position(from)}%`;
    return node;
  }
}

/** Round times in between, not too many. */
function round(first, last) {
  const minutes = (last - first) / 60000, every = (minutes > 300 ? 60 : minutes > 100 ? 30 : 15) * 60000;
  const start = Math.ceil(first / every) * every;
  return Array.from({ length: Math.max(0, Math.floor((last - start) / every) + 1) }, (_, index) => start + index * every);
}
