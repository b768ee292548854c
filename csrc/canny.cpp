// Canny edges on the CPU: pixel for pixel those of scikit-image 0.26 on float32 grey images.
#include "canny.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "bit_rows.h"
#include "common.h"
#include "isa.h"
#include "kept_memory.h"

#define FASTINPAINT_KERNEL "canny.inc"
#include "for_each_isa.inc"

namespace fastinpaint {
namespace {

// The sum as NumPy rounds it: eight running sums, in blocks of at most 128.
double pairwise_sum(const double* values, int64_t count) {
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

// As scipy.ndimage.gaussian_filter has them, by distance; it leaves the image alone when sigma is at most
// 1e-15.
std::vector<double> gaussian_weights(double sigma) {
  const int64_t radius = sigma > 1e-15 ? int64_t(4.0 * sigma + 0.5) : 0;
  if (radius == 0) return {1.0};
  const double scale = -0.5 / (sigma * sigma);
  std::vector<double> values;
  for (int64_t x = -radius; x <= radius; ++x) values.push_back(std::exp(scale * double(x * x)));
  const double total = pairwise_sum(values.data(), values.size());
  std::vector<double> weights(values.begin() + radius, values.end());
  for (double& weight : weights) weight /= total;
  return weights;
}

// The Gaussian at position i of a line of `size` equal values, zero outside, rounded to float32.
float blurred(const std::vector<double>& weights, double value, int64_t i, int64_t size) {
  double sum = value * weights[0];
  for (int64_t j = weights.size() - 1; j > 0; --j)
    sum += ((i - j >= 0 ? value : 0.0) + (i + j < size ? value : 0.0)) * weights[j];
  return float(sum);
}

void fill_coverage(CannyPlan& plan) {
  const int64_t classes = std::min(plan.height, 2 * plan.radius + 1),
                stride = plan.width + 2 * plan.pad + kStrip;
  plan.coverage.assign(classes * stride, 1.0f);
  const int64_t middle = std::min(plan.radius, plan.width);
  for (int64_t row = 0; row < classes; ++row) {
    const int64_t y = row <= plan.radius ? row : plan.height - classes + row;
    const double down = blurred(plan.weights, 1.0, y, plan.height);
    float* out = plan.coverage.data() + row * stride + plan.pad;
    for (int64_t x = 0; x < plan.width; ++x) {
      const bool inner = x > middle && x + plan.radius < plan.width;
      out[x] = inner ? out[x - 1] : blurred(plan.weights, down, x, plan.width) + 0x1p-23f;
    }
  }
}

CannyPlan make_plan(const Tensor& image, double sigma, double low, double high) {
  CannyPlan plan;
  plan.channels = image.size(1);
  plan.height = image.size(2);
  plan.width = image.size(3);
  plan.words = (plan.width + 63) / 64;
  plan.weights = gaussian_weights(sigma);
  plan.radius = plan.weights.size() - 1;
  plan.pad = (plan.radius + 16 + 7) / 8 * 8;
  // A low threshold of 0 becomes 1e-14, as in scikit-image; whatever it is, a pixel of magnitude 0 is no
  // edge.
  plan.low = float(low);
  if (plan.low == 0.0f) plan.low = 1e-14f;
  if (plan.low < 0.0f) plan.low = std::numeric_limits<float>::denorm_min();
  plan.high = float(high);
  fill_coverage(plan);
  return plan;
}

// Bits of the pixels that may be edges, (height, words): the mask eroded by one pixel, without the outermost
// ring.
std::vector<uint64_t> valid_bits(const CannyPlan& plan, const bool* mask) {
  const int64_t words = plan.words;
  std::vector<uint64_t> inner(words, 0), rows(plan.height * words, 0);
  for (int64_t x = 1; x + 1 < plan.width; ++x) inner[x / 64] |= uint64_t(1) << (x % 64);
  std::vector<uint64_t> packed(mask ? plan.height * words : 0);
  if (mask)
    for (int64_t y = 0; y < plan.height; ++y)
      pack_row(mask + y * plan.width, plan.width, packed.data() + y * words);
  for (int64_t y = 1; y + 1 < plan.height; ++y) {
    const auto column = [&](int64_t i) {
      const uint64_t* row = packed.data() + y * words + i;
      return i < 0 || i >= words ? 0 : row[-words] & row[0] & row[words];
    };
    for (int64_t i = 0; i < words; ++i) {
      uint64_t& out = rows[y * words + i];
      out = inner[i];
      if (mask)
        out &= column(i) & (column(i) << 1 | column(i - 1) >> 63) & (column(i) >> 1 | column(i + 1) << 63);
    }
  }
  return rows;
}

// Divides a batch into bands of rows and these among the threads: first every band by itself, then the edges
// that cross from band to band, then the result.
class EdgeDetector {
 public:
  EdgeDetector(const Tensor& image, const std::optional<Tensor>& mask, CannyPlan plan)
      : plan_(std::move(plan)), batch_(image.size(0)), image_(image.const_data_ptr<float>()) {
    if (mask) {
      mask_ = static_cast<const bool*>(mask->const_data_ptr());
      masks_ = mask->size(0);
    }
    for (int64_t i = 0; i < masks_; ++i)
      valid_.push_back(valid_bits(plan_, mask_ ? mask_ + i * plan_.height * plan_.width : nullptr));
    const int64_t wanted = (4 * torch::stable::get_num_threads() + batch_ - 1) / batch_;
    const int64_t bands = batch_ >= 2 * torch::stable::get_num_threads() ? 1 : wanted;
    band_rows_ = std::max<int64_t>(64, (plan_.height + bands - 1) / bands);
    bands_ = (plan_.height + band_rows_ - 1) / band_rows_;
  }

  void run(bool* out) {
    const int64_t rows = batch_ * plan_.height;
    weak_ = reinterpret_cast<uint64_t*>(
        kept_memory<unsigned char, 0>(rows * (2 * plan_.words * sizeof(uint64_t) + 1)));
    edges_ = weak_ + rows * plan_.words;
    stale_ = reinterpret_cast<unsigned char*>(edges_ + rows * plan_.words);
    for_each(batch_ * bands_, [&](int64_t i) {
      detect(i / bands_, i % bands_);
      if (bands_ == 1) unpack(i, 0, out);
    });
    if (bands_ == 1) return;
    for_each(batch_, [&](int64_t i) { join_bands(i); });
    for_each(batch_ * bands_, [&](int64_t i) { unpack(i / bands_, i % bands_, out); });
  }

 private:
  template <class Function>
  static void for_each(int64_t count, const Function& function) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) function(i);
    });
  }

  int64_t first_row(int64_t band) const { return std::min(band * band_rows_, plan_.height); }

  // Edges of one band of an image, as far as they hang together inside it.
  void detect(int64_t i, int64_t band) {
    const int64_t height = plan_.height, width = plan_.width, words = plan_.words;
    const int64_t first = first_row(band), last = first_row(band + 1), offset = i * height * words;
    CannyTile tile{};
    tile.image = image_ + i * plan_.channels * height * width;
    tile.mask = mask_ ? mask_ + i % masks_ * height * width : nullptr;
    tile.valid = valid_[i % masks_].data();
    tile.y0 = first;
    tile.y1 = last;
    tile.weak = weak_ + offset;
    tile.strong = edges_ + offset;
    unsigned char* memory = kept_memory<unsigned char, 1>(plan_.tile_bytes(mask_ != nullptr));
    for (tile.x0 = 0; tile.x0 < width; tile.x0 += kStrip) {
      tile.x1 = std::min(tile.x0 + kStrip, width);
      FASTINPAINT_DISPATCH(canny_tile, plan_, tile, memory);
    }
    for (int64_t y = first; y < last; ++y) fill_runs(tile.weak + y * words, tile.strong + y * words, words);
    std::memset(stale_ + i * height + first, 1, last - first);
    grow_edges(tile.weak, tile.strong, words, first, last, stale_ + i * height);
  }

  void join_bands(int64_t i) {
    const int64_t offset = i * plan_.height * plan_.words;
    unsigned char* stale = stale_ + i * plan_.height;
    for (int64_t band = 1; band < bands_; ++band) stale[first_row(band) - 1] = stale[first_row(band)] = 1;
    grow_edges(weak_ + offset, edges_ + offset, plan_.words, 0, plan_.height, stale);
  }

  void unpack(int64_t i, int64_t band, bool* out) const {
    for (int64_t y = i * plan_.height + first_row(band); y < i * plan_.height + first_row(band + 1); ++y)
      unpack_row(edges_ + y * plan_.words, plan_.width, out + y * plan_.width);
  }

  CannyPlan plan_;
  int64_t batch_, bands_, band_rows_;
  const float* image_;                        // (batch, channels, height, width)
  const bool* mask_ = nullptr;                // (masks_, height, width)
  int64_t masks_ = 1;                         // 1 or batch
  std::vector<std::vector<uint64_t>> valid_;  // masks_ times (height, words)
  uint64_t *weak_, *edges_;                   // (batch, height, words)
  unsigned char* stale_;                      // (batch, height)
};

}  // namespace

Tensor canny(const Tensor& image, double sigma, double low, double high, std::optional<Tensor> mask) {
  check_cpu(image, "image");
  check_dim(image, 4, "image", "(B, 1 or 3, H, W)");
  check_type(image, ScalarType::Float, "image");
  STD_TORCH_CHECK(image.size(1) == 1 || image.size(1) == 3, "image must have 1 or 3 channels, got shape ",
                  shape_of(image));
  STD_TORCH_CHECK(sigma >= 0.0 && sigma < 1e6, "sigma must be at least 0 and less than 1e6, got ", sigma);
  const int64_t batch = image.size(0);
  if (mask) {
    check_cpu(*mask, "mask");
    check_dim(*mask, 4, "mask", "(B or 1, 1, H, W)");
    check_type(*mask, ScalarType::Bool, "mask");
    STD_TORCH_CHECK(mask->size(0) == batch || mask->size(0) == 1, "mask must have size 1 or ", batch,
                    " on axis 0, got shape ", shape_of(*mask));
    check_size(*mask, 1, 1, "mask", "one channel");
    check_size(*mask, 2, image.size(2), "mask", "the image's height");
    check_size(*mask, 3, image.size(3), "mask", "the image's width");
    mask = torch::stable::contiguous(*mask);
  }
  Tensor edges = torch::stable::new_empty(image, {batch, 1, image.size(2), image.size(3)}, ScalarType::Bool);
  if (edges.numel() > 0) {
    const Tensor dense = torch::stable::contiguous(image);
    EdgeDetector(dense, mask, make_plan(dense, sigma, low, high))
        .run(static_cast<bool*>(edges.mutable_data_ptr()));
  }
  return edges;
}

}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("canny", TORCH_BOX(&fastinpaint::canny));
}
