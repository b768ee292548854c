#include "checks.h"
#include "cpu/blur_taps.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"
#include "cpu/tensor_view.h"

#define FASTINPAINT_KERNEL "cpu/edge_priority.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

// (B, 1, H, W) of any floating-point type -> the same; the blur is its own transpose, so this is its backward
// too.
Tensor edge_priority(const Tensor& edges, int64_t kernel_size, double sigma, int64_t iterations) {
  check_cpu(edges, "edges");
  check_dim(edges, 4, "edges", "(B, 1, H, W)");
  check_size(edges, 1, 1, "edges", "one channel");
  check_floating(edges, "edges");
  STD_TORCH_CHECK(kernel_size > 0 && kernel_size % 2 == 1, "kernel_size must be odd, got ", kernel_size);
  STD_TORCH_CHECK(iterations >= 0 && iterations * (kernel_size / 2) <= kMaxBlurRadius,
                  "the blurs must reach at most ", kMaxBlurRadius, " pixels, got ", iterations,
                  " of kernel_size ", kernel_size);
  const int64_t batch = edges.size(0), height = edges.size(2), width = edges.size(3);
  Tensor priority = torch::stable::new_empty(edges, {batch, 1, height, width});
  if (edges.numel() == 0) return priority;
  const TensorView from(edges), to(priority);
  const BlurTaps vertical(kernel_size, sigma, iterations, height),
      horizontal(kernel_size, sigma, iterations, width);
  const int64_t rows = strip_rows(width, 16 + 2 * vertical.radius()), strips = strip_count(height, rows);
  for_each_task(batch * strips, [&](int64_t task) {
    const int64_t b = task / strips, begin = task % strips * rows, end = std::min(begin + rows, height);
    if (from.type == ScalarType::Double)
      FASTINPAINT_DISPATCH(edge_priority_strip<double>, from, to, vertical, horizontal, b, begin, end);
    else
      FASTINPAINT_DISPATCH(edge_priority_strip<float>, from, to, vertical, horizontal, b, begin, end);
  });
  return priority;
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("edge_priority", TORCH_BOX(&fastinpaint::edge_priority));
}
