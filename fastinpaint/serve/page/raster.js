// Masks as arrays of bytes, 255 in the hole: shapes without soft edges, and exact undo.

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.data = new Uint8Array(width * height);
  }

  // A rectangle {left, top, right, bottom} (ends excluded), cut to the mask.
  clip({ left, top, right, bottom }) {
    const bound = (value, most) => Math.min(Math.max(Math.floor(value), 0), most);
    const box = { left: bound(left, this.width), top: bound(top, this.height) };
    box.right = Math.max(bound(right, this.width), box.left);
    box.bottom = Math.max(bound(bottom, this.height), box.top);
    return box;
  }

  fillBox(box, value) {
    const { left, top, right, bottom } = this.clip(box);
    for (let y = top; y < bottom; y++) this.data.fill(value, y * this.width + left, y * this.width + right);
    return { left, top, right, bottom };
  }

  // Every pixel whose centre is within `radius` of the line from (x0, y0) to (x1, y1), which are pixel centres.
  fillStroke(x0, y0, x1, y1, radius, value) {
    const box = this.clip({
      left: Math.min(x0, x1) - radius, top: Math.min(y0, y1) - radius,
      right: Math.max(x0, x1) + radius + 1, bottom: Math.max(y0, y1) + radius + 1,
    });
    const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy, limit = radius * radius;
    for (let y = box.top; y < box.bottom; y++) {
      for (let x = box.left; x < box.right; x++) {
        const along = length ? Math.min(Math.max(((x - x0) * dx + (y - y0) * dy) / length, 0), 1) : 0;
        const ex = x - x0 - along * dx, ey = y - y0 - along * dy;
        if (ex * ex + ey * ey <= limit) this.data[y * this.width + x] = value;
      }
    }
    return box;
  }

  // Every pixel whose centre is inside the closed polygon of [x, y] points, by the even-odd rule.
  fillPolygon(points, value) {
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const [left, right] = range(xs), [top, bottom] = range(ys);
    const box = this.clip({ left, top, right: right + 1, bottom: bottom + 1 });
    for (let y = box.top; y < box.bottom; y++) {
      const crossings = [];
      for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
        const [xi, yi] = points[i], [xj, yj] = points[j];
        if (yi > y !== yj > y) crossings.push(xi + ((y - yi) / (yj - yi)) * (xj - xi));
      }
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const from = Math.max(Math.ceil(crossings[i]), box.left), to = Math.min(Math.ceil(crossings[i + 1]), box.right);
        if (from < to) this.data.fill(value, y * this.width + from, y * this.width + to);
      }
    }
    return box;
  }

  // Add every pixel within `radius` of the hole: columns first, then the distance along rows.
  grow(radius) {
    const { width, height, data } = this, hole = this.bounds();
    if (!hole || radius < 1) return null;
    const box = this.clip({
      left: hole.left - radius, top: hole.top - radius, right: hole.right + radius, bottom: hole.bottom + radius,
    });
    const w = box.right - box.left, h = box.bottom - box.top, far = radius + 1;
    const vertical = new Uint16Array(w * h);
    for (let x = 0; x < w; x++) {
      let gap = far;
      for (let y = 0; y < h; y++) {
        gap = data[(box.top + y) * width + box.left + x] ? 0 : Math.min(gap + 1, far);
        vertical[y * w + x] = gap;
      }
      gap = far;
      for (let y = h - 1; y >= 0; y--) {
        gap = data[(box.top + y) * width + box.left + x] ? 0 : Math.min(gap + 1, far);
        if (gap < vertical[y * w + x]) vertical[y * w + x] = gap;
      }
    }
    const reach = Array.from({ length: far }, (_, v) => Math.floor(Math.sqrt(radius * radius - v * v)));
    for (let y = 0; y < h; y++) {
      const row = (box.top + y) * width + box.left;
      for (let x = 0; x < w; x++) {
        const v = vertical[y * w + x];
        if (v <= radius) data.fill(255, row + Math.max(x - reach[v], 0), row + Math.min(x + reach[v] + 1, w));
      }
    }
    return box;
  }

  // The smallest box that holds the hole; null if there is none.
  bounds() {
    const { width, height, data } = this;
    let left = width, top = -1, right = 0, bottom = 0;
    for (let y = 0; y < height; y++) {
      const row = data.subarray(y * width, (y + 1) * width), first = row.indexOf(255);
      if (first < 0) continue;
      if (top < 0) top = y;
      bottom = y + 1;
      left = Math.min(left, first);
      right = Math.max(right, row.lastIndexOf(255) + 1);
    }
    return top < 0 ? null : { left, top, right, bottom };
  }

  copy({ left, top, right, bottom }) {
    const out = new Uint8Array((right - left) * (bottom - top));
    for (let y = top; y < bottom; y++) {
      out.set(this.data.subarray(y * this.width + left, y * this.width + right), (y - top) * (right - left));
    }
    return out;
  }

  paste({ left, top, right, bottom }, bytes) {
    const w = right - left;
    for (let y = top; y < bottom; y++) {
      this.data.set(bytes.subarray((y - top) * w, (y - top + 1) * w), y * this.width + left);
    }
  }

  clone() {
    const other = new Mask(this.width, this.height);
    other.data.set(this.data);
    return other;
  }
}

// The smallest box that holds both; either may be null.
export function union(a, b) {
  if (!a || !b) return a || b;
  return {
    left: Math.min(a.left, b.left), top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
  };
}
