#include <cmath>
#include <numeric>
#include <vector>

#include "checks.h"
#include "cpu/parallel.h"
#include "cpu/patch_attention.h"
#include "cpu/simd/isa.h"

#define FASTINPAINT_KERNEL "cpu/patch_attention.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

constexpr float kNormFloor = 1e-4f;

ImageView image_of(const Tensor& batch, int64_t index) {
  const float* data = static_cast<const float*>(batch.data_ptr()) + index * batch.stride(0);
  return {data, batch.stride(1), batch.stride(2), batch.stride(3)};
}

// The image as keys.
struct Keys {
  const PatchLayout& s;
  std::vector<float> panels, pixels, norm, scale, bias;  // see KeyView; norm: squared, [key row][key column]

  explicit Keys(const PatchLayout& s)
      : s(s),
        panels(s.height * s.key_panels_row()),
        pixels(s.height * s.key_pixels_row()),
        norm(s.rows.count * s.columns.count),
        scale(s.rows.count * s.key_stride),
        bias(s.key_stride, -INFINITY) {
    std::fill_n(bias.begin(), s.columns.count, 0.0f);
  }

  KeyView view() const { return {panels.data(), pixels.data(), scale.data(), bias.data()}; }

  void pack(const ImageView& image) {
    for_each_task(s.height, [&](int64_t row) { pack_row(image, row); });
    std::fill(norm.begin(), norm.end(), 0.0f);
    for (int64_t row = 0; row < s.height; ++row) add_norms(row);
    for (int64_t ky = 0; ky < s.rows.count; ++ky)
      for (int64_t kx = 0; kx < s.columns.count; ++kx)
        scale[ky * s.key_stride + kx] =
            s.scale / std::sqrt(std::max(norm[ky * s.columns.count + kx], kNormFloor * kNormFloor));
  }

 private:
  void pack_row(const ImageView& image, int64_t row) {
    for (const Phase& phase : s.phases) {
      for (int64_t i = 0; i < phase.count; ++i) {
        const float* from = image.data + row * image.row + s.column(phase, i) * image.column;
        float* pixel = pixels.data() + row * s.key_pixels_row() + (phase.packed + i) * s.channel_stride;
        float* panel = panels.data() + row * s.key_panels_row() +
                       (phase.panel + i / s.panel_width) * s.channels * s.panel_width + i % s.panel_width;
        for (int64_t c = 0; c < s.channels; ++c)
          pixel[c] = panel[c * s.panel_width] = from[c * image.channel];
      }
    }
  }

  void add_norms(int64_t row) {
    for (const Phase& phase : s.phases) {
      for (int64_t i = 0; i < phase.count; ++i) {
        const float* pixel = pixels.data() + row * s.key_pixels_row() + (phase.packed + i) * s.channel_stride;
        float square = 0;
        for (int64_t c = 0; c < s.channels; ++c) square += pixel[c] * pixel[c];
        s.for_each_key(row, phase, i, [&](int64_t key) { norm[key] += square; });
      }
    }
  }
};

struct Call {
  PatchLayout s;
  int64_t batch;
  std::vector<Strip> strips;
  int64_t tasks;

  Call(const Tensor& features, int64_t kernel_size, int64_t stride, double softmax_scale, bool overlap_add)
      : s({features.size(1), features.size(2), features.size(3), kernel_size, stride,
           static_cast<float>(softmax_scale), overlap_add},
          FASTINPAINT_DISPATCH(float_lanes)),
        batch(features.size(0)) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t across = ceil_div(s.width, s.strip_width);
    const int64_t height = ceil_div(s.height, std::min(s.height, threads / std::gcd(threads, across)));
    for (int64_t top = 0; top < s.height; top += height)
      for (int64_t left = 0; left < s.width; left += s.strip_width)
        strips.emplace_back(s, top, std::min(top + height, s.height), left,
                            std::min(left + s.strip_width, s.width));
    tasks = std::min<int64_t>(threads, strips.size());
  }

  // Calls body(task, strip) for every strip; which task has which strip depends on the number of threads
  // alone.
  template <class Body>
  void run(const Body& body) const {
    for_each_task(tasks, [&](int64_t task) {
      for (size_t i = task; i < strips.size(); i += tasks) body(task, strips[i]);
    });
  }
};

void check(const Tensor& tensor, const char* name, int64_t kernel_size, int64_t stride) {
  check_cpu(tensor, name);
  check_type(tensor, ScalarType::Float, name);
  check_dim(tensor, 4, name, "(B, C, H, W)");
  STD_TORCH_CHECK(kernel_size % 2 == 1 && kernel_size > 0 && kernel_size <= kMaxPatch,
                  "kernel_size must be odd and from 1 to ", kMaxPatch, ", got ", kernel_size);
  STD_TORCH_CHECK(stride >= 1, "stride must be at least 1, got ", stride);
}

Tensor new_image_like(const Tensor& features) {
  return torch::stable::new_empty(
      features, {features.size(0), features.size(1), features.size(2), features.size(3)}, ScalarType::Float);
}

Tensor patch_attention(const Tensor& features, int64_t kernel_size, int64_t stride, double softmax_scale,
                       bool overlap_add) {
  check(features, "features", kernel_size, stride);
  Tensor output = new_image_like(features);
  if (output.numel() == 0) return output;
  const Call call(features, kernel_size, stride, softmax_scale, overlap_add);
  const PatchLayout& s = call.s;
  const int64_t scratch = s.workspace_size(/*backward=*/false);
  std::vector<float> workspace(call.tasks * scratch);
  Keys keys(s);
  for (int64_t b = 0; b < call.batch; ++b) {
    const ImageView image = image_of(features, b);
    float* to = static_cast<float*>(output.data_ptr()) + b * s.channels * s.height * s.width;
    keys.pack(image);
    call.run([&](int64_t task, const Strip& strip) {
      FASTINPAINT_DISPATCH(forward_strip, s, strip, keys.view(), image, workspace.data() + task * scratch,
                           to);
    });
  }
  return output;
}

// Adds what the pixels receive as parts of keys: task by task, and through the norms.
struct KeyGradients {
  const PatchLayout& s;
  int64_t tasks;
  std::vector<float> pixels;  // [task][row][packed column][channel_stride]
  std::vector<float> norms;   // [task][key row][key_stride], times minus the norm

  KeyGradients(const PatchLayout& s, int64_t tasks)
      : s(s), tasks(tasks), pixels(tasks * pixels_size()), norms(tasks * norms_size()) {}

  int64_t pixels_size() const { return s.height * s.key_pixels_row(); }
  int64_t norms_size() const { return s.rows.count * s.key_stride; }

  void clear() {
    std::fill(pixels.begin(), pixels.end(), 0.0f);
    std::fill(norms.begin(), norms.end(), 0.0f);
  }

  // grad_features: (C, H, W)
  void add_to(const Keys& keys, float* grad_features) const {
    for_each_task(s.height, [&](int64_t row) {
      for (const Phase& phase : s.phases)
        for (int64_t i = 0; i < phase.count; ++i) add_pixel(keys, row, phase, i, grad_features);
    });
  }

 private:
  // d(patch / norm) / d(norm): below the floor the norm is a constant.
  float norm_factor(const Keys& keys, int64_t row, const Phase& phase, int64_t i) const {
    float factor = 0;
    s.for_each_key(row, phase, i, [&](int64_t key) {
      if (keys.norm[key] < kNormFloor * kNormFloor) return;
      const int64_t place = key / s.columns.count * s.key_stride + key % s.columns.count;
      float sum = 0;
      for (int64_t task = 0; task < tasks; ++task) sum += norms[task * norms_size() + place];
      factor -= sum / keys.norm[key];
    });
    return factor;
  }

  void add_pixel(const Keys& keys, int64_t row, const Phase& phase, int64_t i, float* grad_features) const {
    const float factor = norm_factor(keys, row, phase, i);
    const int64_t place = row * s.key_pixels_row() + (phase.packed + i) * s.channel_stride;
    for (int64_t c = 0; c < s.channels; ++c) {
      float sum = factor * keys.pixels[place + c];
      for (int64_t task = 0; task < tasks; ++task) sum += pixels[task * pixels_size() + place + c];
      grad_features[(c * s.height + row) * s.width + s.column(phase, i)] += sum;
    }
  }
};

Tensor patch_attention_backward(const Tensor& grad_output, const Tensor& features, int64_t kernel_size,
                                int64_t stride, double softmax_scale, bool overlap_add) {
  check(features, "features", kernel_size, stride);
  check(grad_output, "grad_output", kernel_size, stride);
  for (int64_t axis = 0; axis < 4; ++axis)
    check_size(grad_output, axis, features.size(axis), "grad_output", "as features");
  Tensor grad_features = new_image_like(features);
  if (grad_features.numel() == 0) return grad_features;
  const Call call(features, kernel_size, stride, softmax_scale, overlap_add);
  const PatchLayout& s = call.s;
  const int64_t scratch = s.workspace_size(/*backward=*/true);
  std::vector<float> workspace(call.tasks * scratch);
  Keys keys(s);
  KeyGradients grads(s, call.tasks);
  for (int64_t b = 0; b < call.batch; ++b) {
    const ImageView image = image_of(features, b), outputs = image_of(grad_output, b);
    float* to = static_cast<float*>(grad_features.data_ptr()) + b * s.channels * s.height * s.width;
    keys.pack(image);
    grads.clear();
    call.run([&](int64_t task, const Strip& strip) {
      FASTINPAINT_DISPATCH(
          backward_strip, s, strip, keys.view(), image, outputs, workspace.data() + task * scratch, to,
          grads.pixels.data() + task * grads.pixels_size(), grads.norms.data() + task * grads.norms_size());
    });
    grads.add_to(keys, to);
  }
  return grad_features;
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("patch_attention", TORCH_BOX(&fastinpaint::patch_attention));
  m.impl("patch_attention_backward", TORCH_BOX(&fastinpaint::patch_attention_backward));
}
