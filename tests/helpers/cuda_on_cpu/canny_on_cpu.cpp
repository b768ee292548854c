// The launches of csrc/cuda/canny.cu, on the CPU: a function for ctypes, and a program for ThreadSanitizer.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "cuda_on_cpu.h"
// after the names it needs
#include "canny_launch.h"

namespace {

class Launcher {
 public:
  explicit Launcher(cuda_on_cpu::Schedule schedule) : schedule_(schedule) {}

  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), unsigned blocks, int shared_bytes,
              const Arguments&... arguments) const {
    cuda_on_cpu::launch([&] { kernel(arguments...); }, blocks, fastinpaint::kThreads, shared_bytes,
                        schedule_);
    ++launches;
  }

  template <class... Parameters, class... Arguments>
  void launch_early(void (*kernel)(Parameters...), unsigned blocks, int shared_bytes,
                    const Arguments&... arguments) const {
    launch(kernel, blocks, shared_bytes, arguments...);
  }

  mutable int launches = 0;

 private:
  cuda_on_cpu::Schedule schedule_;
};

thread_local std::string error;

}  // namespace

// The fields and their order are those of tests/cuda_on_cpu/__init__.py.
struct CannyCall {
  const void* image;
  int64_t shape[4], strides[4];
  int64_t dtype;  // 0: float32, 1: float16, 2: bfloat16
  const unsigned char* mask;
  int64_t mask_strides[3];
  const double* weights;  // (weight_count,)
  int64_t weight_count;
  double low, high;
  int64_t map_count;
  const int64_t* sizes;    // (map_count, 2)
  unsigned char** maps;    // (map_count,)
  int64_t seed, resident;  // of the schedule
  int64_t launches;        // out
};

// Returns null, or what went wrong.
extern "C" const char* canny_on_cpu(CannyCall* call) {
  using namespace fastinpaint;
  try {
    CannyJob job{};
    job.image = call->image;
    std::copy_n(call->strides, 4, job.image_strides);
    job.channels = int(call->shape[1]);
    job.image_height = int(call->shape[2]);
    job.image_width = int(call->shape[3]);
    job.mask = call->mask;
    std::copy_n(call->mask_strides, 3, job.mask_strides);
    job.low = low_threshold(call->low);
    job.high = float(call->high);
    std::vector<CannyTarget> targets;
    for (int64_t i = 0; i < call->map_count; ++i)
      targets.push_back({call->sizes[2 * i], call->sizes[2 * i + 1], call->maps[i]});
    const CannyLaunch launch(job, call->shape[0], targets,
                             {call->weights, call->weights + call->weight_count});
    const Launcher launcher({unsigned(call->seed), int(call->resident)});
    constexpr int kCanary = 256;
    const int64_t bytes = launch.workspace_bytes();
    std::vector<unsigned char> workspace(bytes + kCanary, 0xff);
    if (call->dtype == 0) launch.run<float>(workspace.data(), launcher);
    if (call->dtype == 1) launch.run<torch::headeronly::Half>(workspace.data(), launcher);
    if (call->dtype == 2) launch.run<torch::headeronly::BFloat16>(workspace.data(), launcher);
    call->launches = launcher.launches;
    for (int i = 0; i < kCanary; ++i)
      if (workspace[bytes + i] != 0xff) throw std::runtime_error("written behind the working memory");
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
  return nullptr;
}

// canny_on_cpu CALL: the file holds a CannyCall, the sizes, the weights, the image and the mask; the maps go
// to CALL.out.
int main(int count, char** arguments) {
  const std::string path = count > 1 ? arguments[1] : "";
  std::FILE* file = std::fopen(path.c_str(), "rb");
  CannyCall call{};
  if (!file || std::fread(&call, sizeof(call), 1, file) != 1) return 2;
  std::vector<int64_t> sizes(2 * call.map_count);
  std::vector<double> weights(call.weight_count);
  const int64_t pixels = call.shape[0] * call.shape[2] * call.shape[3];
  std::vector<char> image(pixels * call.shape[1] * (call.dtype == 0 ? 4 : 2));
  std::vector<unsigned char> mask(call.mask ? pixels : 0);
  if (std::fread(sizes.data(), sizeof(int64_t), sizes.size(), file) != sizes.size()) return 2;
  if (std::fread(weights.data(), sizeof(double), weights.size(), file) != weights.size()) return 2;
  if (std::fread(image.data(), 1, image.size(), file) != image.size()) return 2;
  if (std::fread(mask.data(), 1, mask.size(), file) != mask.size()) return 2;
  std::fclose(file);
  std::vector<std::vector<unsigned char>> maps;
  std::vector<unsigned char*> pointers;
  for (int64_t i = 0; i < call.map_count; ++i) {
    maps.emplace_back(call.shape[0] * sizes[2 * i] * sizes[2 * i + 1]);
    pointers.push_back(maps.back().data());
  }
  call.image = image.data();
  call.mask = call.mask ? mask.data() : nullptr;
  call.sizes = sizes.data();
  call.weights = weights.data();
  call.maps = pointers.data();
  if (const char* what = canny_on_cpu(&call)) {
    std::fprintf(stderr, "%s\n", what);
    return 1;
  }
  file = std::fopen((path + ".out").c_str(), "wb");
  for (const auto& map : maps)
    if (!file || std::fwrite(map.data(), 1, map.size(), file) != map.size()) return 2;
  std::fclose(file);
  return 0;
}
