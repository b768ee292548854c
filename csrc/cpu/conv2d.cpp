#include "cpu/conv2d.h"

#include <optional>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"
#include "cpu/tensor_view.h"

#define FASTINPAINT_KERNEL "cpu/conv2d.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

using torch::headeronly::MemoryFormat;

// The weights (first, second, k, k) of a convolution from `second` to `first` channels, or of its transpose.
WeightView<const float> view_weight(const Tensor& weight, bool transposed) {
  const auto* data = static_cast<const float*>(weight.const_data_ptr());
  const int64_t row = weight.stride(2), column = weight.stride(3), last = weight.size(2) - 1;
  if (!transposed) return {data, weight.stride(0), weight.stride(1), row, column};
  return {data + last * (row + column), weight.stride(1), weight.stride(0), -row, -column};
}

// Packs a group of output channels; WinogradPlan::packed_weight has the layout.
void pack_weight(const WinogradPlan& p, const WeightView<const float>& weight, int64_t channel,
                 float* packed) {
  float* to = packed + p.packed_weight(channel);
  const float* first = weight.data + channel * weight.outer;
  for (int64_t i = 0; i < p.inner; ++i)
    for (int64_t y = 0; y < p.kernel; ++y)
      for (int64_t x = 0; x < p.kernel; ++x, to += kChannelGroup) {
        const float* from = first + i * weight.inner + y * weight.row + x * weight.column;
        for (int64_t lane = 0; lane < kChannelGroup; ++lane) to[lane] = from[lane * weight.outer];
      }
}

// Calls transform(begin, end) with a few tiles of a block at a time.
template <class Transform>
void for_tiles(int64_t first, int64_t count, const Transform& transform) {
  constexpr int64_t kStep = 8;
  for_each_task((count + kStep - 1) / kStep, [&](int64_t task) {
    const int64_t begin = first + task * kStep;
    transform(begin, std::min(begin + kStep, first + count));
  });
}

template <int Taps>
void convolve(const WinogradPlan& p, const float* input, const WeightView<const float>& weight,
              const float* bias, bool relu, float* output) {
  const std::vector<float> zeros(p.inner);
  const int64_t tiles = p.tile_count();
  float* packed = scratch<PackedWeightMemory, float>(p.packed_weight(p.outer));
  float* values = scratch<WinogradInputMemory, float>(kTileArea * p.input_step());
  for_each_task(p.outer / kChannelGroup,
                [&](int64_t group) { pack_weight(p, weight, group * kChannelGroup, packed); });
  for (int64_t first = 0; first < tiles; first += p.block) {
    const int64_t count = std::min(p.block, tiles - first);
    for_tiles(first, count, [&](int64_t begin, int64_t end) {
      FASTINPAINT_DISPATCH(transform_input, p, input, zeros.data(), first, begin, end, values);
    });
    // Each task transforms the weights of its channels: more tasks than threads, but not many tiles short.
    const int64_t wanted = 4 * torch::stable::get_num_threads() / p.outer_blocks() + 1;
    const int64_t pieces = std::clamp<int64_t>(count / (2 * p.kTiles), 1, wanted);
    const int64_t piece = ((count + pieces - 1) / pieces + p.kTiles - 1) / p.kTiles * p.kTiles;
    const int64_t pieces_left = (count + piece - 1) / piece;
    for_each_task(p.outer_blocks() * pieces_left, [&](int64_t task) {
      const int64_t begin = first + task % pieces_left * piece, end = std::min(begin + piece, first + count);
      FASTINPAINT_DISPATCH(convolve_tiles<Taps>, p, packed, bias, relu, values, first, begin, end,
                           task / pieces_left * p.kOuter, output);
    });
  }
}

// The gradient of the weights from the input and the gradient of the output.
template <int Taps>
void differentiate_weight(const WinogradPlan& p, const float* input, const float* gradient,
                          const WeightView<float>& weight) {
  constexpr int64_t kRows = 96;  // input channels of one task
  const std::vector<float> zeros(std::max(p.inner, p.outer));
  const int64_t tiles = p.tile_count(), pieces = (p.inner + kRows - 1) / kRows;
  float* values = scratch<WinogradInputMemory, float>(kTileArea * p.input_step());
  float* slopes = scratch<WinogradGradientMemory, float>(kTileArea * p.gradient_step());
  float* products = scratch<WinogradPairMemory, float>(kTileArea * p.pair_step());
  if (tiles == 0) std::fill_n(products, kTileArea * p.pair_step(), 0.0f);
  for (int64_t first = 0; first < tiles; first += p.block) {
    const int64_t count = std::min(p.block, tiles - first);
    for_tiles(first, count, [&](int64_t begin, int64_t end) {
      FASTINPAINT_DISPATCH(transform_input, p, input, zeros.data(), first, begin, end, values);
      FASTINPAINT_DISPATCH(transform_gradient<kTileSide + 1 - Taps>, p, gradient, zeros.data(), first, begin,
                           end, slopes);
    });
    for_each_task(kTileArea * pieces, [&](int64_t task) {
      const int64_t position = task / pieces, begin = task % pieces * kRows;
      FASTINPAINT_DISPATCH(multiply_tiles, p, values + position * p.input_step(),
                           slopes + position * p.gradient_step(), count, begin,
                           std::min(begin + kRows, p.inner), first > 0, products + position * p.pair_step());
    });
  }
  for_each_task(p.inner, [&](int64_t channel) {
    FASTINPAINT_DISPATCH(transform_weight_gradient<Taps>, p, products, channel, weight);
  });
}

void check_float(const Tensor& tensor, const char* name, int64_t dim, const char* wanted) {
  check_cpu(tensor, name);
  check_dim(tensor, dim, name, wanted);
  check_type(tensor, ScalarType::Float, name);
}

// The convolution of x (B, inner, H, W) with zeros around, or the transpose of one, in the layout of x.
Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t padding,
           int64_t dilation, bool relu, bool transposed) {
  const int64_t kernel = weight.size(2), outer = weight.size(transposed ? 1 : 0);
  const WinogradPlan plan(x, outer, kernel, padding, dilation);
  STD_TORCH_CHECK(plan.out_height > 0 && plan.out_width > 0,
                  "a map with its padding must be as large as the kernel, ", dilation * (kernel - 1) + 1,
                  " pixels, got shape ", shape_of(x), " and padding ", padding);
  const Tensor dense = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  const Tensor map = torch::stable::new_empty(x, {plan.batch, plan.out_height, plan.out_width, outer});
  const auto* input = static_cast<const float*>(dense.const_data_ptr());
  const auto* offset = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  auto* output = static_cast<float*>(map.data_ptr());
  const WeightView<const float> view = view_weight(weight, transposed);
  if (kernel == 3)
    convolve<3>(plan, input, view, offset, relu, output);
  else
    convolve<5>(plan, input, view, offset, relu, output);
  return is_channels_last(x) ? channels_first(map) : torch::stable::contiguous(channels_first(map));
}

void check_geometry(const Tensor& weight, int64_t padding, int64_t dilation) {
  check_float(weight, "weight", 4, "(out, in, k, k)");
  const int64_t kernel = weight.size(2);
  STD_TORCH_CHECK((kernel == 3 || kernel == 5) && weight.size(3) == kernel,
                  "weight must be of 3 x 3 or 5 x 5 pixels, got shape ", shape_of(weight));
  for (const int64_t axis : {0, 1})
    STD_TORCH_CHECK(weight.size(axis) > 0 && weight.size(axis) % kChannelGroup == 0,
                    "numbers of channels must be multiples of ", kChannelGroup, ", got shape ",
                    shape_of(weight));
  STD_TORCH_CHECK(dilation >= 1 && padding >= 0 && padding <= dilation * (kernel - 1),
                  "dilation must be at least 1 and padding from 0 to dilation (k - 1), got ", dilation,
                  " and ", padding);
}

// (B, C, H, W), (out, C, k, k), (out) -> (B, out, H + 2 padding - dilation (k - 1), W + ...).
Tensor conv2d(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, int64_t padding,
              int64_t dilation, bool relu) {
  check_float(x, "x", 4, "(B, C, H, W)");
  check_geometry(weight, padding, dilation);
  check_size(weight, 1, x.size(1), "weight", "the channels of x");
  if (bias) {
    check_float(*bias, "bias", 1, "(out), a number for each output channel");
    check_size(*bias, 0, weight.size(0), "bias", "the output channels");
    bias = torch::stable::contiguous(*bias);
  }
  return run(x, weight, bias, padding, dilation, relu, false);
}

// The gradient of x from that of its convolution, which had this padding.
Tensor conv2d_backward(const Tensor& grad, const Tensor& weight, int64_t padding, int64_t dilation) {
  check_float(grad, "grad", 4, "(B, out, H, W)");
  check_geometry(weight, padding, dilation);
  check_size(weight, 0, grad.size(1), "weight", "the channels of grad");
  return run(grad, weight, std::nullopt, dilation * (weight.size(2) - 1) - padding, dilation, false, true);
}

// The gradient of the weights from that of their convolution, which had this padding.
Tensor conv2d_weight_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, int64_t padding,
                              int64_t dilation) {
  check_float(grad, "grad", 4, "(B, out, H, W)");
  check_float(x, "x", 4, "(B, C, H, W)");
  check_geometry(weight, padding, dilation);
  check_size(weight, 0, grad.size(1), "weight", "the channels of grad");
  check_size(weight, 1, x.size(1), "weight", "the channels of x");
  const int64_t kernel = weight.size(2);
  const WinogradPlan plan(x, weight.size(0), kernel, padding, dilation);
  check_size(grad, 0, plan.batch, "grad", "the batch of x");
  check_size(grad, 2, plan.out_height, "grad", "the height of the convolution");
  check_size(grad, 3, plan.out_width, "grad", "the width of the convolution");
  const Tensor input = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
  const Tensor slopes = torch::stable::contiguous(grad, MemoryFormat::ChannelsLast);
  Tensor result = torch::stable::empty_like(weight);
  const WeightView<float> view{static_cast<float*>(result.data_ptr()), result.stride(0), result.stride(1),
                               result.stride(2), result.stride(3)};
  const auto* from = static_cast<const float*>(input.const_data_ptr());
  const auto* gradient = static_cast<const float*>(slopes.const_data_ptr());
  if (kernel == 3)
    differentiate_weight<3>(plan, from, gradient, view);
  else
    differentiate_weight<5>(plan, from, gradient, view);
  return result;
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&fastinpaint::conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&fastinpaint::conv2d_backward));
  m.impl("conv2d_weight_backward", TORCH_BOX(&fastinpaint::conv2d_weight_backward));
}
