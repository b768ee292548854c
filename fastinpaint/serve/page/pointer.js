// Mouse, pen, fingers and arrow keys on the canvas: one draws, two zoom and move.

import { TOOLS } from "./tools.js";

export class Pointer {
  // app: {photo, tool, size, busy, begin(), finish(tool, box)}
  constructor(app, view) {
    Object.assign(this, { app, view, fingers: new Map(), tool: null, panning: false });
    const { canvas } = view, listen = (type, handler) => canvas.addEventListener(type, handler.bind(this));
    listen("pointerdown", this.down);
    listen("pointermove", this.move);
    listen("pointerup", this.up);
    listen("pointercancel", this.drop);
    listen("pointerleave", () => this.hover(null));
    listen("wheel", this.wheel);
    listen("keydown", this.key);
    listen("blur", () => this.finish());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  place(event) {
    const box = this.view.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  down(event) {
    if (!this.app.photo) return;
    this.view.canvas.focus();
    event.preventDefault();
    this.view.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, this.place(event));
    if (this.fingers.size === 2) this.abandon();
    if (this.fingers.size > 1) return;
    this.panning = this.app.tool === "hand" || event.button === 1;
    if (!this.panning && event.button === 0) this.start(this.view.toPicture(...this.place(event)));
  }

  move(event) {
    const old = this.fingers.get(event.pointerId), place = this.place(event);
    if (!old) return this.hover(this.view.toPicture(...place));
    if (this.fingers.size >= 2) this.pinch(event.pointerId, place);
    else if (this.panning) this.view.pan(place[0] - old[0], place[1] - old[1]);
    else {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.draw(this.view.toPicture(...this.place(each)));
      this.hover(this.view.toPicture(...place));
    }
    this.fingers.set(event.pointerId, place);
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    if (!this.panning) this.finish();
    this.panning = this.fingers.size > 0; // the finger that stays does not draw
  }

  drop(event) {
    this.fingers.delete(event.pointerId);
    this.abandon();
  }

  pinch(id, place) {
    const [other] = [...this.fingers].filter(([key]) => key !== id).map(([, value]) => value), old = this.fingers.get(id);
    const distance = (a, b) => Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    const middle = [(place[0] + other[0]) / 2, (place[1] + other[1]) / 2];
    this.view.pan((place[0] - old[0]) / 2, (place[1] - old[1]) / 2);
    this.view.zoom(distance(place, other) / distance(old, other), ...middle);
  }

  wheel(event) {
    if (!this.app.photo) return;
    event.preventDefault();
    const pixels = event.deltaMode ? 16 * event.deltaY : event.deltaY;
    if (event.shiftKey) this.view.pan(-pixels - event.deltaX, 0);
    else this.view.zoom(Math.exp(-Math.min(Math.max(pixels, -240), 240) / 400), ...this.place(event));
  }

  hover(place) {
    const brush = ["brush", "eraser"].includes(this.app.tool);
    this.view.cursor = place && this.app.photo ? { x: place[0], y: place[1], radius: brush ? this.radius : 0 } : null;
    this.view.draw();
  }

  // A brush of size n paints discs of n pixels across.
  get radius() {
    return this.app.size / 2;
  }

  start([x, y]) {
    if (this.app.busy || this.app.tool === "hand") return;
    this.app.begin();
    this.tool = TOOLS[this.app.tool];
    this.show(this.tool.begin(this.app.photo, x, y, this.radius));
  }

  draw([x, y]) {
    if (this.tool) this.show(this.tool.move(x, y));
  }

  show(box) {
    if (box) this.view.refreshHole(box);
    this.view.sketch = this.tool.sketch();
    this.view.draw();
  }

  finish() {
    const { tool } = this;
    if (!tool) return;
    this.tool = this.view.sketch = null;
    this.app.finish(tool.name, tool.end());
  }

  // Forget the shape in progress.
  abandon() {
    if (!this.tool) return;
    this.tool = this.view.sketch = null;
    this.app.photo.revert();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.app.photo || event.ctrlKey || event.metaKey || event.altKey || (!step && event.key !== " ")) return;
    event.preventDefault();
    const { width, height } = this.app.photo.mask, far = event.shiftKey ? 10 : 1, { cursor } = this.view;
    if (this.app.tool === "hand") return step && this.view.pan(-20 * far * step[0], -20 * far * step[1]);
    let [x, y] = cursor ? [Math.round(cursor.x), Math.round(cursor.y)] : [width >> 1, height >> 1];
    if (step) [x, y] = [x + far * step[0], y + far * step[1]];
    [x, y] = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
    if (step) this.draw([x, y]);
    else if (this.tool) this.finish();
    else this.start([x, y]);
    this.view.reveal(x, y);
    this.hover([x, y]);
  }
}
