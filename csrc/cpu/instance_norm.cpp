#include "cpu/instance_norm.h"

#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cpu/blur_taps.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"

#define FASTINPAINT_KERNEL "cpu/instance_norm.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

using torch::headeronly::MemoryFormat;

// The map itself if the elements of each row lie side by side, else a copy in the layout.
Tensor readable(const Tensor& map, bool channels_last) {
  const bool lanes = !channels_last || map.size(1) == 1 || map.stride(1) == 1;
  if (lanes && (map.size(3) == 1 || map.stride(3) == (channels_last ? map.size(1) : 1))) return map;
  return torch::stable::contiguous(map,
                                   channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// A dense map (B, C, height, width) in the dtype of `like`.
Tensor new_map(const Tensor& like, bool channels_last, int64_t height, int64_t width) {
  const int64_t batch = like.size(0), channels = like.size(1);
  if (!channels_last) return torch::stable::new_empty(like, {batch, channels, height, width});
  return channels_first(torch::stable::new_empty(like, {batch, height, width, channels}));
}

// A tensor of the caller's, or none, dense and alive.
template <class Real>
class Vector {
 public:
  Vector(const std::optional<Tensor>& tensor, const char* name, ScalarType type, int64_t size,
         const char* why) {
    if (!tensor) return;
    check_cpu(*tensor, name);
    check_type(*tensor, type, name);
    check_dim(*tensor, 1, name, why);
    check_size(*tensor, 0, size, name, why);
    dense_ = torch::stable::contiguous(*tensor);
  }

  const Real* data() const { return dense_ ? static_cast<const Real*>(dense_->const_data_ptr()) : nullptr; }

 private:
  std::optional<Tensor> dense_;
};

ScalarType real_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_map(const Tensor& map, const char* name) {
  check_cpu(map, name);
  check_dim(map, 4, name, "(B, C, H, W)");
}

// Another map for x, `padding` larger on every side.
void check_companion(const Tensor& map, const char* name, const Tensor& x, int64_t padding) {
  check_map(map, name);
  check_type(map, x.scalar_type(), name);
  check_size(map, 0, x.size(0), name, "the batch of x");
  check_size(map, 1, x.size(1), name, "the channels of x");
  check_size(map, 2, x.size(2) + 2 * padding, name, "the height of x and its padding");
  check_size(map, 3, x.size(3) + 2 * padding, name, "the width of x and its padding");
}

void check_input(const Tensor& x, int64_t padding) {
  check_map(x, "x");
  check_floating(x, "x");
  STD_TORCH_CHECK(x.size(2) * x.size(3) > 1, "x must hold at least 2 pixels in each channel, got shape ",
                  shape_of(x));
  STD_TORCH_CHECK(padding >= 0 && padding < std::min(x.size(2), x.size(3)),
                  "padding must be less than height and width, got ", padding, ", ", shape_of(x));
}

// Calls visit with a null pointer of the element type.
template <class Visit>
void visit_floating(ScalarType type, const Visit& visit) {
  if (type == ScalarType::Float) return visit(static_cast<float*>(nullptr));
  if (type == ScalarType::Double) return visit(static_cast<double*>(nullptr));
  if (type == ScalarType::BFloat16) return visit(static_cast<BFloat16*>(nullptr));
  visit(static_cast<Half*>(nullptr));
}

// Calls visit with a null pointer of the element type of x and the operands of both directions: x (B, C, H,
// W), readable; the residual that counts or none, readable; statistics (B, C), dense; the caller's
// parameters.
template <class Visit>
void visit_operands(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& mean,
                    const Tensor& rstd, const std::optional<Tensor>& weight,
                    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, bool relu,
                    const Visit& visit) {
  const std::optional<TensorView> added = residual ? std::optional(TensorView(*residual)) : std::nullopt;
  const ScalarType real = real_type(x);
  visit_floating(x.scalar_type(), [&](auto* type) {
    using Real =
        std::conditional_t<std::is_same_v<std::remove_pointer_t<decltype(type)>, double>, double, float>;
    const char* per_channel = "(C), a number for each channel of x";
    const Vector<Real> weights(weight, "weight", real, x.size(1), per_channel),
        biases(bias, "bias", real, x.size(1), per_channel),
        scales(scale, "scale", real, 1, "(1), a single number");
    visit(type, NormOperands<Real>{TensorView(x), added ? &*added : nullptr,
                                   const_cast<Real*>(mean.const_data_ptr<Real>()),
                                   const_cast<Real*>(rstd.const_data_ptr<Real>()), weights.data(),
                                   biases.data(), scales.data(), relu});
  });
}

// Three steps of a pass: first(group, row) and last(group, row) on strips that begin at the row,
// between(group) on what they found. A group that is one strip takes all three while the cache holds it.
template <class First, class Between, class Last>
void run_steps(const NormCut& cut, const First& first, const Between& between, const Last& last) {
  if (cut.strips == 1) {
    for_each_task(cut.groups, [&](int64_t group) {
      first(group, 0);
      between(group);
      last(group, 0);
    });
    return;
  }
  const int64_t tasks = cut.groups * cut.strips;
  for_each_task(tasks, [&](int64_t task) { first(task / cut.strips, task % cut.strips * cut.rows); });
  for_each_task(cut.groups, between);
  for_each_task(tasks, [&](int64_t task) { last(task / cut.strips, task % cut.strips * cut.rows); });
}

// Two numbers for each lane of each strip.
class StripSums {
 public:
  explicit StripSums(const NormCut& cut) : cut_(cut), values_(cut.groups * cut.strips * 2 * cut.lanes) {}

  double* first(int64_t group, int64_t row) {
    return values_.data() + (group * cut_.strips + row / cut_.rows) * 2 * cut_.lanes;
  }
  double* second(int64_t group, int64_t row) { return first(group, row) + cut_.lanes; }

 private:
  const NormCut& cut_;
  std::vector<double> values_;
};

// Merges means and sums of squared deviations of a group's strips (Chan's formula).
template <class Real>
void merge_statistics(const NormCut& cut, StripSums& strips, int64_t group, double eps, Real* mean,
                      Real* rstd) {
  for (int64_t lane = 0; lane < cut.lanes; ++lane) {
    double count = 0, centre = 0, deviations = 0;
    for (int64_t row = 0; row < cut.height; row += cut.rows) {
      const auto pixels = static_cast<double>((cut.strip_end(row) - row) * cut.width);
      const double far = strips.first(group, row)[lane] - centre, share = pixels / (count + pixels);
      deviations += strips.second(group, row)[lane] + far * far * count * share;
      centre += far * share;
      count += pixels;
    }
    mean[group * cut.lanes + lane] = static_cast<Real>(centre);
    rstd[group * cut.lanes + lane] = static_cast<Real>(1 / std::sqrt(deviations / count + eps));
  }
}

// -> output (B, C, H + 2 padding, W + 2 padding) in the layout of x; mean and 1 / deviation (B, C).
std::tuple<Tensor, Tensor, Tensor> instance_norm(const Tensor& x, std::optional<Tensor> weight,
                                                 std::optional<Tensor> bias, std::optional<Tensor> residual,
                                                 std::optional<Tensor> scale, double eps, bool relu,
                                                 int64_t padding) {
  check_input(x, padding);
  if (residual) check_companion(*residual, "residual", x, 0);
  const bool last = is_channels_last(x);
  const ScalarType real = real_type(x);
  const Tensor dense = readable(x, last);
  const std::optional<Tensor> added = residual ? std::optional(readable(*residual, last)) : std::nullopt;
  Tensor output = new_map(x, last, x.size(2) + 2 * padding, x.size(3) + 2 * padding);
  Tensor mean = torch::stable::new_empty(x, {x.size(0), x.size(1)}, real),
         rstd = torch::stable::empty_like(mean);
  const NormCut cut(dense, last, padding);
  const TensorView output_view(output);
  visit_operands(dense, added, mean, rstd, weight, bias, scale, relu, [&](auto* type, const auto& in) {
    using Type = std::remove_pointer_t<decltype(type)>;
    StripSums strips(cut);
    run_steps(
        cut,
        [&](int64_t group, int64_t row) {
          FASTINPAINT_DISPATCH(measure_strip<Type>, cut, in.x, group, row, strips.first(group, row),
                               strips.second(group, row));
        },
        [&](int64_t group) { merge_statistics(cut, strips, group, eps, in.mean, in.rstd); },
        [&](int64_t group, int64_t row) {
          FASTINPAINT_DISPATCH(normalise_strip<Type>, cut, in, output_view, group, row);
        });
  });
  return {output, mean, rstd};
}

// Adds the sums of a group's strips into those of the first.
void merge_sums(const NormCut& cut, StripSums& strips, int64_t group) {
  double* total = strips.first(group, 0);
  for (int64_t row = cut.rows; row < cut.height; row += cut.rows)
    for (int64_t i = 0; i < 2 * cut.lanes; ++i) total[i] += strips.first(group, row)[i];
}

// sums (3, C): the gradients of bias, weight and (summed by the caller) scale.
template <class Real>
void write_sums(const NormCut& cut, StripSums& strips, const NormOperands<Real>& in, Tensor& to) {
  Real* sums = to.mutable_data_ptr<Real>();
  const int64_t channels = cut.channels, batch = channels ? cut.groups * cut.lanes / channels : 0;
  const double scale = in.scale == nullptr ? 1.0 : *in.scale;
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, dot = 0;
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t i = b * channels + c, group = i / cut.lanes, lane = i % cut.lanes;
      sum += strips.first(group, 0)[lane];
      dot += strips.second(group, 0)[lane] * in.rstd[i];
    }
    sums[c] = static_cast<Real>(scale * sum);
    sums[channels + c] = static_cast<Real>(scale * dot);
    sums[2 * channels + c] = static_cast<Real>(in.weight_of(c) * dot + in.bias_of(c) * sum);
  }
}

// -> grad_x (B, C, H, W) in the layout of x; sums (3, C), see write_sums; the gradient of the residual
// (B, C, H, W), or (0) unless `residual_gradient`. `residual` counts only where the ReLU saw it.
std::tuple<Tensor, Tensor, Tensor> instance_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, std::optional<Tensor> weight,
    std::optional<Tensor> bias, std::optional<Tensor> residual, std::optional<Tensor> scale, bool relu,
    int64_t padding, bool residual_gradient) {
  check_input(x, padding);
  check_companion(grad, "grad", x, padding);
  const bool last = is_channels_last(x), seen = residual && relu && !scale;
  const ScalarType real = real_type(x);
  for (const auto& [statistic, name] : {std::pair{mean, "mean"}, std::pair{rstd, "rstd"}}) {
    check_cpu(statistic, name);
    check_type(statistic, real, name);
    check_dim(statistic, 2, name, "(B, C)");
    check_size(statistic, 0, x.size(0), name, "the batch of x");
    check_size(statistic, 1, x.size(1), name, "the channels of x");
  }
  if (seen) check_companion(*residual, "residual", x, 0);
  const Tensor dense = readable(x, last), slopes = readable(grad, last),
               means = torch::stable::contiguous(mean), deviations = torch::stable::contiguous(rstd);
  const std::optional<Tensor> added = seen ? std::optional(readable(*residual, last)) : std::nullopt;
  Tensor grad_x = new_map(x, last, x.size(2), x.size(3)),
         sums = torch::stable::new_empty(x, {3, x.size(1)}, real);
  Tensor kept = residual_gradient ? new_map(x, last, x.size(2), x.size(3)) : torch::stable::new_empty(x, {0});
  const NormCut cut(dense, last, padding);
  const TensorView grad_view(slopes), grad_x_view(grad_x);
  const std::optional<TensorView> kept_view =
      residual_gradient ? std::optional(TensorView(kept)) : std::nullopt;
  visit_operands(dense, added, means, deviations, weight, bias, scale, relu, [&](auto* type, const auto& in) {
    using Type = std::remove_pointer_t<decltype(type)>;
    StripSums strips(cut);
    run_steps(
        cut,
        [&](int64_t group, int64_t row) {
          FASTINPAINT_DISPATCH(sum_gradient_strip<Type>, cut, in, grad_view,
                               kept_view ? &*kept_view : nullptr, group, row, strips.first(group, row),
                               strips.second(group, row));
        },
        [&](int64_t group) { merge_sums(cut, strips, group); },
        [&](int64_t group, int64_t row) {
          FASTINPAINT_DISPATCH(differentiate_strip<Type>, cut, in, grad_view, grad_x_view, group, row,
                               strips.first(group, 0), strips.second(group, 0));
        });
    write_sums(cut, strips, in, sums);
  });
  return {grad_x, sums, kept};
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("instance_norm", TORCH_BOX(&fastinpaint::instance_norm));
  m.impl("instance_norm_backward", TORCH_BOX(&fastinpaint::instance_norm_backward));
}
