// What Canny makes of single pixels, on every processor: the sums in double and the roundings to float32 of
// scikit-image and SciPy, in their order. fastinpaint/reference/canny.py spells them out; canny.inc has some
// of them again, for vectors. No product may be fused into a sum (-ffp-contract=off, nvcc -fmad=false).
#pragma once

#include <cmath>

#ifdef __CUDACC__
  #define FASTINPAINT_HD __host__ __device__ __forceinline__
  #define FASTINPAINT_PRAGMA(TEXT) _Pragma(#TEXT)
  #define FASTINPAINT_UNROLL(COUNT) FASTINPAINT_PRAGMA(unroll COUNT)
#else
  #define FASTINPAINT_HD inline
  #define FASTINPAINT_UNROLL(COUNT)
#endif

namespace fastinpaint {

constexpr float kFloatEps = 0x1p-23f;

FASTINPAINT_HD float gray_of(float red, float green, float blue) {
  return (0.2125f * red + 0.7154f * green) + 0.0721f * blue;
}

// The Gaussian at the positions 0 to kRun - 1 of a line, value_at(i) being the value at position i, in
// double. weights: (radius + 1,) by distance.
template <int kRun, class ValueAt>
FASTINPAINT_HD void blur_run(const double* weights, int radius, const ValueAt& value_at,
                             double (&sum)[kRun]) {
  double before[kRun], after[kRun];  // of each position, the values j away from it
  for (int k = 0; k < kRun; ++k) {
    sum[k] = value_at(k) * weights[0];
    before[k] = value_at(k - radius);
    after[k] = value_at(k + radius);
  }
  FASTINPAINT_UNROLL(2)  // further, a kernel of many blocks runs out of registers
  for (int j = radius; j > 0; --j) {
    const double weight = weights[j];
    for (int k = 0; k < kRun; ++k) sum[k] += (before[k] + after[k]) * weight;
    for (int k = 0; k + 1 < kRun; ++k) before[k] = before[k + 1];
    for (int k = kRun - 1; k > 0; --k) after[k] = after[k - 1];
    before[kRun - 1] = value_at(kRun - j);
    after[0] = value_at(j - 1);
  }
}

// `value` at the positions [0, size) of a line, 0 elsewhere; seen from position `origin`.
struct EqualValues {
  double value;
  int origin, size;

  FASTINPAINT_HD double operator()(int i) const { return origin + i >= 0 && origin + i < size ? value : 0.0; }
};

// The Gaussian at one position of such a line, rounded to float32. What lies beyond the line adds 0.
FASTINPAINT_HD float blurred(const double* weights, int radius, double value, int position, int size) {
  double sum[1];
  blur_run(weights, radius < size ? radius : size - 1, EqualValues{value, position, size}, sum);
  return float(sum[0]);
}

// One Sobel derivative, from the differences before, at and after the pixel.
FASTINPAINT_HD float sobel_sum(float before, float here, float after) {
  const double middle = here;
  return float((middle + middle) + (double(before) + double(after)));
}

FASTINPAINT_HD float gradient_magnitude(float along_h, float along_w) {
  return sqrtf(along_h * along_h + along_w * along_w);
}

// Whether neither neighbour across the edge exceeds the magnitude at `m`, as C promotes it in scikit-image:
// the first product in float, the rest in double. `stride` is the distance to the rows above and below.
template <class Stride>
FASTINPAINT_HD bool is_maximum(const float* m, Stride stride, float along_h, float along_w) {
  const float size_h = fabsf(along_h), size_w = fabsf(along_w);
  const bool steep = size_h > size_w;
  const float weight = (steep ? size_w : size_h) / (steep ? size_h : size_w);
  const double rest = 1.0 - double(weight);
  const Stride down = !std::signbit(along_h) == !std::signbit(along_w) ? stride : -stride;
  const Stride straight = steep ? down : 1;
  const float part1 = m[down + 1] * weight, part2 = m[-down - 1] * weight;
  return double(part1) + double(m[straight]) * rest <= double(*m) &&
         double(part2) + double(m[-straight]) * rest <= double(*m);
}

}  // namespace fastinpaint
