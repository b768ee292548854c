// Canny edges on CUDA devices, bit for bit those of the CPU; canny_kernels.cuh says how.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "canny_arguments.h"
#include "canny_launch.h"

namespace fastinpaint {
namespace {

// Whether kernels may start before the one before them has ended: FASTINPAINT_EARLY_LAUNCH=1, from compute
// capability 9.0 on. Off until a GPU has shown that it pays.
bool launches_early(int32_t device) {
  static const bool wanted = [] {
    const char* value = std::getenv("FASTINPAINT_EARLY_LAUNCH");
    return value != nullptr && value[0] == '1';
  }();
  if (!wanted) return false;
  int major = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9;
}

// Launches on torch's current stream of a device.
class StreamLauncher {
 public:
  explicit StreamLauncher(int32_t device) : launches_early_(launches_early(device)) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), unsigned blocks, int shared_bytes,
              const Arguments&... arguments) const {
    if (shared_bytes > 48 * 1024) {  // more has to be asked for, and room for as many blocks as can be
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                          cudaSharedmemCarveoutMaxShared));
    }
    kernel<<<blocks, kThreads, shared_bytes, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // The kernel may start before those launched before have ended; it waits for them itself.
  template <class... Parameters, class... Arguments>
  void launch_early(void (*kernel)(Parameters...), unsigned blocks, int shared_bytes,
                    const Arguments&... arguments) const {
    if (!launches_early_) return launch(kernel, blocks, shared_bytes, arguments...);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = 1;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

 private:
  cudaStream_t stream_;
  bool launches_early_;
};

void check_on_device(const Tensor& tensor, const Tensor& image, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == image.get_device_index(), name,
                  " must lie on the image's CUDA device");
}

template <class Pixel>
void run(const CannyLaunch& launch, const Tensor& image) {
  const Tensor memory = torch::stable::new_empty(image, {launch.workspace_bytes()}, ScalarType::Byte);
  launch.run<Pixel>(memory.mutable_data_ptr(), StreamLauncher(image.get_device_index()));
}

CannyJob describe(const Tensor& image, const std::optional<Tensor>& mask, double low, double high) {
  CannyJob job{};
  job.image = image.const_data_ptr();
  for (int axis = 0; axis < 4; ++axis) job.image_strides[axis] = image.stride(axis);
  job.channels = int(image.size(1));
  job.image_height = int(image.size(2));
  job.image_width = int(image.size(3));
  job.low = low_threshold(low);
  job.high = float(high);
  if (mask) {
    job.mask = static_cast<const unsigned char*>(mask->const_data_ptr());
    job.mask_strides[0] = mask->size(0) == 1 ? 0 : mask->stride(0);
    job.mask_strides[1] = mask->stride(2);
    job.mask_strides[2] = mask->stride(3);
  }
  return job;
}

void launch_scales(const Tensor& image, const CannyLaunch& launch) {
  STD_TORCH_CHECK(launch.blocks() <= kMaxBlocks, "a batch of ", image.size(0), " such images needs ",
                  launch.blocks(), " blocks, a launch takes ", kMaxBlocks);
  switch (image.scalar_type()) {
    case ScalarType::Half:
      return run<torch::headeronly::Half>(launch, image);
    case ScalarType::BFloat16:
      return run<torch::headeronly::BFloat16>(launch, image);
    default:
      return run<float>(launch, image);
  }
}

std::vector<Tensor> detect(const Tensor& image, const std::vector<int64_t>& sizes,
                           const std::vector<double>& weights, double low, double high,
                           const std::optional<Tensor>& mask) {
  check_on_device(image, image, "image");
  const ScalarType type = image.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
                  "image must be Float, Half or BFloat16, got ", torch::headeronly::toString(type));
  check_canny(image, weights);
  if (mask) {
    check_on_device(*mask, image, "mask");
    check_canny_mask(*mask, image);
  }
  const torch::stable::accelerator::DeviceGuard guard(image.get_device_index());
  const std::vector<Tensor> maps = new_edge_maps(image, sizes);
  std::vector<CannyTarget> targets;
  for (const Tensor& map : maps) {
    for (const Tensor* tensor : {&image, &map})
      STD_TORCH_CHECK(std::max(tensor->size(2), tensor->size(3)) <= kMaxSide, "sides must be at most ",
                      kMaxSide, " pixels, got shape ", shape_of(*tensor));
    if (map.numel() > 0) targets.push_back({map.size(2), map.size(3), map.mutable_data_ptr()});
  }
  const CannyJob job = describe(image, mask, low, high);
  for (size_t i = 0; i < targets.size(); i += kMaxScales) {
    const std::vector<CannyTarget> group(targets.begin() + i,
                                         targets.begin() + std::min(i + kMaxScales, targets.size()));
    launch_scales(image, CannyLaunch(job, image.size(0), group, weights));
  }
  return maps;
}

Tensor canny(const Tensor& image, std::vector<double> weights, double low, double high,
             std::optional<Tensor> mask) {
  check_dim(image, 4, "image", "(B, 1 or 3, H, W)");
  return detect(image, {image.size(2), image.size(3)}, weights, low, high, mask)[0];
}

std::vector<Tensor> canny_pyramid(const Tensor& image, std::vector<int64_t> sizes,
                                  std::vector<double> weights, double low, double high) {
  return detect(image, sizes, weights, low, high, std::nullopt);
}

}  // namespace
}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CUDA, m) {
  m.impl("canny", TORCH_BOX(&fastinpaint::canny));
  m.impl("canny_pyramid", TORCH_BOX(&fastinpaint::canny_pyramid));
}
