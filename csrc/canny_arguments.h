// Checks of the edge detectors' arguments, for the CPU and CUDA.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"

namespace fastinpaint {

inline void check_canny(const Tensor& image, const std::vector<double>& weights) {
  check_dim(image, 4, "image", "(B, 1 or 3, H, W)");
  STD_TORCH_CHECK(image.size(1) == 1 || image.size(1) == 3, "image must have 1 or 3 channels, got shape ",
                  shape_of(image));
  STD_TORCH_CHECK(!weights.empty(), "weights must hold the Gaussian's weight at distance 0, got none");
}

inline void check_canny_mask(const Tensor& mask, const Tensor& image) {
  const int64_t batch = image.size(0);
  check_dim(mask, 4, "mask", "(B or 1, 1, H, W)");
  check_type(mask, ScalarType::Bool, "mask");
  STD_TORCH_CHECK(mask.size(0) == batch || mask.size(0) == 1, "mask must have size 1 or ", batch,
                  " on axis 0, got shape ", shape_of(mask));
  check_size(mask, 1, 1, "mask", "one channel");
  check_size(mask, 2, image.size(2), "mask", "the image's height");
  check_size(mask, 3, image.size(3), "mask", "the image's width");
}

// Empty edge maps (B, 1, h, w), one for each pair of `sizes` (h, w, h, w, ...).
inline std::vector<Tensor> new_edge_maps(const Tensor& image, const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(sizes.size() % 2 == 0, "sizes must hold a height and a width for each map, got ",
                  sizes.size(), " numbers");
  std::vector<Tensor> maps;
  for (size_t i = 0; i < sizes.size(); i += 2) {
    STD_TORCH_CHECK(sizes[i] >= 0 && sizes[i + 1] >= 0, "sizes must not be negative, got ", sizes[i], ", ",
                    sizes[i + 1]);
    STD_TORCH_CHECK(sizes[i] * sizes[i + 1] == 0 || image.size(2) * image.size(3) > 0, "an image of shape ",
                    shape_of(image), " has no pixel to make ", sizes[i], " x ", sizes[i + 1], " of");
    maps.push_back(
        torch::stable::new_empty(image, {image.size(0), 1, sizes[i], sizes[i + 1]}, ScalarType::Bool));
  }
  return maps;
}

}  // namespace fastinpaint
