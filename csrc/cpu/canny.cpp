// Canny edges on the CPU: pixel for pixel those of scikit-image 0.26 on float32 and float64 grey images.
#include "cpu/canny.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "canny_arguments.h"
#include "canny_options.h"
#include "canny_pixel.h"
#include "checks.h"
#include "cpu/hysteresis.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"

#define FASTINPAINT_KERNEL "cpu/canny.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

struct TileMemory;  // the working rows of a tile
struct MapMemory;   // the bit maps of all images of a call

template <class Real>
void fill_coverage(CannyPlan<Real>& plan) {
  const int64_t classes = std::min(plan.height, 2 * plan.radius + 1),
                stride = plan.width + 2 * plan.pad + kStrip;
  plan.coverage.assign(classes * stride, Real(1));
  const int64_t middle = std::min(plan.radius, plan.width);
  for (int64_t row = 0; row < classes; ++row) {
    const int64_t y = row <= plan.radius ? row : plan.height - classes + row;
    const Real down = blurred<Real>(plan.weights.data(), plan.radius, 1.0, y, plan.height);
    Real* out = plan.coverage.data() + row * stride + plan.pad;
    for (int64_t x = 0; x < plan.width; ++x) {
      const bool inner = x > middle && x + plan.radius < plan.width;
      out[x] = inner ? out[x - 1]
                     : blurred<Real>(plan.weights.data(), plan.radius, down, x, plan.width) +
                           std::numeric_limits<Real>::epsilon();
    }
  }
}

template <class Real>
CannyPlan<Real> make_plan(const Tensor& image, int64_t height, int64_t width,
                          const std::vector<double>& weights, double low, double high) {
  CannyPlan<Real> plan;
  plan.channels = image.size(1);
  plan.image_height = image.size(2);
  plan.image_width = image.size(3);
  plan.height = height;
  plan.width = width;
  for (int64_t x = 0; x < width; ++x) plan.columns.push_back(x * plan.image_width / width);
  plan.words = (plan.width + 63) / 64;
  plan.weights = weights_within(weights, std::max(height, width));
  plan.radius = plan.weights.size() - 1;
  plan.pad = (plan.radius + 16 + 7) / 8 * 8;
  plan.low = low_threshold<Real>(low);
  plan.high = Real(high);
  fill_coverage(plan);
  return plan;
}

// Bits of the pixels that may be edges, (height, words): the mask eroded by one pixel, without the outermost
// ring.
template <class Real>
std::vector<uint64_t> valid_bits(const CannyPlan<Real>& plan, const bool* mask) {
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

// One edge map of a batch, divided into bands of rows: first every band by itself (detect), then the edges
// that cross from band to band (join), then the result (unpack).
template <class Real>
class EdgeDetector {
 public:
  EdgeDetector(const Tensor& image, const std::optional<Tensor>& mask, CannyPlan<Real> plan,
               const Tensor& edges)
      : plan_(std::move(plan)),
        batch_(image.size(0)),
        image_(image.const_data_ptr<Real>()),
        out_(static_cast<bool*>(edges.mutable_data_ptr())) {
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

  // Bytes of the memory that `attach` wants, a multiple of 8.
  int64_t bytes() const { return batch_ * plan_.height * (2 * plan_.words + 1) * sizeof(uint64_t); }

  void attach(unsigned char* memory) {
    const int64_t rows = batch_ * plan_.height;
    weak_ = reinterpret_cast<uint64_t*>(memory);
    edges_ = weak_ + rows * plan_.words;
    stale_ = reinterpret_cast<unsigned char*>(edges_ + rows * plan_.words);
  }

  int64_t images() const { return batch_; }
  int64_t tasks() const { return batch_ * bands_; }  // for detect and unpack
  bool joins() const { return bands_ > 1; }

  // Edges of one band of an image, as far as they hang together inside it.
  void detect(int64_t task) {
    const int64_t i = task / bands_, band = task % bands_;
    const int64_t height = plan_.height, width = plan_.width, words = plan_.words;
    const int64_t first = first_row(band), last = first_row(band + 1), offset = i * height * words;
    CannyTile<Real> tile{};
    tile.image = image_ + i * plan_.channels * plan_.image_height * plan_.image_width;
    tile.mask = mask_ ? mask_ + i % masks_ * height * width : nullptr;
    tile.valid = valid_[i % masks_].data();
    tile.y0 = first;
    tile.y1 = last;
    tile.weak = weak_ + offset;
    tile.strong = edges_ + offset;
    unsigned char* memory = scratch<TileMemory, unsigned char>(plan_.tile_bytes(mask_ != nullptr));
    for (tile.x0 = 0; tile.x0 < width; tile.x0 += kStrip) {
      tile.x1 = std::min(tile.x0 + kStrip, width);
      FASTINPAINT_DISPATCH(canny_tile, plan_, tile, memory);
    }
    for (int64_t y = first; y < last; ++y) fill_runs(tile.weak + y * words, tile.strong + y * words, words);
    std::memset(stale_ + i * height + first, 1, last - first);
    grow_edges(tile.weak, tile.strong, words, first, last, stale_ + i * height);
    if (!joins()) unpack(task);
  }

  void join(int64_t i) {
    const int64_t offset = i * plan_.height * plan_.words;
    unsigned char* stale = stale_ + i * plan_.height;
    for (int64_t band = 1; band < bands_; ++band) stale[first_row(band) - 1] = stale[first_row(band)] = 1;
    grow_edges(weak_ + offset, edges_ + offset, plan_.words, 0, plan_.height, stale);
  }

  void unpack(int64_t task) const {
    const int64_t first = task / bands_ * plan_.height, band = task % bands_;
    for (int64_t y = first + first_row(band); y < first + first_row(band + 1); ++y)
      unpack_row(edges_ + y * plan_.words, plan_.width, out_ + y * plan_.width);
  }

 private:
  int64_t first_row(int64_t band) const { return std::min(band * band_rows_, plan_.height); }

  CannyPlan<Real> plan_;
  int64_t batch_, bands_, band_rows_;
  const Real* image_;                         // (batch, channels, image_height, image_width)
  bool* out_;                                 // (batch, 1, height, width)
  const bool* mask_ = nullptr;                // (masks_, height, width)
  int64_t masks_ = 1;                         // 1 or batch
  std::vector<std::vector<uint64_t>> valid_;  // masks_ times (height, words)
  uint64_t *weak_, *edges_;                   // (batch, height, words)
  unsigned char* stale_;                      // (batch, height)
};

template <class Real>
using Detectors = std::vector<EdgeDetector<Real>>;

// Calls function(detector, i) for every i below count(detector), in one parallel region over all detectors.
// Threads take what comes next, for the tasks of a large map take longer than those of a small one.
template <class Real, class Count, class Function>
void for_each(Detectors<Real>& detectors, const Count& count, const Function& function) {
  int64_t total = 0;
  for (const auto& detector : detectors) total += count(detector);
  for_each_task(total, [&](int64_t task) {
    for (auto& detector : detectors) {
      if (task < count(detector)) return function(detector, task);
      task -= count(detector);
    }
  });
}

template <class Real>
void run(Detectors<Real>& detectors) {
  using Detector = EdgeDetector<Real>;
  int64_t bytes = 0;
  for (const Detector& detector : detectors) bytes += detector.bytes();
  unsigned char* memory = scratch<MapMemory, unsigned char>(bytes);
  for (Detector& detector : detectors) {
    detector.attach(memory);
    memory += detector.bytes();
  }
  const auto joined = [](const Detector& d, int64_t tasks) { return d.joins() ? tasks : 0; };
  for_each(
      detectors, [](const Detector& d) { return d.tasks(); }, [](Detector& d, int64_t i) { d.detect(i); });
  for_each(
      detectors, [&](const Detector& d) { return joined(d, d.images()); },
      [](Detector& d, int64_t i) { d.join(i); });
  for_each(
      detectors, [&](const Detector& d) { return joined(d, d.tasks()); },
      [](Detector& d, int64_t i) { d.unpack(i); });
}

template <class Real>
void detect_in(const Tensor& image, const std::vector<Tensor>& maps, const std::vector<double>& weights,
               double low, double high, const std::optional<Tensor>& mask) {
  Detectors<Real> detectors;
  for (const Tensor& edges : maps)
    if (edges.numel() > 0)
      detectors.emplace_back(image, mask,
                             make_plan<Real>(image, edges.size(2), edges.size(3), weights, low, high), edges);
  run(detectors);
}

std::vector<Tensor> detect(const Tensor& image, const std::vector<int64_t>& sizes,
                           const std::vector<double>& weights, double low, double high,
                           std::optional<Tensor> mask) {
  check_cpu(image, "image");
  const ScalarType type = image.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "image must be Float or Double, got ", torch::headeronly::toString(type));
  check_canny(image, weights);
  if (mask) {
    check_cpu(*mask, "mask");
    check_canny_mask(*mask, image);
    mask = torch::stable::contiguous(*mask);
  }
  const std::vector<Tensor> maps = new_edge_maps(image, sizes);
  const Tensor dense = torch::stable::contiguous(image);
  if (type == ScalarType::Double)
    detect_in<double>(dense, maps, weights, low, high, mask);
  else
    detect_in<float>(dense, maps, weights, low, high, mask);
  return maps;
}

}  // namespace

Tensor canny(const Tensor& image, std::vector<double> weights, double low, double high,
             std::optional<Tensor> mask) {
  check_dim(image, 4, "image", "(B, 1 or 3, H, W)");
  return detect(image, {image.size(2), image.size(3)}, weights, low, high, mask)[0];
}

std::vector<Tensor> canny_pyramid(const Tensor& image, std::vector<int64_t> sizes,
                                  std::vector<double> weights, double low, double high) {
  return detect(image, sizes, weights, low, high, std::nullopt);
}

}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("canny", TORCH_BOX(&fastinpaint::canny));
  m.impl("canny_pyramid", TORCH_BOX(&fastinpaint::canny_pyramid));
}
