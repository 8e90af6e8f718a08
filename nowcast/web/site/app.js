// The page: reads latest.json, holds what is on screen, and listens to the user.

import { age, hhmm, lead, lonlat, number, stamp } from "./format.js";
import { MapView } from "./map.js";
import { Pictures } from "./pictures.js";
import { buildTimeline, nearest, stateOf } from "./timeline.js";
import { paintLegend, paintModels, paintRuns } from "./choices.js";
import { Ticks } from "./ticks.js";
import { pointChart } from "./charts.js";
import { SkillPanel } from "./skill.js";
import { readAddress, writeAddress } from "./address.js";

const POLL = 20000;
const RETRY = 5000; // a picture that failed is asked for again
const HOLD = 4; // frames that the loop rests on its last one
const $ = (id) => document.getElementById(id);

const pictures = new Pictures();
const skill = new SkillPanel($("skill"));
const ticks = new Ticks($("ticks"));
const map = new MapView($("map"), { hover: readOut, pick: keepPoint, moved: afterMove });

const state = { model: null, run: null, time: null, safe: false, local: false, compare: false, playing: false,
                ...readAddress(location.hash) };
const override = clockOverride();
let manifest = null, base = null, timeline = null;
let wanted = 0; // index asked for
let shown = null; // frame whose picture is on the map: every label speaks of this one
let skew = 0; // server's clock minus this one's
let cursor = null; // picture pixel under the mouse

// --- data ---------------------------------------------------------------------------------------

async function poll() {
  clearTimeout(poll.timer);
  try {
    const response = await fetch(`latest.json?${Date.now()}`, { cache: "no-store", signal: AbortSignal.timeout(15000) });
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const text = await response.text(); // compared whole: two cycles may end in the same second
    const news = text !== poll.text;
    const date = Date.parse(response.headers.get("date"));
    if (Number.isFinite(date)) skew = date - Date.now();
    if (news) await accept(JSON.parse(text));
    poll.text = text;
    if (manifest.scores && (news || skill.created !== manifest.created)) await skill.load(manifest);
    $("connection").hidden = true;
    poll.since = null;
  } catch (error) {
    poll.since ??= Date.now();
    $("connection").hidden = false;
    $("connection").textContent = `No connection since ${hhmm(poll.since)} UTC`;
    $("connection").title = String(error.message ?? error);
  }
  clearTimeout(poll.timer);
  poll.timer = setTimeout(poll, POLL);
}

async function accept(fresh) {
  if (manifest && fresh.page !== manifest.page) return location.reload(); // a new version of the page itself
  if (fresh.base !== manifest?.base) {
    const response = await fetch(fresh.base);
    if (!response.ok) throw new Error(`${fresh.base}: ${response.status}`);
    base = await response.json();
    map.setBase(base);
  }
  manifest = fresh;
  document.title = $("title").textContent = manifest.title;
  $("attribution").textContent = manifest.attribution;
  $("notes").textContent = (manifest.notes ?? []).map((note) => `${note}.`).join(" ");
  if (!manifest.products.includes(state.model)) state.model = manifest.products[0] ?? null;
  paintColours();
  paintPictureLinks();
  rebuild();
  tick();
}

/** Makes the timeline anew and stays at the same valid time, or at the newest radar frame. */
function rebuild() {
  timeline = buildTimeline(manifest, state.model, state.run);
  if (!timeline.pinned) state.run = null;
  wanted = state.time === null ? timeline.now : nearest(timeline.frames, state.time);
  paintModels($("models"), manifest, timeline, state.model, choose);
  paintRuns($("run"), manifest, state);
  paintTicks();
  paintState();
  show(wanted);
  const ahead = timeline.frames.map((frame, index) => [Math.abs(index - wanted), frame.file]).sort((a, b) => a[0] - b[0]);
  const truths = timeline.frames.map((frame) => frame.truth).filter(Boolean);
  pictures.preload([...ahead.map(([, file]) => file), ...truths], paintLoaded);
}

// --- one frame ----------------------------------------------------------------------------------

function go(index) {
  const { frames, now } = timeline;
  const target = Math.min(Math.max(index, 0), frames.length - 1);
  state.time = target === now && !timeline.pinned ? null : frames[target].time;
  show(target);
}

/** Shows a frame when its picture is here; until then, and if it fails, the previous one stays and says so. */
async function show(index) {
  wanted = index;
  const frame = timeline.frames[index];
  const compared = state.compare && frame.truth;
  const file = compared ? frame.truth : frame.file;
  paintSlider();
  if (!pictures.peek(file)) trouble(shown ? `Loading ${hhmm(frame.time)} UTC …` : "", 400);
  try {
    const picture = await pictures.load(file);
    if (timeline.frames[wanted] !== frame || Boolean(state.compare && frame.truth) !== Boolean(compared)) return;
    shown = { ...frame, kind: compared ? "observed" : frame.kind, model: state.model, entry: timeline.entry };
    trouble("");
    map.setPicture(picture);
    paintShown();
  } catch {
    if (timeline.frames[wanted] !== frame) return;
    const kept = shown ? `still showing ${hhmm(shown.time)} UTC` : "trying again";
    trouble(`The picture of ${hhmm(frame.time)} UTC could not be loaded, ${kept}.`);
    setTimeout(() => timeline.frames[wanted] === frame && show(wanted), RETRY);
  }
}

function trouble(text, delay = 0) {
  clearTimeout(trouble.timer);
  trouble.timer = setTimeout(() => {
    $("trouble").hidden = !text;
    $("trouble").textContent = text;
  }, delay);
}

function paintShown() {
  const forecast = shown.kind === "forecast";
  $("stamp").dataset.kind = shown.kind;
  $("kind").textContent = forecast ? `Forecast ${lead(shown.lead)}` : "Observed";
  $("maker").textContent = forecast ? makerOf(shown) : "";
  const first = stamp(shown.time, state.local), second = stamp(shown.time, !state.local);
  $("valid").innerHTML = "";
  $("valid").append(first.time, Object.assign(document.createElement("small"), { textContent: ` ${first.zone}` }));
  $("valid-other").textContent = `${first.date} · ${second.time} ${second.zone === first.zone ? "local" : second.zone}`;
  $("map").setAttribute("aria-label", `${manifest.quantity.long_name}, ${$("kind").textContent}, valid ${$("valid").textContent}`);
  $("compare").hidden = !timeline.frames[wanted].truth;
  $("compare").setAttribute("aria-pressed", state.compare);
  skill.mark(forecast ? shown.lead : null);
  readOut(cursor);
  paintPoint();
  afterMove();
}

/** Networks with the digest of their checkpoint; what has no weights is named alone. */
function makerOf(frame) {
  const { producer, state: how, checkpoint = "" } = frame.entry;
  const maker = checkpoint.startsWith(producer) ? producer : `${producer} ${checkpoint.slice(0, 8)}`.trim();
  if (how === "fallback") return `${maker} in place of ${frame.model}`;
  return producer === frame.model ? maker : `${frame.model} (${maker})`;
}

// --- time ---------------------------------------------------------------------------------------

/** ?now=2010-08-26T06:00Z sets the clock of the page, for archived data. */
function clockOverride() {
  const text = new URLSearchParams(location.search).get("now");
  const start = Date.parse(text ?? "");
  return Number.isFinite(start) ? () => start + performance.now() : null;
}

function clock() {
  if (override) return override();
  return manifest.replay ? Date.parse(manifest.observed.at(-1).time) : Date.now() + skew;
}

/** Ages grow and turn amber and red by themselves, whether or not anything new arrives. */
function tick() {
  if (!timeline) return;
  const { amber, red } = manifest.age_minutes;
  const judge = (ms) => (ms >= red * 60000 ? "red" : ms >= amber * 60000 ? "amber" : "ok");
  const paint = (id, time, words) => {
    const how = time === null ? "red" : judge(clock() - time);
    $(id).dataset.state = how;
    $(id).querySelector(".text").textContent = time === null ? words : `${hhmm(time)} · ${age(clock() - time)}`;
    return how;
  };
  const radar = paint("age-observed", timeline.newest);
  paint("age-run", timeline.run ? Date.parse(timeline.run.reference_time) : null, "none");
  $("stage").dataset.age = radar;
  $("outage").hidden = radar !== "red";
  $("outage").textContent = `Radar outage: the newest frame is ${age(clock() - timeline.newest)} old. This is not the present weather.`;
  $("replay").hidden = !manifest.replay && !override;
  $("replay").textContent = override ? `Replay · clock ${hhmm(clock())} UTC` : "Replay";
  ticks.mark(clock(), radar);
}

// --- painting -----------------------------------------------------------------------------------

function paintColours() {
  const colours = manifest.colours[state.safe ? "safe" : "default"];
  const classOf = (value) => colours.breaks.findLastIndex((limit) => value >= limit);
  const word = (value) => colours.colours[classOf(value)] ?? null;
  state.words = [null, null, ...manifest.values.table.map(word)];
  $("stage").dataset.safe = state.safe;
  map.setColours(state.words);
  $("colours").setAttribute("aria-pressed", state.safe);
  paintLegend($("legend"), colours, manifest.quantity.unit);
  paintPoint();
}

function paintTicks() {
  ticks.draw(timeline, { ready: (file) => Boolean(pictures.peek(file)), local: state.local });
  const { frames } = timeline;
  Object.assign($("slider"), { min: frames[0].time, max: Math.max(frames.at(-1).time, frames[0].time + 1) });
}

function paintLoaded(file) {
  ticks.loaded(file);
  if (map.point) paintPoint();
}

function paintSlider() {
  const frame = timeline.frames[wanted];
  $("slider").value = frame.time;
  const kind = frame.kind === "forecast" ? `forecast ${lead(frame.lead)}` : "observed";
  $("slider").setAttribute("aria-valuetext", `${kind}, valid ${hhmm(frame.time)} UTC`);
}

function paintState() {
  const said = stateOf(timeline, state.model);
  $("banner").hidden = !said;
  $("banner").textContent = said?.text ?? "";
  $("banner").dataset.state = { withheld: "red", fallback: "amber" }[said?.state] ?? "";
}

function paintPictureLinks() {
  const drawn = manifest.maps;
  $("pictures").hidden = !drawn;
  if (!drawn) return;
  const link = ({ file, text }) => Object.assign(document.createElement("a"), { href: file, textContent: text, target: "_blank", rel: "noopener" });
  $("picture-links").replaceChildren(`${drawn.model}, run ${hhmm(Date.parse(drawn.reference_time))} UTC: `, ...drawn.files.map(link));
}

// --- values -------------------------------------------------------------------------------------

function valueText(level) {
  const { unit } = manifest.quantity;
  if (level === undefined) return "outside the map";
  if (level === 0) return "no radar";
  if (level === 1) return `< ${number(manifest.values.below)} ${unit}`;
  return `${number(manifest.values.table[level - 2])} ${unit}`;
}

function readOut(pixel) {
  cursor = pixel;
  const at = pixel ?? map.point;
  if (!manifest || !at || !shown) return;
  const place = map.lonlat(at);
  $("readout").replaceChildren(Object.assign(document.createElement("b"), { textContent: valueText(map.level(at)) }),
                               place ? ` ${lonlat(place)}` : "");
}

function keepPoint(pixel) {
  map.point = pixel && map.level(pixel) !== undefined ? pixel : null;
  map.draw();
  readOut(pixel);
  paintPoint();
  remember();
}

function paintPoint() {
  $("point").hidden = !map.point || !timeline;
  if ($("point").hidden) return;
  const { below, table } = manifest.values, [column, row] = map.point.map(Math.floor);
  const frames = timeline.frames.map((frame) => {
    const picture = pictures.peek(frame.file);
    const level = picture?.levels[row * picture.width + column];
    return { ...frame, missing: level === 0, value: level > 1 ? table[level - 2] : null, colour: state.words[level] ?? "transparent" };
  });
  const { unit } = manifest.quantity, { logarithmic } = manifest.values, high = Math.max(...manifest.colours.default.breaks);
  $("point-chart").replaceChildren(pointChart({ frames, current: wanted, now: timeline.now, low: below, high, unit, logarithmic }));
}

function afterMove() {
  const each = base && map.kilometresPerPixel();
  if (each) {
    const goal = each * 120, unit = 10 ** Math.floor(Math.log10(goal));
    const length = [5, 2, 1].find((step) => step * unit <= goal) * unit;
    $("scale-bar").style.width = `${length / each}px`;
    $("scale-text").textContent = length >= 1 ? `${length} km` : `${length * 1000} m`;
  }
  remember();
}

// --- choices ------------------------------------------------------------------------------------

/** Changes model or run and stays at the same valid time. */
function choose(change) {
  Object.assign(state, change);
  if (state.time === null && !timeline.pinned && change.run) state.time = timeline.frames[timeline.now].time;
  rebuild();
  tick();
  remember();
}

function nextModel() {
  const { products } = manifest;
  choose({ model: products[(products.indexOf(state.model) + 1) % products.length] });
}

function otherRun(step) {
  const options = [...$("run").options].map((option) => option.value);
  const target = options.indexOf(state.run ?? "") + step;
  if (target >= 0 && target < options.length) choose({ run: options[target] || null });
}

function play(on) {
  state.playing = on;
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  $("play").dataset.playing = on;
  clearTimeout(play.timer);
  if (on) advance(0);
}

/** The next frame is due after the pause of this one and when its picture is here, so the loop never skips. */
function advance(rest) {
  play.timer = setTimeout(async () => {
    const last = timeline.frames.length - 1;
    go(wanted === last ? 0 : wanted + 1);
    await pictures.load(timeline.frames[wanted].file).catch(() => {});
    if (state.playing) advance((1000 / Number($("speed").value)) * (wanted === last ? HOLD : 1));
  }, rest);
}

function flip(key) {
  state[key] = !state[key];
  if (key === "safe") paintColours();
  if (key === "compare") show(wanted);
  if (key === "local") {
    paintZone();
    paintTicks();
    tick();
    if (shown) paintShown();
  }
  remember();
}

function paintZone() {
  $("clock").textContent = state.local ? "Local time" : "UTC";
  $("clock").setAttribute("aria-pressed", state.local);
}

function remember() {
  if (manifest) writeAddress({ ...state, view: map.view, point: map.point, model: state.model });
}

const KEYS = {
  " ": () => play(!state.playing), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  Home: () => step(-Infinity), End: () => step(Infinity), n: toNow, m: nextModel, c: () => flip("safe"),
  u: () => flip("local"), o: () => timeline.frames[wanted].truth && flip("compare"),
  "[": () => otherRun(1), "]": () => otherRun(-1), "+": () => map.zoom(1.5), "=": () => map.zoom(1.5),
  "-": () => map.zoom(1 / 1.5), 0: () => map.showAll(), "?": () => $("help").showModal(),
};

function step(by) {
  play(false);
  go(wanted + by);
}

function toNow() {
  play(false);
  if (timeline.pinned) choose({ run: null, time: null });
  go(timeline.now);
}

document.addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (!manifest || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (target.closest("select") || (key === " " && target.closest("button, a"))) return;
  if (!KEYS[key]) return;
  event.preventDefault();
  KEYS[key]();
});

const clicks = {
  play: () => play(!state.playing), back: () => step(-1), forward: () => step(1), now: toNow,
  clock: () => flip("local"), colours: () => flip("safe"), compare: () => flip("compare"),
  "help-open": () => $("help").showModal(), "point-clear": () => keepPoint(null),
  "zoom-in": () => map.zoom(1.5), "zoom-out": () => map.zoom(1 / 1.5), "zoom-all": () => map.showAll(),
};
for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", () => manifest && action());
$("slider").addEventListener("input", () => {
  play(false);
  go(nearest(timeline.frames, Number($("slider").value)));
});
$("run").addEventListener("change", () => choose({ run: $("run").value || null }));
document.addEventListener("visibilitychange", () => document.hidden || poll()); // a phone taken out of the pocket
addEventListener("hashchange", () => location.reload()); // a link pasted into the open page

map.view = state.view ?? null;
map.point = state.point ?? null;
paintZone();
setInterval(tick, 1000);
poll();
