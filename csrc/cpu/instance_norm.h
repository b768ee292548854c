// How instance_norm.cpp cuts maps, and what instance_norm.inc, the kernel, works on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/tensor_view.h"

namespace fastinpaint {

struct NearSumMemory;  // sums of columns over a few pieces
struct FarSumMemory;   // over all
struct CentreMemory;   // means that deviations are taken from

// A group is a set of channels that lie side by side in every pixel: all of an image where the map is
// channels-last, one where it is contiguous. It is cut into strips of rows, and rows into pieces. Column i of
// a piece belongs to lane i % lanes; sums and parameters are kept by column, so that neighbouring values are
// independent and every instruction set gives the same bits.
struct NormCut {
  int64_t channels, lanes;  // of an image, of a group
  int64_t height, width, padding;
  int64_t groups, strips;  // of the map, of a group
  int64_t rows;            // of a strip
  int64_t piece;           // pixels

  static constexpr int64_t kStripBytes = 256 * 1024;  // stays in the second-level cache for the second pass
  static constexpr int64_t kColumns = 128;            // stay in the first-level cache, with their sums

  NormCut(const Tensor& x, bool channels_last, int64_t padding)
      : channels(x.size(1)),
        lanes(channels_last ? channels : 1),
        height(x.size(2)),
        width(x.size(3)),
        padding(padding),
        groups(channels_last ? x.size(0) : x.size(0) * channels) {
    const auto row_bytes = width * lanes * static_cast<int64_t>(x.element_size());
    rows = std::max(kStripBytes / std::max(row_bytes, int64_t{1}), int64_t{1});
    strips = strip_count(height, rows);
    const int64_t pieces = strip_count(width, std::max(kColumns / std::max(lanes, int64_t{1}), int64_t{1}));
    piece = strip_count(width, pieces);
  }

  int64_t columns() const { return piece * lanes; }

  // Elements of a row of the padded map.
  int64_t padded_row() const { return (width + 2 * padding) * lanes; }

  int64_t strip_end(int64_t begin) const { return std::min(begin + rows, height); }

  // The row of the padded map that holds row y of the map reflected at the upper or lower border; -1: none
  // does.
  int64_t above(int64_t y) const { return y >= 1 && y <= padding ? padding - y : -1; }
  int64_t below(int64_t y) const {
    return y <= height - 2 && y >= height - 1 - padding ? padding + 2 * (height - 1) - y : -1;
  }

  template <class Type>
  Type* row(const TensorView& map, int64_t group, int64_t y) const {
    const int64_t first = group * lanes;
    return reinterpret_cast<Type*>(map.row(first / channels, first % channels, y));
  }
};

// What both directions take. `Real` is double for maps of double, else float.
template <class Real>
struct NormOperands {
  TensorView x;                // (B, C, H, W)
  const TensorView* residual;  // (B, C, H, W) or null
  Real *mean, *rstd;           // (B, C)
  const Real *weight, *bias;   // (C), or null for 1 and 0
  const Real* scale;           // (1) or null
  bool relu;

  // What the ReLU raises lower values to: no value lies below NaN.
  Real floor() const { return relu ? Real{0} : std::numeric_limits<Real>::quiet_NaN(); }

  Real weight_of(int64_t channel) const { return weight == nullptr ? Real{1} : weight[channel]; }
  Real bias_of(int64_t channel) const { return bias == nullptr ? Real{0} : bias[channel]; }
};

}  // namespace fastinpaint
