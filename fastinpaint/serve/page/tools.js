// Tools turn positions, in pixel centres of the picture, into changes of the mask.

import { union } from "./raster.js";

class Stroke {
  constructor(name, value) {
    this.name = name;
    this.value = value;
  }

  begin(photo, x, y, radius) {
    Object.assign(this, { photo, radius, box: null, x, y });
    return this.move(x, y);
  }

  // Return the box that has changed.
  move(x, y) {
    const changed = this.photo.mask.fillStroke(this.x, this.y, x, y, this.radius, this.value);
    this.box = union(this.box, changed);
    Object.assign(this, { x, y });
    return changed;
  }

  end() {
    return this.box;
  }

  sketch() {
    return null;
  }
}

class Rectangle {
  name = "rectangle";

  begin(photo, x, y) {
    Object.assign(this, { photo, x0: x, y0: y, x, y });
  }

  move(x, y) {
    Object.assign(this, { x, y });
  }

  // Pixels under the two corners and all between.
  corners() {
    const [left, right] = [this.x0, this.x].map(Math.round).sort((a, b) => a - b);
    const [top, bottom] = [this.y0, this.y].map(Math.round).sort((a, b) => a - b);
    return { left, top, right: right + 1, bottom: bottom + 1 };
  }

  end() {
    return this.photo.mask.fillBox(this.corners(), 255);
  }

  sketch() {
    const { left, top, right, bottom } = this.corners();
    return (context) => context.rect(left, top, right - left, bottom - top);
  }
}

class Lasso {
  name = "lasso";

  begin(photo, x, y) {
    this.photo = photo;
    this.points = [[x, y]];
  }

  move(x, y) {
    this.points.push([x, y]);
  }

  end() {
    return this.photo.mask.fillPolygon(this.points, 255);
  }

  sketch() {
    return (context) => this.points.forEach(([x, y]) => context.lineTo(x + 0.5, y + 0.5));
  }
}

export const TOOLS = {
  brush: new Stroke("brush", 255),
  eraser: new Stroke("eraser", 0),
  rectangle: new Rectangle(),
  lasso: new Lasso(),
};
