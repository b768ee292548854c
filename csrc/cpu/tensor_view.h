// An (B, C, H, W) tensor of any layout and floating-point (or bool) type, read and written row by row.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "checks.h"

namespace fastinpaint {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Whether the channels (B, C, H, W) of a pixel lie side by side, and a contiguous map would not be the same.
inline bool is_channels_last(const Tensor& map) {
  return map.stride(1) == 1 && !map.is_contiguous();
}

// (B, H, W, C) -> the same memory as (B, C, H, W).
inline Tensor channels_first(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 1, 3), 2, 3);
}

struct TensorView {
  char* data;
  ScalarType type;
  int64_t item;        // bytes
  int64_t strides[4];  // elements
  int64_t height, width;

  explicit TensorView(const Tensor& tensor)
      : data(static_cast<char*>(tensor.data_ptr())),
        type(tensor.scalar_type()),
        item(static_cast<int64_t>(tensor.element_size())),
        strides{tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)},
        height(tensor.size(2)),
        width(tensor.size(3)) {}

  char* row(int64_t b, int64_t c, int64_t y) const {
    return data + (b * strides[0] + c * strides[1] + y * strides[2]) * item;
  }
};

// Rows of one piece of work: about 8192 pixels, but at least `least` rows, so that what neighbours compute
// twice stays small. It depends on the shape alone, and so does the order in which partial sums are added.
inline int64_t strip_rows(int64_t width, int64_t least) {
  return std::max(8192 / std::max(width, int64_t{1}), least);
}

inline int64_t strip_count(int64_t height, int64_t rows) {
  return (height + rows - 1) / rows;
}

}  // namespace fastinpaint
