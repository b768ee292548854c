// A one-dimensional blur with zero padding, applied several times, as one banded matrix.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace fastinpaint {

constexpr int64_t kMaxBlurRadius = 64;

// Row i of the matrix has 2 * radius() + 1 entries. The padding between two blurs takes weight only from rows
// near an end of the line, so all others share one row, and the product is exact there too.
class BlurTaps {
 public:
  // The Gaussian of cv2.getGaussianKernel: `size` odd, sigma above 0; `length` is that of the line.
  BlurTaps(int64_t size, double sigma, int64_t iterations, int64_t length)
      : radius_(iterations * (size / 2)), length_(length), kinds_(std::min(length, 2 * radius_ + 1)) {
    std::vector<double> weights(size);
    double total = 0;
    for (int64_t j = 0; j < size; ++j) {
      const double offset = static_cast<double>(j - size / 2);
      total += weights[j] = std::exp(-offset * offset / (2 * sigma * sigma));
    }
    for (double& weight : weights) weight /= total;
    for (int64_t kind = 0; kind < kinds_; ++kind) append(kind, weights, iterations);
  }

  int64_t radius() const { return radius_; }

  // Weights of elements i - radius() .. i + radius(); those beyond an end are 0.
  template <class Real>
  const Real* row(int64_t i) const {
    const int64_t kind = std::min(i, std::max(radius_, i - (length_ - kinds_)));
    return std::get<std::vector<Real>>(rows_).data() + kind * (2 * radius_ + 1);
  }

 private:
  // The matrix is symmetric: its row i is what the blurs make of a single 1 at i.
  void append(int64_t kind, const std::vector<double>& weights, int64_t iterations) {
    const int64_t i = kind <= radius_ ? kind : kind + length_ - kinds_;
    const int64_t reach = static_cast<int64_t>(weights.size()) / 2, taps = 2 * radius_ + 1;
    std::vector<double> line(taps), blurred(taps);
    line[radius_] = 1;
    for (int64_t k = 0; k < iterations; ++k, line.swap(blurred))
      for (int64_t j = 0; j < taps; ++j) {
        blurred[j] = 0;
        const int64_t position = i + j - radius_;
        if (position < 0 || position >= length_) continue;
        for (int64_t from = std::max(j - reach, int64_t{0}); from <= std::min(j + reach, taps - 1); ++from)
          blurred[j] += weights[from - j + reach] * line[from];
      }
    for (double tap : line) {
      std::get<0>(rows_).push_back(static_cast<float>(tap));
      std::get<1>(rows_).push_back(tap);
    }
  }

  int64_t radius_, length_, kinds_;
  std::tuple<std::vector<float>, std::vector<double>> rows_;
};

}  // namespace fastinpaint
