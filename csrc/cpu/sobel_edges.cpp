#include "checks.h"
#include "cpu/blur_taps.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"
#include "cpu/tensor_view.h"

#define FASTINPAINT_KERNEL "cpu/sobel_edges.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

// (B, C, H, W) -> (B, 2C, H, W): c0_dy, c0_dx, c1_dy, ...
Tensor sobel_edges(const Tensor& image) {
  check_cpu(image, "image");
  check_dim(image, 4, "image", "(B, C, H, W)");
  check_floating(image, "image");
  const int64_t batch = image.size(0), channels = image.size(1), height = image.size(2),
                width = image.size(3);
  STD_TORCH_CHECK(height > 1 && width > 1, "image must have sides of at least 2, got shape ",
                  shape_of(image));
  Tensor gradients = torch::stable::new_empty(image, {batch, 2 * channels, height, width});
  const TensorView from(image), to(gradients);
  const int64_t rows = strip_rows(width, 16), strips = strip_count(height, rows);
  for_each_task(batch * channels * strips, [&](int64_t task) {
    const int64_t b = task / strips / channels, c = task / strips % channels;
    const int64_t begin = task % strips * rows, end = std::min(begin + rows, height);
    if (from.type == ScalarType::Double)
      FASTINPAINT_DISPATCH(sobel_strip<double>, from, to, b, c, begin, end);
    else
      FASTINPAINT_DISPATCH(sobel_strip<float>, from, to, b, c, begin, end);
  });
  return gradients;
}

// (B, 2C, H, W) -> (B, C, H, W): the transpose of sobel_edges.
Tensor sobel_edges_backward(const Tensor& gradients) {
  check_cpu(gradients, "gradients");
  check_dim(gradients, 4, "gradients", "(B, 2C, H, W)");
  check_floating(gradients, "gradients");
  const int64_t batch = gradients.size(0), channels = gradients.size(1) / 2;
  const int64_t height = gradients.size(2), width = gradients.size(3);
  check_size(gradients, 1, 2 * channels, "gradients", "two for each channel");
  STD_TORCH_CHECK(height > 1 && width > 1, "gradients must have sides of at least 2, got ",
                  shape_of(gradients));
  Tensor image = torch::stable::new_empty(gradients, {batch, channels, height, width});
  const TensorView from(gradients), to(image);
  const int64_t rows = strip_rows(width, 16), strips = strip_count(height, rows);
  for_each_task(batch * channels * strips, [&](int64_t task) {
    const int64_t b = task / strips / channels, c = task / strips % channels;
    const int64_t begin = task % strips * rows, end = std::min(begin + rows, height);
    if (from.type == ScalarType::Double)
      FASTINPAINT_DISPATCH(sobel_transposed_strip<double>, from, to, b, c, begin, end);
    else
      FASTINPAINT_DISPATCH(sobel_transposed_strip<float>, from, to, b, c, begin, end);
  });
  return image;
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("sobel_edges", TORCH_BOX(&fastinpaint::sobel_edges));
  m.impl("sobel_edges_backward", TORCH_BOX(&fastinpaint::sobel_edges_backward));
}
