// The address of the page keeps what is on screen, so that a link shows the same to somebody else.

const numbers = (text, count) => {
  const values = text.split(",").map(Number);
  return values.length === count && values.every(Number.isFinite) ? values : undefined;
};

/** #model=…&time=… -> the part of the page's state that it names. */
export function readAddress(hash) {
  const words = new URLSearchParams(hash.slice(1));
  const state = {};
  if (words.has("model")) state.model = words.get("model");
  if (words.has("run")) state.run = words.get("run");
  if (words.has("time")) state.time = Number.isFinite(Date.parse(words.get("time"))) ? Date.parse(words.get("time")) : null;
  if (words.has("view")) {
    const [scale, x, y] = numbers(words.get("view"), 3) ?? [];
    if (scale > 0) state.view = { scale, x, y };
  }
  if (words.has("point")) state.point = numbers(words.get("point"), 2);
  for (const key of ["safe", "local", "compare"]) state[key] = words.get(key) === "1";
  return state;
}

/** Replaces the hash; a moment later, because browsers limit how often it may change. */
export function writeAddress({ model, run, time, safe, local, compare, view, point }) {
  const short = (value) => Number(value.toFixed(2));
  const words = {
    model, run, time: time === null ? null : new Date(time).toISOString().replace(".000", ""),
    safe: safe ? 1 : null, local: local ? 1 : null, compare: compare ? 1 : null,
    view: view && [view.scale, view.x, view.y].map(short).join(","), point: point && point.map(short).join(","),
  };
  const hash = Object.entries(words).filter(([, value]) => value).map(([key, value]) => `${key}=${value}`).join("&");
  clearTimeout(writeAddress.timer);
  writeAddress.timer = setTimeout(() => history.replaceState(null, "", `#${hash}`), 300);
}
