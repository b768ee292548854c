#include <vector>

#include "checks.h"
#include "cpu/blur_taps.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"
#include "cpu/tensor_view.h"

namespace fastinpaint {

// Elements of a row of the maps that the forward pass saves: whole vectors of any instruction set.
inline int64_t loss_pitch(int64_t width) {
  return (width + 63) / 64 * 64;
}

// One level of the pyramid.
struct LossScale {
  TensorView prediction, edges;  // (B, 6, h, w), (B, 1, h, w)
  int64_t height, width;
  float* priority;  // (B, h, loss_pitch(w))
  int16_t* signs;   // (B, h, loss_pitch(w)); see add_errors
  BlurTaps vertical, horizontal;
  std::vector<int32_t> columns;  // of the image, for each of the w
};

struct LossSums {
  double edge = 0, gradient = 0, weight = 0;  // sums of priority * error, error, priority
};

}  // namespace fastinpaint

#define FASTINPAINT_KERNEL "cpu/structure_loss.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

// A strip of one image at one scale.
struct LossTask {
  int64_t scale, b, begin, end;
};

// Image by image, so that the image is still near by when the next scale reads it.
std::vector<LossTask> loss_tasks(const std::vector<Tensor>& predictions) {
  std::vector<LossTask> tasks;
  for (int64_t b = 0; b < (predictions.empty() ? 0 : predictions[0].size(0)); ++b)
    for (size_t scale = 0; scale < predictions.size(); ++scale) {
      const int64_t height = predictions[scale].size(2), rows = strip_rows(predictions[scale].size(3), 16);
      for (int64_t begin = 0; begin < height; begin += rows)
        tasks.push_back({static_cast<int64_t>(scale), b, begin, std::min(begin + rows, height)});
    }
  return tasks;
}

// Elements that the forward pass saves for one scale.
int64_t saved_size(const Tensor& prediction) {
  return prediction.size(0) * prediction.size(2) * loss_pitch(prediction.size(3));
}

int64_t saved_size(const std::vector<Tensor>& predictions) {
  int64_t total = 0;
  for (const Tensor& prediction : predictions) total += saved_size(prediction);
  return total;
}

void check_arguments(const Tensor& image, const std::vector<Tensor>& predictions,
                     const std::vector<Tensor>& edges) {
  check_cpu(image, "image");
  check_floating(image, "image");
  check_dim(image, 4, "image", "(B, 3, H, W)");
  check_size(image, 1, 3, "image", "RGB");
  STD_TORCH_CHECK(predictions.size() == edges.size(), "wanted one edge map for each of ", predictions.size(),
                  " predictions, got ", edges.size());
  for (size_t i = 0; i < predictions.size(); ++i) {
    check_cpu(predictions[i], "prediction");
    check_floating(predictions[i], "prediction");
    check_dim(predictions[i], 4, "prediction", "(B, 6, h, w)");
    check_size(predictions[i], 0, image.size(0), "prediction", "the batch of the image");
    check_size(predictions[i], 1, 6, "prediction", "gradients of RGB");
    STD_TORCH_CHECK(predictions[i].size(2) > 1 && predictions[i].size(3) > 1,
                    "sides must be at least 2, got ", shape_of(predictions[i]));
    check_cpu(edges[i], "edges");
    if (edges[i].scalar_type() != ScalarType::Bool) check_floating(edges[i], "edges");
    check_dim(edges[i], 4, "edges", "(B, 1, h, w)");
    check_size(edges[i], 1, 1, "edges", "one channel");
    for (int64_t axis : {0, 2, 3})
      check_size(edges[i], axis, predictions[i].size(axis), "edges", "the size of its prediction");
  }
}

std::vector<LossScale> loss_scales(const Tensor& image, const std::vector<Tensor>& predictions,
                                   const std::vector<Tensor>& edges, float* priority, int16_t* signs) {
  std::vector<LossScale> scales;
  for (size_t i = 0; i < predictions.size(); ++i) {
    const int64_t height = predictions[i].size(2), width = predictions[i].size(3);
    std::vector<int32_t> columns(width);
    for (int64_t x = 0; x < width; ++x) columns[x] = static_cast<int32_t>(x * image.size(3) / width);
    scales.push_back({TensorView(predictions[i]), TensorView(edges[i]), height, width, priority, signs,
                      BlurTaps(5, 1.0, 2, height), BlurTaps(5, 1.0, 2, width), std::move(columns)});
    priority += saved_size(predictions[i]);
    signs += saved_size(predictions[i]);
  }
  return scales;
}

// -> terms (scales, 2) float32; and for the backward pass: coefficients (scales, 2) float64 (terms =
// coefficients * sums), priority float32 and signs int16, the maps of all scales one after the other.
std::tuple<Tensor, Tensor, Tensor, Tensor> structure_loss(const Tensor& image,
                                                          std::vector<Tensor> predictions,
                                                          std::vector<Tensor> edges, double edge_alpha,
                                                          double grad_alpha) {
  check_arguments(image, predictions, edges);
  const auto n_scales = static_cast<int64_t>(predictions.size()), saved = saved_size(predictions);
  Tensor terms = torch::stable::new_empty(image, {n_scales, 2}, ScalarType::Float);
  Tensor coefficients = torch::stable::new_empty(image, {n_scales, 2}, ScalarType::Double);
  Tensor priority = torch::stable::new_empty(image, {saved}, ScalarType::Float);
  Tensor signs = torch::stable::new_empty(image, {saved}, ScalarType::Short);
  const auto scales = loss_scales(image, predictions, edges, static_cast<float*>(priority.data_ptr()),
                                  static_cast<int16_t*>(signs.data_ptr()));
  const std::vector<LossTask> tasks = loss_tasks(predictions);
  std::vector<LossSums> partial(tasks.size());
  const TensorView source(image);
  for_each_task(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const LossTask& task = tasks[i];
    const LossSums result =
        FASTINPAINT_DISPATCH(structure_loss_strip, source, scales[task.scale], task.b, task.begin, task.end);
    partial[i] = result;  // GCC's ThreadSanitizer does not see a struct that is returned right into memory
  });
  std::vector<LossSums> sums(n_scales);
  for (size_t i = 0; i < tasks.size(); ++i) {
    LossSums& sum = sums[tasks[i].scale];
    sum.edge += partial[i].edge;
    sum.gradient += partial[i].gradient;
    sum.weight += partial[i].weight;
  }
  auto* term = static_cast<float*>(terms.data_ptr());
  auto* coefficient = static_cast<double*>(coefficients.data_ptr());
  for (int64_t i = 0; i < n_scales; ++i) {
    const double weight = edge_alpha * sums[i].weight;  // without a single edge the term is 0, not 0 / 0
    coefficient[2 * i] = edge_alpha / (weight > 0 ? weight : 1) / 6;
    coefficient[2 * i + 1] = grad_alpha / static_cast<double>(std::max(predictions[i].numel(), int64_t{1}));
    term[2 * i] = static_cast<float>(coefficient[2 * i] * sums[i].edge);
    term[2 * i + 1] = static_cast<float>(coefficient[2 * i + 1] * sums[i].gradient);
  }
  return {terms, coefficients, priority, signs};
}

// grad_terms (scales, 2) -> the gradients with respect to the predictions, in their layouts.
std::vector<Tensor> structure_loss_backward(const Tensor& grad_terms, const Tensor& coefficients,
                                            const Tensor& priority, const Tensor& signs,
                                            std::vector<Tensor> predictions) {
  const Tensor incoming = torch::stable::contiguous(grad_terms);
  const auto n_scales = static_cast<int64_t>(predictions.size());
  check_type(incoming, ScalarType::Float, "grad_terms");
  STD_TORCH_CHECK(incoming.numel() == 2 * n_scales, "grad_terms must be (scales, 2), got ",
                  shape_of(incoming));
  STD_TORCH_CHECK(priority.numel() == saved_size(predictions), "priority is not of these predictions");
  std::vector<Tensor> results;
  std::vector<TensorView> gradients;
  std::vector<int64_t> offsets = {0};
  for (const Tensor& prediction : predictions) {
    results.push_back(torch::stable::empty_like(prediction));
    gradients.emplace_back(results.back());
    offsets.push_back(offsets.back() + saved_size(prediction));
  }
  const std::vector<LossTask> tasks = loss_tasks(predictions);
  const auto* grad = static_cast<const float*>(incoming.data_ptr());
  const auto* coefficient = static_cast<const double*>(coefficients.data_ptr());
  const auto* weights = static_cast<const float*>(priority.data_ptr());
  const auto* codes = static_cast<const int16_t*>(signs.data_ptr());
  for_each_task(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const auto& [scale, b, begin, end] = tasks[i];
    const auto edge = static_cast<float>(coefficient[2 * scale] * grad[2 * scale]);
    const auto gradient = static_cast<float>(coefficient[2 * scale + 1] * grad[2 * scale + 1]);
    FASTINPAINT_DISPATCH(structure_loss_backward_strip, gradients[scale], weights + offsets[scale],
                         codes + offsets[scale], edge, gradient, b, begin, end);
  });
  return results;
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("structure_loss", TORCH_BOX(&fastinpaint::structure_loss));
  m.impl("structure_loss_backward", TORCH_BOX(&fastinpaint::structure_loss_backward));
}
