// Two small charts in SVG: skill by lead time, and the values at a point.

import { hhmm, number } from "./format.js";

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 320;

export const SCORES = {
  csi: { label: "CSI", title: "critical success index", byThreshold: true, top: 1 },
  pod: { label: "POD", title: "probability of detection", byThreshold: true, top: 1 },
  far: { label: "FAR", title: "false alarm ratio", byThreshold: true, top: 1 },
  bias: { label: "Bias", title: "frequency bias, 1 is best", byThreshold: true },
  ssim: { label: "SSIM", title: "structural similarity", top: 1 },
  mse: { label: "MSE", title: "mean squared error" },
  mae: { label: "MAE", title: "mean absolute error" },
};

function element(name, attributes, ...children) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The values of one score by lead, of one model. */
export function series(result, score, threshold) {
  return SCORES[score].byThreshold ? result[score][threshold] : result[score];
}

/**
 * Skill by lead time, one line per model.
 *
 * @param results {model: result}; @param order all models, which fixes their colours;
 * @param marked lead in minutes under the cursor of the page, or null.
 */
export function skillChart({ leads, results, order, score, threshold, marked, unit }) {
  const height = 182, box = { left: 32, right: WIDTH - 16, top: 10, bottom: height - 38 };
  const values = Object.values(results).flatMap((result) => series(result, score, threshold)).filter((value) => value !== null);
  const top = SCORES[score].top ?? niceTop(Math.max(...values, 0));
  const x = (minutes) => box.left + ((box.right - box.left) * minutes) / leads.at(-1);
  const y = (value) => box.bottom - ((box.bottom - box.top) * Math.max(value, 0)) / top;
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img",
    "aria-label": `${SCORES[score].title} by lead time, ${Object.keys(results).join(", ")}; values in the table below` });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(element("line", { class: "grid", x1: box.left, x2: box.right, y1: y(share * top), y2: y(share * top) }),
      element("text", { class: "axis", x: box.left - 5, y: y(share * top) + 3.5, "text-anchor": "end" }, number(share * top)));
  }
  for (const minutes of spaced(leads)) {
    svg.append(element("text", { class: "axis", x: x(minutes), y: box.bottom + 14, "text-anchor": "middle" }, `+${minutes}`));
  }
  svg.append(element("text", { class: "axis", x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, "lead time, min"));
  if (marked !== null) svg.append(element("line", { class: "marked", x1: x(marked), x2: x(marked), y1: box.top, y2: box.bottom }));
  for (const [model, result] of Object.entries(results)) {
    const points = series(result, score, threshold).map((value, at) => (value === null ? null : [x(leads[at]), y(Math.min(value, top))]));
    const line = element("path", { class: `line series-${order.indexOf(model) % 6}`, d: broken(points) });
    line.append(element("title", {}, `${model}: ${SCORES[score].label}${unit ? ` ${unit}` : ""}`));
    svg.append(line);
    for (const point of points.filter(Boolean)) {
      svg.append(element("circle", { class: `dot series-${order.indexOf(model) % 6}`, cx: point[0], cy: point[1], r: 2 }));
    }
  }
  return svg;
}

/** Values at a point through the timeline: frames of {time, kind, value|null, missing, colour}. */
export function pointChart({ frames, current, now, low, high, unit, logarithmic }) {
  const height = 110, box = { left: 30, right: WIDTH - 8, top: 8, bottom: height - 18 };
  const first = frames[0].time, span = Math.max(frames.at(-1).time - first, 1);
  const x = (time) => box.left + 3 + ((box.right - box.left - 6) * (time - first)) / span;
  const share = (value) => logarithmic ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  const y = (value) => box.bottom - (box.bottom - box.top) * Math.min(Math.max(share(value), 0.02), 1);
  const width = Math.max(1.5, Math.min(8, ((box.right - box.left) / frames.length) * 0.8));
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `values at the point in ${unit}` });
  for (const value of logarithmic ? [0.1, 1, 10, 100] : [low, (low + high) / 2, high]) {
    if (value < low || value > high) continue;
    svg.append(element("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      element("text", { class: "axis", x: box.left - 4, y: y(value) + 3.5, "text-anchor": "end" }, number(value)));
  }
  for (const [index, frame] of frames.entries()) {
    if (frame.missing) svg.append(element("rect", { class: "missing", x: x(frame.time) - width / 2, width, y: box.top, height: box.bottom - box.top }));
    if (frame.value === null) continue;
    const bar = element("rect", { class: frame.kind, x: x(frame.time) - width / 2, width, y: y(frame.value),
      height: box.bottom - y(frame.value), fill: frame.colour });
    if (index === current) bar.classList.add("current");
    svg.append(bar);
  }
  svg.append(element("line", { class: "axis-line", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    element("line", { class: "now", x1: x(frames[now].time), x2: x(frames[now].time), y1: box.top, y2: box.bottom }),
    element("line", { class: "marked", x1: x(frames[current].time), x2: x(frames[current].time), y1: box.top, y2: box.bottom }));
  for (const [at, anchor] of [[0, "start"], [now, "middle"], [frames.length - 1, "end"]]) {
    svg.append(element("text", { class: "axis", x: x(frames[at].time), y: height - 4, "text-anchor": anchor }, hhmm(frames[at].time)));
  }
  return svg;
}

/** Path through the points, interrupted where one is missing. */
function broken(points) {
  return points.map((point, at) => (point ? `${at && points[at - 1] ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}` : "")).join("");
}

function niceTop(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].find((step) => step * unit >= value) * unit;
}

/** At most five lead times, the last among them. */
function spaced(leads) {
  const every = Math.ceil(leads.length / 5);
  return leads.filter((_, index) => (leads.length - 1 - index) % every === 0);
}
