// The Gaussian's weights and the thresholds of a call, as scikit-image and SciPy have them: for the CPU and
// CUDA.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace fastinpaint {

// The sum as NumPy rounds it: eight running sums, in blocks of at most 128.
inline double pairwise_sum(const double* values, int64_t count) {
  if (count > 128) {
    const int64_t half = count / 2 - count / 2 % 8;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
  }
  double total = 0.0;
  int64_t i = 0;
  if (count >= 8) {
    double s[8];
    std::copy(values, values + 8, s);
    for (i = 8; i + 8 <= count; i += 8)
      for (int lane = 0; lane < 8; ++lane) s[lane] += values[i + lane];
    total = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }
  for (; i < count; ++i) total += values[i];
  return total;
}

// (radius + 1,) by distance, as scipy.ndimage.gaussian_filter has them; it leaves the image alone when sigma
// is at most 1e-15. Those that would reach beyond a line of `longest` pixels from anywhere in it are left
// out: they meet zeros alone.
inline std::vector<double> gaussian_weights(double sigma, int64_t longest) {
  const int64_t radius = sigma > 1e-15 ? int64_t(4.0 * sigma + 0.5) : 0;
  if (radius == 0) return {1.0};
  const double scale = -0.5 / (sigma * sigma);
  std::vector<double> values;
  for (int64_t x = -radius; x <= radius; ++x) values.push_back(std::exp(scale * double(x * x)));
  const double total = pairwise_sum(values.data(), values.size());
  const int64_t reach = std::min(radius, longest - 1);
  std::vector<double> weights(values.begin() + radius, values.begin() + radius + reach + 1);
  for (double& weight : weights) weight /= total;
  return weights;
}

// A low threshold of 0 becomes 1e-14, as in scikit-image; whatever it is, a pixel of magnitude 0 is no edge.
inline float low_threshold(double value) {
  const float low = float(value);
  return low == 0.0f ? 1e-14f : low < 0.0f ? std::numeric_limits<float>::denorm_min() : low;
}

}  // namespace fastinpaint
