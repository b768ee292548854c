// What is on the screen: the picture under zoom and pan, the hole, the comparison, the shape being drawn.

const HOLE = [255, 64, 96, 150]; // red, green, blue, alpha

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.scale = 1; // CSS pixels per pixel of the picture
    this.x = this.y = 0; // of the picture's corner, in CSS pixels
    this.scene = null; // {picture, before, mask, overlay}
    this.split = null; // share of the width that shows `before`
    this.sketch = null; // draws the shape in progress in the picture's coordinates
    this.cursor = null; // {x, y, radius} in the picture's coordinates
    this.fitted = true;
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  show(scene, refit) {
    this.scene = scene;
    this.hole = new OffscreenCanvas(scene.mask.width, scene.mask.height);
    this.holeContext = this.hole.getContext("2d");
    this.refreshHole({ left: 0, top: 0, right: scene.mask.width, bottom: scene.mask.height });
    if (refit) this.fit();
    this.draw();
  }

  // Copy a box of the mask into what is drawn.
  refreshHole({ left, top, right, bottom }) {
    const { mask } = this.scene, width = right - left;
    for (let y = top; y < bottom && width > 0; y += 256) { // in strips, so that a large picture takes little memory
      const rows = Math.min(256, bottom - y), tint = new ImageData(width, rows);
      const words = new Uint32Array(tint.data.buffer), colour = new Uint32Array(Uint8Array.from(HOLE).buffer)[0];
      for (let j = 0, i = 0; j < rows; j++) {
        const start = (y + j) * mask.width + left;
        for (let k = 0; k < width; k++, i++) if (mask.data[start + k]) words[i] = colour;
      }
      this.holeContext.putImageData(tint, left, y);
    }
    this.draw();
  }

  resize() {
    const ratio = devicePixelRatio || 1, { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(Math.round(clientWidth * ratio), 1);
    this.canvas.height = Math.max(Math.round(clientHeight * ratio), 1);
    if (this.fitted) this.fit();
    this.draw();
  }

  fit() {
    if (!this.scene) return;
    const { clientWidth, clientHeight } = this.canvas, { width, height } = this.scene.mask;
    this.scale = Math.min((clientWidth - 24) / width, (clientHeight - 24) / height, 4);
    if (!(this.scale > 0)) this.scale = 1;
    this.x = (clientWidth - width * this.scale) / 2;
    this.y = (clientHeight - height * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  // Zoom about a point in CSS pixels of the canvas.
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.02), 40);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.draw();
  }

  // Pan so that a pixel of the picture is on the canvas.
  reveal(x, y) {
    const { clientWidth, clientHeight } = this.canvas, edge = 8;
    const shift = (at, size) => (at < edge ? edge - at : Math.min(size - edge - at, 0));
    const dx = shift(this.x + (x + 0.5) * this.scale, clientWidth);
    const dy = shift(this.y + (y + 0.5) * this.scale, clientHeight);
    if (dx || dy) this.pan(dx, dy);
  }

  // CSS pixels of the canvas -> pixel centres of the picture.
  toPicture(x, y) {
    return [(x - this.x) / this.scale - 0.5, (y - this.y) / this.scale - 0.5];
  }

  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const { context, canvas, scene } = this, ratio = devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!scene) return;
    const { width, height } = scene.mask;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.x, ratio * this.y);
    context.imageSmoothingEnabled = this.scale < 3;
    context.imageSmoothingQuality = "high";
    if (this.split === null) this.paintPart([scene.picture, scene.overlay, this.hole], 0, 1);
    else {
      this.paintPart([scene.before], 0, this.split);
      this.paintPart([scene.picture, scene.overlay], this.split, 1);
      context.fillStyle = "#fff";
      if (this.split < 1) context.fillRect(this.split * width - 1 / this.scale, 0, 2 / this.scale, height);
    }
    context.lineWidth = 1.5 / this.scale;
    for (const colour of ["#000", "#fff"]) {
      context.strokeStyle = colour;
      context.setLineDash(colour === "#fff" ? [6 / this.scale, 6 / this.scale] : []);
      this.paintLines(context);
    }
  }

  // Draw layers between two shares of the width; the outer edges are not clipped.
  paintPart(layers, from, to) {
    const { context } = this, { width, height } = this.scene.mask;
    const left = from > 0 ? from * width : -1, right = to < 1 ? to * width : width + 1;
    if (left >= right) return;
    context.save();
    context.beginPath();
    context.rect(left, -1, right - left, height + 2);
    context.clip();
    for (const layer of layers) if (layer) context.drawImage(layer, 0, 0, width, height);
    context.restore();
  }

  paintLines(context) {
    if (this.sketch) {
      context.beginPath();
      this.sketch(context);
      context.stroke();
    }
    if (this.cursor && this.split === null) {
      context.beginPath();
      context.arc(this.cursor.x + 0.5, this.cursor.y + 0.5, Math.max(this.cursor.radius, 2 / this.scale), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
