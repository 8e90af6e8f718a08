// The map: one picture of grey levels, coloured here, under boundaries; zoom, pan, and reading values.

const TAP = 6; // px: a press that moves less is a click
const ZOOM = 1.5;
const LINES = { coast: 1.3, coastline: 1.3, border: 1, lake: 0.8, graticule: 0.6 };

export class MapView {
  #canvas; #context; #base; #covered; #paths = []; #picture; #tint; #surface; #colours; #pointers = new Map(); #moved = 0; #queued;
  view = null; // {scale, x, y}: css px per picture px, picture px at the centre
  point = null; // picture px [x, y] that is kept

  /** @param on {hover(pixel|null), pick(pixel), moved()}: called as the user acts. */
  constructor(canvas, on) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.on = on;
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.#listen();
  }

  setBase(base) {
    this.#base = base;
    this.#covered = null;
    this.#paths = Object.entries(base.lines).map(([kind, lines]) => [kind, toPath(lines)]);
    this.draw();
  }

  /** Shows a picture of levels. The first one decides what "the whole map" is: the part that radar covers. */
  setPicture(picture) {
    this.#picture = picture;
    this.#tint = null;
    this.#covered ??= coverage(picture);
    this.draw();
  }

  /** 256 CSS colours by level; null is transparent. */
  setColours(words) {
    this.#colours = words;
    this.#tint = null;
    this.draw();
  }

  /** Grey level at a picture pixel; undefined outside. */
  level([x, y]) {
    if (!this.#picture) return undefined;
    const { width, height, levels } = this.#picture;
    const column = Math.floor(x), row = Math.floor(y);
    return column >= 0 && row >= 0 && column < width && row < height ? levels[row * width + column] : undefined;
  }

  /** [longitude, latitude] of a picture pixel, or null outside the grid or the projection. */
  lonlat([x, y]) {
    const { width, height, lattice } = this.#base;
    const last = lattice.nodes - 1;
    const u = (x / width) * last, v = (y / height) * last;
    if (u < 0 || v < 0 || u > last || v > last) return null;
    const i = Math.min(Math.floor(u), last - 1), j = Math.min(Math.floor(v), last - 1);
    const weight = [(1 - u + i) * (1 - v + j), (u - i) * (1 - v + j), (1 - u + i) * (v - j), (u - i) * (v - j)];
    const node = [j * lattice.nodes + i, j * lattice.nodes + i + 1, (j + 1) * lattice.nodes + i, (j + 1) * lattice.nodes + i + 1];
    const mix = (values) => node.some((at) => values[at] === null) ? NaN : node.reduce((sum, at, k) => sum + values[at] * weight[k], 0);
    const lon = mix(lattice.lon), lat = mix(lattice.lat);
    return Number.isFinite(lon + lat) ? [((lon + 540) % 360) - 180, lat] : null;
  }

  /** Kilometres per css px at the centre of the view. */
  kilometresPerPixel() {
    const { x, y, scale } = this.#current();
    const here = this.lonlat([x, y]), there = this.lonlat([x + 1, y]);
    return here && there ? distance(here, there) / scale : null;
  }

  zoom(factor, at = [this.#canvas.clientWidth / 2, this.#canvas.clientHeight / 2]) {
    const [x, y] = this.toPicture(at);
    const { scale } = this.#current();
    const next = Math.min(Math.max(scale * factor, this.#fit().scale / 2), 40);
    const aspect = this.#base.aspect;
    this.#setView({ scale: next, x: x - (at[0] - this.#canvas.clientWidth / 2) / next,
                    y: y - (at[1] - this.#canvas.clientHeight / 2) / (next * aspect) });
  }

  showAll() {
    this.view = null;
    this.draw();
    this.on.moved();
  }

  toPicture([left, top]) {
    const { scale, x, y } = this.#current();
    return [x + (left - this.#canvas.clientWidth / 2) / scale,
            y + (top - this.#canvas.clientHeight / 2) / (scale * this.#base.aspect)];
  }

  draw() {
    if (this.#queued) return;
    this.#queued = requestAnimationFrame(() => {
      this.#queued = null;
      if (this.#base) this.#paint();
    });
  }

  #fit() {
    const { left, top, right, bottom } = this.#covered ?? { left: 0, top: 0, right: this.#base.width, bottom: this.#base.height };
    const { clientWidth, clientHeight } = this.#canvas;
    const scale = Math.min(clientWidth / (right - left), clientHeight / ((bottom - top) * this.#base.aspect)) * 0.96;
    return { scale, x: (left + right) / 2, y: (top + bottom) / 2 };
  }

  #current() {
    return this.view ?? this.#fit();
  }

  #setView(view) {
    view.x = Math.min(Math.max(view.x, 0), this.#base.width);
    view.y = Math.min(Math.max(view.y, 0), this.#base.height);
    this.view = view;
    this.draw();
    this.on.moved();
  }

  #paint() {
    const canvas = this.#canvas, context = this.#context, ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const { scale, x, y } = this.#current();
    const sx = scale * ratio, sy = sx * this.#base.aspect;
    const left = width / 2 - x * sx, top = height / 2 - y * sy;
    canvas.dataset.view = [scale, left / ratio, top / ratio, this.#base.aspect].join(",");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = hatch(context, ratio, colour("--nodata"), colour("--hatch"));
    context.fillRect(0, 0, width, height);
    if (this.#picture && this.#colours) {
      context.imageSmoothingEnabled = sx < 1; // enlarged pixels stay pixels: they are what was measured
      context.imageSmoothingQuality = "high";
      context.drawImage(this.#tinted(colour("--covered")), left, top, this.#base.width * sx, this.#base.height * sy);
    }
    context.setTransform(sx, 0, 0, sy, left, top);
    this.#paintLines(sx / ratio, colour);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.point) this.#paintPoint((left + this.point[0] * sx) / ratio, (top + this.point[1] * sy) / ratio, colour);
  }

  #paintLines(scale, colour) {
    const context = this.#context;
    context.lineJoin = "round";
    for (const [kind, path] of this.#paths) {
      const thick = (LINES[kind] ?? 0.8) / scale;
      if (kind !== "graticule") {
        context.strokeStyle = colour("--halo");
        context.lineWidth = thick + 1.8 / scale;
        context.stroke(path);
      }
      context.strokeStyle = colour(kind === "graticule" ? "--graticule" : "--boundary");
      context.lineWidth = thick;
      context.stroke(path);
    }
  }

  #paintPoint(x, y, colour) {
    const context = this.#context;
    for (const [stroke, thick] of [[colour("--halo"), 4], [colour("--ink"), 1.6]]) {
      context.strokeStyle = stroke;
      context.lineWidth = thick;
      context.beginPath();
      context.arc(x, y, 6, 0, 2 * Math.PI);
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 6 * dx, y + 6 * dy);
        context.lineTo(x + 12 * dx, y + 12 * dy);
      }
      context.stroke();
    }
  }

  /** The picture in colour on a canvas of its own; what is covered is opaque, what is not transparent. */
  #tinted(covered) {
    if (this.#tint?.covered === covered) return this.#surface;
    const { width, height, levels } = this.#picture;
    this.#surface ??= document.createElement("canvas");
    if (this.#surface.width !== width || this.#surface.height !== height) Object.assign(this.#surface, { width, height });
    const table = packed(this.#colours.map((word, level) => (level ? word ?? covered : null)));
    const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
    for (let index = 0; index < levels.length; index++) pixels[index] = table[levels[index]];
    this.#surface.getContext("2d").putImageData(image, 0, 0);
    this.#tint = { covered };
    return this.#surface;
  }

  #listen() {
    const canvas = this.#canvas;
    const place = (event) => [event.offsetX, event.offsetY];
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, place(event));
      if (this.#pointers.size === 1) this.#moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.#base) return;
      if (event.pointerType === "mouse" && !this.#pointers.size) this.on.hover(this.toPicture(place(event)));
      if (this.#pointers.has(event.pointerId)) this.#drag(event.pointerId, place(event));
    });
    const end = (event) => {
      const alone = this.#pointers.size === 1;
      if (this.#pointers.delete(event.pointerId) && alone && this.#moved < TAP && event.type === "pointerup" && this.#base) {
        this.on.pick(this.toPicture(place(event)));
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => this.on.hover(null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.#base) this.zoom(2 ** (-event.deltaY / (event.deltaMode ? 6 : 240)), place(event));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => this.#base && this.zoom(ZOOM, place(event)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** One pointer moves the map, two also zoom it. */
  #drag(id, to) {
    const from = this.#pointers.get(id);
    this.#moved += Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (this.#moved < TAP) return;
    const others = [...this.#pointers].filter(([key]) => key !== id).map(([, at]) => at);
    this.#pointers.set(id, to);
    const { scale, x, y } = this.#current();
    const share = 1 / (others.length + 1);
    this.#setView({ scale, x: x - ((to[0] - from[0]) / scale) * share,
                    y: y - ((to[1] - from[1]) / (scale * this.#base.aspect)) * share });
    if (!others.length) return;
    const [other] = others, span = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]);
    this.zoom(span(to) / Math.max(span(from), 1), [(to[0] + other[0]) / 2, (to[1] + other[1]) / 2]);
  }
}

function toPath(lines) {
  const path = new Path2D();
  for (const line of lines) {
    for (let at = 0; at < line.length; at += 2) {
      if (at) path.lineTo(line[at], line[at + 1]);
      else path.moveTo(line[0], line[1]);
    }
  }
  return path;
}

/** Bounding box of the pixels with data, or null if there are none. */
function coverage({ width, height, levels }) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let index = 0; index < levels.length; index++) {
    if (!levels[index]) continue;
    const column = index % width, row = (index - column) / width;
    if (column < left) left = column;
    if (column >= right) right = column + 1;
    if (row < top) top = row;
    if (row >= bottom) bottom = row + 1;
  }
  return right > left ? { left, top, right, bottom } : null;
}

/** CSS colours -> pixels in the byte order of this machine; null is transparent. */
function packed(words) {
  const context = new OffscreenCanvas(words.length, 1).getContext("2d", { willReadFrequently: true });
  words.forEach((word, level) => {
    if (!word) return;
    context.fillStyle = word;
    context.fillRect(level, 0, 1, 1);
  });
  return new Uint32Array(context.getImageData(0, 0, words.length, 1).data.buffer);
}

/** Diagonal lines of constant width on screen: "no radar here" must never look like "dry". */
function hatch(context, ratio, ground, line) {
  const side = Math.round(8 * ratio);
  const tile = new OffscreenCanvas(side, side), pen = tile.getContext("2d");
  pen.fillStyle = ground;
  pen.fillRect(0, 0, side, side);
  pen.strokeStyle = line;
  pen.lineWidth = ratio;
  pen.beginPath();
  for (const shift of [-side, 0, side]) {
    pen.moveTo(shift - 1, side + 1);
    pen.lineTo(shift + side + 1, -1);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

/** Great-circle distance in kilometres. */
function distance([lon1, lat1], [lon2, lat2]) {
  const radians = Math.PI / 180;
  const a = Math.sin(((lat2 - lat1) * radians) / 2) ** 2
    + Math.cos(lat1 * radians) * Math.cos(lat2 * radians) * Math.sin(((lon2 - lon1) * radians) / 2) ** 2;
  return 2 * 6371 * Math.asin(Math.sqrt(a));
}
