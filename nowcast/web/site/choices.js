// What can be chosen, and what the colours mean: models, runs, legend.

import { hhmm, number } from "./format.js";

/** Every product with the state of its run: the one on screen, or its newest. */
export function paintModels(box, manifest, timeline, chosen, choose) {
  const latest = (model) => manifest.runs.find((run) => run.models.some((entry) => entry.model === model));
  const focused = box.contains(document.activeElement);
  box.replaceChildren(...manifest.products.map((model) => {
    const run = model === chosen ? timeline.run : latest(model);
    const entry = run?.models.find((candidate) => candidate.model === model);
    const how = entry?.state ?? "none";
    const marks = [entry?.bridged?.length ? "bridged" : "", entry?.revised ? "revised" : ""].filter(Boolean).join(", ");
    const words = { ok: marks, fallback: `fallback: ${entry?.producer}`, withheld: "withheld", none: "no run" }[how] ?? how;
    const button = Object.assign(document.createElement("button"), { type: "button", title: entry?.reason || model });
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", model === chosen);
    button.dataset.state = how;
    button.append(Object.assign(document.createElement("b"), { textContent: model }),
                  Object.assign(document.createElement("small"), { textContent: words }));
    button.addEventListener("click", () => choose({ model }));
    return button;
  }));
  if (focused) box.querySelector("[aria-checked=true]").focus();
}

/** The newest run and the older ones of a model. */
export function paintRuns(select, manifest, { model, run: chosen }) {
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  const mark = (run) => ({ fallback: " · fallback", withheld: " · withheld" })[run.models.find((entry) => entry.model === model)?.state] ?? "";
  const runs = manifest.runs.filter((run) => run.models.some((entry) => entry.model === model));
  const text = (run) => `${hhmm(Date.parse(run.reference_time))} UTC${mark(run)}`;
  select.replaceChildren(option("", runs.length ? `newest, ${text(runs[0])}` : "none"),
                         ...runs.slice(1).map((run) => option(run.reference_time, text(run))));
  select.value = chosen ?? "";
}

/** Classes from high to low with their lower limits; then what is dry and what is not seen. */
export function paintLegend(box, { breaks, colours }, unit) {
  const head = Object.assign(document.createElement("p"), { className: "unit", textContent: unit });
  const classes = breaks.map((limit, index) => swatch(colours[index], number(limit)));
  box.replaceChildren(head, ...classes.reverse(), swatch(null, "dry", "dry"), swatch(null, "no radar", "nodata"));
}

function swatch(colour, text, kind = "") {
  const item = Object.assign(document.createElement("div"), { className: `class ${kind}` });
  const box = document.createElement("i");
  if (colour) box.style.background = colour;
  item.append(box, Object.assign(document.createElement("span"), { textContent: text }));
  return item;
}
