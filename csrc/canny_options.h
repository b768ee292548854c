// The Gaussian's weights and the thresholds of a call, as scikit-image has them: for the CPU and CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace fastinpaint {

// The weights that reach a pixel from anywhere in a line of `longest` pixels; the others meet zeros alone.
// weights: (radius + 1,) by distance, from fastinpaint/reference/canny.py.
inline std::vector<double> weights_within(const std::vector<double>& weights, int64_t longest) {
  const int64_t count = std::min<int64_t>(weights.size(), std::max<int64_t>(longest, 1));
  return {weights.begin(), weights.begin() + count};
}

// A low threshold of 0 becomes 1e-14, as in scikit-image; whatever it is, a pixel of magnitude 0 is no edge.
// It is a float whatever the image's type is.
template <class Real = float>
inline Real low_threshold(double value) {
  const float low = float(value);
  return low == 0.0f ? 1e-14f : low < 0.0f ? std::numeric_limits<Real>::denorm_min() : low;
}

}  // namespace fastinpaint
