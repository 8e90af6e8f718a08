// Skill of the last runs: what to show is chosen here, the chart is drawn in charts.js.

import { hhmm, number } from "./format.js";
import { SCORES, series, skillChart } from "./charts.js";

export class SkillPanel {
  #panel; #manifest; #scores; #lead = null;

  created = null; // of the manifest whose scores are shown

  constructor(panel) {
    this.#panel = panel;
    for (const select of panel.querySelectorAll("select")) select.addEventListener("change", () => this.#paint());
  }

  /** Fetches the scores that belong to a manifest; the last ones stay if that fails. */
  async load(manifest) {
    const response = await fetch(`${manifest.scores}?${Date.parse(manifest.created)}`, { cache: "no-cache" });
    if (!response.ok) throw new Error(`${manifest.scores}: ${response.status}`);
    this.#manifest = manifest;
    this.#scores = await response.json();
    this.created = manifest.created;
    this.#panel.hidden = this.#scores.runs.length === 0;
    const { thresholds, runs } = this.#scores;
    fill(this.#find("score"), Object.entries(SCORES).map(([key, score]) => [key, score.label, score.title]));
    fill(this.#find("threshold"), thresholds.map((value, index) => [String(index), `≥ ${number(value)} ${manifest.quantity.unit}`]));
    fill(this.#find("runs"), [["pooled", `last ${runs.length} runs pooled`],
      ...runs.map((run) => [run.reference_time, `run ${hhmm(Date.parse(run.reference_time))}`])]);
    this.#find("rule").textContent = this.#scores.rule;
    this.#paint();
  }

  /** Marks the lead time on screen, in minutes; null for observed frames. */
  mark(lead) {
    this.#lead = lead;
    this.#paint();
  }

  #find(name) {
    return this.#panel.querySelector(`#skill-${name}`);
  }

  #paint() {
    if (!this.#scores?.runs.length) return;
    const { leads, pooled, runs } = this.#scores;
    const score = this.#find("score").value, threshold = Number(this.#find("threshold").value);
    const results = this.#find("runs").value === "pooled" ? pooled
      : runs.find((run) => run.reference_time === this.#find("runs").value).models;
    this.#find("threshold").disabled = !SCORES[score].byThreshold;
    const order = this.#manifest.products, unit = this.#manifest.quantity.unit;
    const marked = leads.includes(this.#lead) ? this.#lead : null;
    this.#find("chart").replaceChildren(skillChart({ leads, results, order, score, threshold, marked, unit }));
    this.#find("table").replaceChildren(table({ leads, results, order, score, threshold, lead: marked ?? leads[Math.floor(leads.length / 2)] }));
  }
}

/** Fills a select and keeps its choice where that is still offered. */
function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, textContent, title = ""]) =>
    Object.assign(document.createElement("option"), { value, textContent, title })));
  if (options.some(([value]) => value === before)) select.value = before;
}

function table({ leads, results, order, score, threshold, lead }) {
  const at = leads.indexOf(lead), node = document.createElement("table");
  const row = (cell, words) => {
    const line = node.insertRow();
    for (const word of words) line.append(Object.assign(document.createElement(cell), { textContent: word }));
    return line;
  };
  row("th", ["", `${SCORES[score].label} at +${lead}`, "runs", "n (pixels)"]);
  for (const [model, result] of Object.entries(results)) {
    const value = series(result, score, threshold)[at];
    const line = row("td", [model, value === null ? "–" : value.toFixed(value < 10 ? 3 : 1), result.runs[at],
      result.pixels[at].toLocaleString("en-GB")]);
    line.cells[0].prepend(Object.assign(document.createElement("i"), { className: `key series-${order.indexOf(model) % 6}` }));
  }
  return node;
}
