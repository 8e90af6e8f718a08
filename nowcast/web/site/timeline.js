// One timeline from the manifest: observed frames, then the forecast of one model and run.

import { hhmm } from "./format.js";

const ms = (iso) => Date.parse(iso);

/**
 * Frames in order of valid time.
 *
 * The newest run continues the newest radar frame; an older run, chosen on purpose, begins at its own
 * reference time and carries what has been observed since in `truth`.
 *
 * @returns {{frames, now, run, entry, expired}} now: index of the frame that the page opens on.
 */
export function buildTimeline(manifest, model, pinned) {
  const observed = manifest.observed.map((frame) => ({ kind: "observed", time: ms(frame.time), file: frame.file }));
  const newest = observed.at(-1).time;
  const run = chooseRun(manifest.runs, model, pinned);
  const entry = run?.models.find((candidate) => candidate.model === model);
  const start = pinned && run ? ms(run.reference_time) : newest;
  const past = observed.filter((frame) => frame.time <= start);
  const future = forecastFrames(run, entry, observed).filter((frame) => frame.time > start);
  const frames = [...past, ...future];
  return { frames, now: Math.max(0, past.length - 1), newest, run, entry, pinned: Boolean(pinned && run),
           expired: Boolean(entry?.folder) && future.length === 0 };
}

function chooseRun(runs, model, pinned) {
  const made = runs.filter((run) => run.models.some((entry) => entry.model === model));
  return made.find((run) => run.reference_time === pinned) ?? made[0];
}

function forecastFrames(run, entry, observed) {
  if (!entry?.folder) return [];
  const truth = new Map(observed.map((frame) => [frame.time, frame.file]));
  return entry.leads.map((lead, index) => {
    const time = ms(run.reference_time) + lead * 60000;
    return { kind: "forecast", time, lead, file: `${entry.folder}/${entry.files[index]}`, truth: truth.get(time) };
  });
}

/** Index of the frame whose valid time is nearest. */
export function nearest(frames, time) {
  let best = 0;
  frames.forEach((frame, index) => {
    if (Math.abs(frame.time - time) < Math.abs(frames[best].time - time)) best = index;
  });
  return best;
}

/** What is to be said about the forecast on screen: {state, text}, or null if all is well. */
export function stateOf(timeline, model) {
  const { run, entry, expired } = timeline;
  if (!entry) return { state: "withheld", text: "No forecast has been made yet: observations only." };
  const reason = entry.reason.replace(/\.$/, "") || "no reason was recorded";
  const at = hhmm(ms(run.reference_time));
  if (entry.state === "withheld") {
    return { state: "withheld", text: `Forecast of ${at} UTC withheld: ${reason}. The timeline stops at the radar.` };
  }
  if (expired) return { state: "withheld", text: `No current forecast: the newest run, ${at} UTC, has expired.` };
  if (entry.state === "fallback") {
    return { state: "fallback", text: `Fallback: ${entry.producer} made this forecast, not ${model}: ${reason}.` };
  }
  return noteOf(entry);
}

/** What a forecaster should know of a forecast that is in order: bridged input, a new version, input corrected since. */
export function noteOf({ bridged = [], revised = "", corrected = [] }) {
  const hours = (times) => times.map((time) => hhmm(ms(time))).join(", ");
  const notes = [];
  if (corrected.length) notes.push(`Input corrected since: the frame of ${hours(corrected)} UTC is another one now.`);
  if (revised) notes.push(`Revised: ${revised}.`);
  if (bridged.length) notes.push(`Bridged: the frame of ${hours(bridged)} UTC is missing, its neighbours stand in for it.`);
  return notes.length ? { state: "note", text: notes.join(" ") } : null;
}
