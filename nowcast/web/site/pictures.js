// Value pictures: fetched, decoded to grey levels, and kept within a memory budget.

const BUDGET = 160e6; // bytes of decoded levels
const TIMEOUT = 15000;
const LANES = 4;

/** Path -> URL; the + of a lead time would mean a space to some object stores. */
const url = (file) => file.split("/").map(encodeURIComponent).join("/");

export class Pictures {
  #ready = new Map();
  #pending = new Map();
  #queue = 0;

  peek(file) {
    return this.#ready.get(file);
  }

  /** Levels of a picture: {width, height, levels}; rejects if it cannot be fetched, and may be asked again. */
  load(file) {
    const ready = this.#ready.get(file);
    if (ready) return Promise.resolve(this.#touch(file, ready));
    if (!this.#pending.has(file)) {
      const job = fetchLevels(file).then((picture) => this.#touch(file, picture));
      this.#pending.set(file, job);
      job.catch(() => {}).finally(() => this.#pending.delete(file));
    }
    return this.#pending.get(file);
  }

  /** Loads files in this order, a few at a time; a later call replaces an earlier one. */
  async preload(files, loaded) {
    const ticket = ++this.#queue;
    const rest = files.filter((file) => !this.#ready.has(file));
    const lane = async () => {
      while (rest.length && ticket === this.#queue) {
        const file = rest.shift();
        await this.load(file).then(() => loaded(file), () => {});
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  }

  #touch(file, picture) {
    this.#ready.delete(file);
    this.#ready.set(file, picture);
    let bytes = 0;
    for (const kept of this.#ready.values()) bytes += kept.levels.length;
    for (const [oldest, kept] of this.#ready) {
      if (bytes <= BUDGET) break;
      this.#ready.delete(oldest);
      bytes -= kept.levels.length;
    }
    return picture;
  }
}

async function fetchLevels(file) {
  const response = await fetch(url(file), { signal: AbortSignal.timeout(TIMEOUT) });
  if (!response.ok) throw new Error(`${file}: ${response.status}`);
  // The levels are numbers, not colours: no conversion may touch them.
  const bitmap = await createImageBitmap(await response.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const levels = new Uint8Array(width * height);
  for (let index = 0; index < levels.length; index++) levels[index] = rgba[4 * index];
  return { width, height, levels };
}
