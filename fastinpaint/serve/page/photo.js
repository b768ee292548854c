// The open photo: its file, what became of it, its mask, and every step between.

import * as api from "./api.js";
import { encodeGrey } from "./png.js";
import { History } from "./history.js";
import { Mask, union } from "./raster.js";

const FORMATS = { "image/jpeg": "jpeg", "image/png": "png", "image/webp": "webp", "image/tiff": "tiff", "image/bmp": "bmp" };
const SUFFIXES = { jpeg: ".jpg", png: ".png", webp: ".webp", tiff: ".tif", bmp: ".bmp" };

// As viewers show it: EXIF orientation applied. TIFF and others that browsers do not show come by way of the server.
export async function decode(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return createImageBitmap(await api.convert(file, "png"));
  }
}

export class Photo {
  static async open(file, onChange) {
    return new Photo(file, await decode(file), onChange);
  }

  constructor(file, picture, onChange) {
    this.stem = (file.name || "photo").replace(/\.[^.]*$/, "");
    this.format = FORMATS[file.type] || "png";
    this.now = this.first = { file, picture }; // `file` keeps metadata and depth, `picture` is what is shown
    this.saved = null; // the state that was saved last
    this.last = null; // the last fill: {file, mask}
    this.mask = new Mask(picture.width, picture.height);
    this.committed = this.mask.clone(); // as of the last step
    this.filled = this.mask.clone(); // all that has been filled
    this.onChange = onChange;
    this.history = new History(() => onChange(null));
  }

  // Make what has changed in `box` of the mask a step.
  commit(name, box) {
    if (!box || box.left >= box.right || box.top >= box.bottom) return false;
    const before = this.committed.copy(box), after = this.mask.copy(box);
    if (before.every((value, i) => value === after[i])) return false;
    const put = (bytes) => {
      this.mask.paste(box, bytes);
      this.committed.paste(box, bytes);
      this.onChange(box);
    };
    put(after);
    this.history.add({ name, bytes: 2 * before.length, undo: () => put(before), redo: () => put(after) });
    return true;
  }

  // Forget what has changed in the mask since the last step.
  revert() {
    this.mask.data.set(this.committed.data);
    this.onChange(this.whole());
  }

  whole() {
    return { left: 0, top: 0, right: this.mask.width, bottom: this.mask.height };
  }

  clear() {
    const box = this.mask.bounds();
    if (box) this.mask.fillBox(box, 0);
    return this.commit("clear", box);
  }

  grow(radius) {
    return this.commit("grow", this.mask.grow(radius));
  }

  async loadMask(file) {
    const picture = await decode(file), { width, height } = this.mask;
    if (picture.width !== width || picture.height !== height) {
      throw new Error(`The mask must have the photo's size ${width} × ${height}, it has ${picture.width} × ${picture.height}.`);
    }
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, width, height); // transparent counts as black
    context.drawImage(picture, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    const grey = (i) => (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16; // as Pillow's "L"
    for (let i = 0; i < this.mask.data.length; i++) this.mask.data[i] = grey(4 * i) > 127 ? 255 : 0;
    return this.commit("load mask", this.whole());
  }

  async fill(signal, onProgress) {
    const box = this.mask.bounds(), { width, height } = this.mask;
    const before = this.now, hole = this.mask.copy(box), lastBefore = this.last;
    const mask = await encodeGrey(width, height, this.mask.data);
    const file = await api.fill(before.file, mask, signal, onProgress);
    const after = { file, picture: await createImageBitmap(file) }, last = { file: before.file, mask };
    signal.throwIfAborted();
    const filledBefore = this.filled.copy(box), filledAfter = filledBefore.map((value, i) => value | hole[i]);
    const put = (state, bytes, filled, lastFill) => {
      this.now = state;
      this.last = lastFill;
      this.mask.paste(box, bytes);
      this.committed.paste(box, bytes);
      this.filled.paste(box, filled);
      this.onChange(box);
    };
    const redo = () => put(after, new Uint8Array(hole.length), filledAfter, last);
    redo();
    const bytes = 3 * hole.length + file.size + 4 * width * height; // with the decoded picture
    this.history.add({ name: "fill", bytes, undo: () => put(before, hole, filledBefore, lastBefore), redo });
  }

  // Edges or gradients of the hole that is drawn, or of the last fill.
  async structure(kind, signal) {
    const drawn = this.mask.bounds();
    const { file, mask } = drawn ? { file: this.now.file, mask: await this.maskFile() } : this.last;
    return createImageBitmap(await api.structure(file, mask, kind, signal));
  }

  get canShowStructure() {
    return Boolean(this.last || this.mask.bounds());
  }

  // The hole that is drawn, or if there is none all that has been filled.
  shownHole() {
    return this.mask.bounds() ? this.mask : this.filled;
  }

  maskFile() {
    return encodeGrey(this.mask.width, this.mask.height, this.shownHole().data);
  }

  async imageFile() {
    if (this.now === this.first) return this.first.file;
    return api.convert(this.now.file, this.format);
  }

  // The photo as it was opened, white in the hole.
  async maskedFile() {
    const { width, height } = this.mask, canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
    context.drawImage(this.first.picture, 0, 0);
    const hole = this.shownHole(), box = hole.bounds();
    if (box) {
      const part = context.getImageData(box.left, box.top, box.right - box.left, box.bottom - box.top);
      const words = new Uint32Array(part.data.buffer), inside = hole.copy(box);
      for (let i = 0; i < inside.length; i++) if (inside[i]) words[i] = 0xffffffff;
      context.putImageData(part, box.left, box.top);
    }
    return canvas.convertToBlob({ type: "image/png" });
  }

  name(what) {
    return `${this.stem}-${what}${what === "filled" ? SUFFIXES[this.format] : ".png"}`;
  }
}

export { union };
