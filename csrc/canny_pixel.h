// What Canny makes of single pixels, on every processor: the sums in double and the roundings to the image's
// type of scikit-image and SciPy, in their order. fastinpaint/reference/canny.py spells them out; canny.inc
// has some of them again, for vectors. No product may be fused into a sum (-ffp-contract=off, nvcc
// -fmad=false).
#pragma once

#include <cmath>
#include <limits>

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

FASTINPAINT_HD double gray_of(double red, double green, double blue) {
  return (0.2125 * red + 0.7154 * green) + 0.0721 * blue;
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

// The same for a radius that the compiler knows: every value is read once.
template <int kRadius, int kRun, class ValueAt>
FASTINPAINT_HD void blur_run_of(const double* weights, const ValueAt& value_at, double (&sum)[kRun]) {
  double window[kRun + 2 * kRadius];
  FASTINPAINT_UNROLL()
  for (int i = 0; i < kRun + 2 * kRadius; ++i) window[i] = value_at(i - kRadius);
  FASTINPAINT_UNROLL()
  for (int k = 0; k < kRun; ++k) sum[k] = window[k + kRadius] * weights[0];
  FASTINPAINT_UNROLL()
  for (int j = kRadius; j > 0; --j) {
    FASTINPAINT_UNROLL()
    for (int k = 0; k < kRun; ++k) sum[k] += (window[k + kRadius - j] + window[k + kRadius + j]) * weights[j];
  }
}

// `value` at the positions [0, size) of a line, 0 elsewhere; seen from position `origin`.
struct EqualValues {
  double value;
  int origin, size;

  FASTINPAINT_HD double operator()(int i) const { return origin + i >= 0 && origin + i < size ? value : 0.0; }
};

// The Gaussian at one position of such a line, rounded. What lies beyond the line adds 0.
template <class Real = float>
FASTINPAINT_HD Real blurred(const double* weights, int radius, double value, int position, int size) {
  double sum[1];
  blur_run(weights, radius < size ? radius : size - 1, EqualValues{value, position, size}, sum);
  return Real(sum[0]);
}

// value / divisor for every value of a run, `inverse` being 1 / divisor in float32. Where nothing can
// overflow or lose bits below the least float, one correction of the product is exact (Markstein,
// "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
template <int kRun>
FASTINPAINT_HD void divide_run(float (&run)[kRun], float divisor, float inverse) {
  float least = fabsf(run[0]), most = least;
  FASTINPAINT_UNROLL()
  for (int k = 1; k < kRun; ++k) {
    least = fminf(least, fabsf(run[k]));
    most = fmaxf(most, fabsf(run[k]));
  }
  if ((least >= 0x1p-90f || most == 0.0f) && most <= 0x1p90f) {  // flat black is common
    FASTINPAINT_UNROLL()
    for (int k = 0; k < kRun; ++k) {
      const float product = run[k] * inverse;
      run[k] = fmaf(fmaf(-divisor, product, run[k]), inverse, product);
    }
  } else {
    FASTINPAINT_UNROLL(1)
    for (int k = 0; k < kRun; ++k) run[k] /= divisor;
  }
}

// One Sobel derivative, from the differences before, at and after the pixel.
FASTINPAINT_HD float sobel_sum(float before, float here, float after) {
  const double middle = here;
  return float((middle + middle) + (double(before) + double(after)));
}

FASTINPAINT_HD float gradient_magnitude(float along_h, float along_w) {
  return sqrtf(along_h * along_h + along_w * along_w);
}

enum class Maximum { no, yes, open };

// is_maximum as far as float32 can tell. Both sides are multiplied by the larger derivative; they are off by
// less than 2^-22 times their terms together, so a larger gap is certain. In between (ties above all) the
// answer is open. 1e-37 covers subnormal products.
template <class Stride>
FASTINPAINT_HD Maximum probable_maximum(const float* m, Stride stride, float along_h, float along_w) {
  const float size_h = fabsf(along_h), size_w = fabsf(along_w);
  const bool steep = size_h > size_w, opposite = std::signbit(along_h) != std::signbit(along_w);
  const float small = steep ? size_w : size_h, large = steep ? size_h : size_w;
  // Every neighbour is read, whichever count: pixels side by side share them.
  const float above = m[-stride], below = m[stride], before = m[-1], after = m[1];
  const float corners[4] = {m[-stride - 1], m[-stride + 1], m[stride - 1], m[stride + 1]};
  const float diagonal1 = opposite ? corners[1] : corners[3], diagonal2 = opposite ? corners[2] : corners[0];
  const float straight1 = steep ? (opposite ? above : below) : after;
  const float straight2 = steep ? (opposite ? below : above) : before;
  const float rest = large - small, level = *m * large;
  const float beyond1 = fmaf(diagonal1, small, straight1 * rest),
              beyond2 = fmaf(diagonal2, small, straight2 * rest);
  const float gap = level - fmaxf(beyond1, beyond2);
  const float terms = fmaf(straight1 + straight2, large, level + (beyond1 + beyond2));
  const float margin = fmaf(terms, 0x1p-21f, 1e-37f);
  return gap > margin ? Maximum::yes : gap < -margin ? Maximum::no : Maximum::open;
}

// Whether neither neighbour across the edge exceeds the magnitude at `m`, as C promotes it in scikit-image:
// the first product in the image's type, the rest in double. `stride` is the distance to the rows above and
// below.
template <class Real, class Stride>
FASTINPAINT_HD bool is_maximum(const Real* m, Stride stride, Real along_h, Real along_w) {
  const Real size_h = std::fabs(along_h), size_w = std::fabs(along_w);
  const bool steep = size_h > size_w;
  const Real weight = (steep ? size_w : size_h) / (steep ? size_h : size_w);
  const double rest = 1.0 - double(weight);
  const Stride down = !std::signbit(along_h) == !std::signbit(along_w) ? stride : -stride;
  const Stride straight = steep ? down : 1;
  const Real part1 = m[down + 1] * weight, part2 = m[-down - 1] * weight;
  return double(part1) + double(m[straight]) * rest <= double(*m) &&
         double(part2) + double(m[-straight]) * rest <= double(*m);
}

}  // namespace fastinpaint
