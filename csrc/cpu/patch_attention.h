// Where the operands of patch attention lie in memory; the same for every instruction set but for `lanes`.
//
// Scores and values both go through matrices over pairs of pixels, which are never held whole:
//   score[p, n] = sum over offsets d of gram[p + d - centre, q],   gram[p, q] = <x[p], x[q]>
//   output[p]   = sum over pixels q of weight[p, q] x[q],  weight[p, q] = sum over d of beta[p +- (d -
//   centre), n]
// where q = q(n, d) is the pixel at offset d of key n. There are k*k offsets but only about stride*stride
// times as many pixels as keys, so this takes (k / stride)^2 times fewer operations than convolutions with
// the keys. One image row of pixels q is handled at a time; its columns are sorted by their phase (column +
// left) % stride, so that the pixels at one offset of a row of keys are contiguous.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastinpaint {

constexpr int64_t kMaxPatch = 15;
constexpr int64_t kStripWidth = 64;  // pixels of a row that are handled at a time

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

struct PatchProblem {
  int64_t channels, height, width, kernel, stride;
  float scale;
  bool overlap_add;
};

// Keys along one axis: key i starts at pixel i * stride - before.
struct KeyAxis {
  int64_t count, before;

  KeyAxis(int64_t size, int64_t kernel, int64_t stride) : count(ceil_div(size, stride)) {
    before = std::max<int64_t>((count - 1) * stride + kernel - size, 0) / 2;
  }
};

// The columns i * stride + index - left of an image, for the i that lie inside it and are part of some key.
struct Phase {
  int64_t index;
  int64_t first, count;  // first i, and how many
  int64_t packed;        // place of i = first among the packed columns of a row
  int64_t panel;         // the same, in panels
  int64_t gram;          // place of i = 0 in a row of the gram buffer
};

struct PatchLayout : PatchProblem {
  int64_t lanes, panel_width;
  int64_t centre;
  KeyAxis rows, columns;
  std::vector<Phase> phases;
  int64_t packed_width = 0, panels = 0, gram_width = 0;
  int64_t key_stride;      // floats from one row of keys to the next; those past columns.count are zeros
  int64_t channel_stride;  // floats from one pixel to the next; those past channels are zeros
  int64_t strip_width;
  int64_t slots;  // rows of scores that are alive at a time

  PatchLayout(const PatchProblem& problem, int64_t lanes)
      : PatchProblem(problem),
        lanes(lanes),
        panel_width(2 * lanes),
        centre(kernel / 2),
        rows(height, kernel, stride),
        columns(width, kernel, stride),
        key_stride(round_up(columns.count + reach(), lanes)),
        channel_stride(round_up(channels, panel_width) + panel_width),  // not a power of two: cache sets
        strip_width(ceil_div(width, ceil_div(width, kStripWidth))),
        slots(4 * centre + 1) {
    for (int64_t index = 0; index < std::min(kernel, stride); ++index) add_phase(index);
  }

  // The largest distance, in keys, between two keys that share a pixel.
  int64_t reach() const { return (kernel - 1) / stride; }

  // The row of keys that has image row `row` at its offset dy; -1 if there is none.
  int64_t key_row(int64_t row, int64_t dy) const {
    const int64_t start = row + rows.before - dy;
    return start >= 0 && start % stride == 0 && start / stride < rows.count ? start / stride : -1;
  }

  int64_t column(const Phase& phase, int64_t i) const {
    return (phase.first + i) * stride + phase.index - columns.before;
  }

  // Calls body(index of the key) for all keys that pixel i of a phase of image row `row` is part of.
  template <class Body>
  void for_each_key(int64_t row, const Phase& phase, int64_t i, const Body& body) const {
    for (int64_t dy = 0; dy < kernel; ++dy) {
      const int64_t ky = key_row(row, dy);
      for (int64_t dx = phase.index; dx < kernel; dx += stride) {
        const int64_t kx = phase.first + i - dx / stride;
        if (ky >= 0 && kx >= 0 && kx < columns.count) body(ky * columns.count + kx);
      }
    }
  }

  int64_t ring_width() const { return strip_width + 2 * centre; }
  // One row of keys for each pixel of a strip.
  int64_t key_plane() const { return ring_width() * key_stride; }
  // Zeros before the first key of a slot.
  int64_t margin() const { return round_up(reach(), lanes); }
  int64_t slot_size() const { return margin() + rows.count * key_plane(); }
  int64_t ring_size() const { return slots * slot_size() + margin() + lanes; }
  int64_t gram_size() const { return (strip_width + 4 * centre) * gram_width; }
  int64_t weight_width() const { return packed_width + lanes; }
  int64_t weight_size() const { return strip_width * weight_width(); }
  int64_t pixels_size() const { return (strip_width + 4 * centre) * channel_stride; }
  int64_t workspace_size(bool backward) const {
    const int64_t once = ring_size() + weight_size() + pixels_size();
    return once + gram_size() + pixels_size() + (backward ? once : 0);
  }
  int64_t key_pixels_row() const { return packed_width * channel_stride; }
  int64_t key_panels_row() const { return panels * channels * panel_width; }

 private:
  void add_phase(int64_t index) {
    const int64_t end = columns.count + (kernel - 1 - index) / stride;
    const int64_t first = std::max<int64_t>(ceil_div(columns.before - index, stride), 0);
    const int64_t inside = ceil_div(width + columns.before - index, stride);
    const int64_t count = std::max<int64_t>(std::min(end, inside) - first, 0);
    phases.push_back({index, first, count, packed_width, panels, gram_width});
    packed_width += count;
    panels += ceil_div(count, panel_width);
    gram_width += round_up(std::max(end, first + count) + reach(), lanes) + lanes;
  }
};

// The part of an image whose outputs one task computes, and the pixels that it needs for that.
struct Strip {
  int64_t top, bottom, left, right;  // outputs
  int64_t score_top, score_bottom, score_left, score_right;
  int64_t gram_left, gram_right;

  Strip(const PatchLayout& s, int64_t top, int64_t bottom, int64_t left, int64_t right)
      : top(top), bottom(bottom), left(left), right(right) {
    score_top = std::max<int64_t>(top - s.centre, 0);
    score_bottom = std::min(bottom + s.centre, s.height);
    score_left = std::max<int64_t>(left - s.centre, 0);
    score_right = std::min(right + s.centre, s.width);
    gram_left = std::max<int64_t>(score_left - s.centre, 0);
    gram_right = std::min(score_right + s.centre, s.width);
  }
};

// One image (C, H, W) with any strides, in floats.
struct ImageView {
  const float* data;
  int64_t channel, row, column;
};

// What all strips of an image read.
struct KeyView {
  const float* panels;  // [row][panel][channel][panel_width]
  const float* pixels;  // [row][packed column][channel_stride]
  const float* scale;   // [key row][key_stride]: softmax scale / norm, zeros past the keys
  const float* bias;    // [key_stride]: 0, and minus infinity past the keys
};

}  // namespace fastinpaint
