// The launches of one call, in order, and the memory that they share: whatever device runs them.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "canny_kernels.cuh"
#include "canny_options.h"

namespace fastinpaint {

constexpr int kMaxSide = 65535;             // of an image, in pixels
constexpr int64_t kMaxBlocks = 0x7fffffff;  // of a launch
constexpr int kSharedBytes = 99 * 1024;     // of a block that asks for them, from compute capability 8.0 on

// An edge map of every image of a batch, and where it goes.
struct CannyTarget {
  int64_t height, width;
  void* edges;  // (batch, height, width)
};

class CannyLaunch {
 public:
  // `job` has the image, the mask and the thresholds; targets: at most kMaxScales, none of them empty;
  // weights: the Gaussian's, by distance.
  CannyLaunch(const CannyJob& job, int64_t batch, const std::vector<CannyTarget>& targets,
              const std::vector<double>& weights)
      : job_(job) {
    int64_t longest = 1, shortest = kMaxSide;
    job_.scale_count = int(targets.size());
    for (int i = 0; i < job_.scale_count; ++i) {
      const auto& [height, width, edges] = targets[i];
      const int64_t across = (width + kTileWidth - 1) / kTileWidth,
                    down = (height + kTileHeight - 1) / kTileHeight;
      job_.scales[i] = {int(height),
                        int(width),
                        whole_step(job_.image_height, height),
                        whole_step(job_.image_width, width),
                        int(across),
                        int(across * down),
                        int(blocks_),
                        pixels_,
                        static_cast<unsigned char*>(edges)};
      blocks_ += batch * across * down;
      pixels_ += batch * height * width;
      has_borders_ = has_borders_ || across * down > 1;
      longest = std::max({longest, height, width});
      shortest = std::min({shortest, height, width});
    }
    weights_ = weights_within(weights, longest);
    job_.radius = int(weights_.size()) - 1;
    fits_tile_ = job_.radius <= kMaxTileRadius && tile_bytes<float>(job_.radius, true) <= kSharedBytes;
    if (fits_tile_) std::copy(weights_.begin(), weights_.end(), job_.weights);
    fits_doubles_ = job_.radius <= kMaxTableRadius && shortest > 2 * job_.radius;
    if (fits_doubles_) fill_cover_table();
  }

  int64_t blocks() const { return blocks_; }

  // Bytes of working memory, aligned to 16, that `run` wants; what they hold does not matter.
  int64_t workspace_bytes() const {
    CannyJob job = job_;
    return place(job, nullptr);
  }

  // device.launch(kernel, blocks, shared_bytes, arguments...) runs a kernel in blocks of kThreads threads,
  // after those launched before; device.launch_early the same, but the kernel itself waits for them.
  template <class Pixel, class Device>
  void run(void* workspace, const Device& device) const {
    if (job_.mask == nullptr)
      run<Pixel, false>(workspace, device);
    else
      run<Pixel, true>(workspace, device);
  }

 private:
  template <class Pixel, bool kMasked, class Device>
  void run(void* workspace, const Device& device) const {
    CannyJob job = job_;
    place(job, static_cast<unsigned char*>(workspace));
    const unsigned blocks = unsigned(blocks_);
    if (fits_doubles_) {
      detect<Pixel, kMasked, double>(device, job);
    } else if (fits_tile_) {
      detect<Pixel, kMasked, float>(device, job);
    } else {
      for (int i = 0; i <= job.radius; i += kWeightChunk) {
        WeightChunk chunk{};
        const int count = std::min(kWeightChunk, job.radius + 1 - i);
        std::copy_n(weights_.begin() + i, count, chunk.values);
        device.launch(store_weights, 1, 0, job.far_weights + i, count, chunk);
      }
      device.launch(blur_down<Pixel, kMasked>, blocks, 0, job);
      device.launch(blur_across, blocks, 0, job);
      device.launch(detect_smooth, blocks, tile_bytes<float>(0, false), job);
    }
    if (has_borders_) {
      device.launch_early(join_tiles, blocks, 0, job);
      device.launch_early(resolve_edges, blocks, 0, job);
    }
  }

  template <class Pixel, bool kMasked, class Stored, class Device>
  void detect(const Device& device, const CannyJob& job) const {
    device.launch(detect_edges<Pixel, kMasked, Stored>, unsigned(blocks_),
                  tile_bytes<Stored>(job.radius, kHasCovered<kMasked, Stored>), job);
  }

  template <class Stored>
  static int tile_bytes(int radius, bool has_covered) {
    const TileMemory<Stored> memory(nullptr, radius, has_covered);
    return int(memory.end - static_cast<unsigned char*>(nullptr));
  }

  static int whole_step(int64_t image_size, int64_t size) {
    return image_size % size == 0 ? int(image_size / size) : 0;
  }

  void fill_cover_table() {
    const int radius = job_.radius, size = 2 * radius + 1;
    for (int y = 0; y <= radius; ++y) {
      const float down = blurred(job_.weights, radius, 1.0, y, size);
      for (int x = 0; x <= radius; ++x)
        job_.cover_table[y * (radius + 1) + x] = blurred(job_.weights, radius, down, x, size) + kFloatEps;
      job_.cover_table[(radius + 1) * (radius + 1) + y] = 1.0f / job_.cover_table[y * (radius + 1) + radius];
    }
  }

  // Places the working memory's arrays from `memory` on; returns their bytes.
  int64_t place(CannyJob& job, unsigned char* memory) const {
    unsigned char* const start = memory;
    const auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<std::decay_t<decltype(array)>>(memory);
      memory += (count * int64_t(sizeof(*array)) + 15) / 16 * 16;
    };
    take(job.parents, blocks_ * kBorder);
    if (!fits_tile_) {
      take(job.far_weights, job.radius + 1);
      for (float** map : {&job.columns, &job.cover, &job.smooth}) take(*map, pixels_);
    }
    return memory - start;
  }

  CannyJob job_;
  std::vector<double> weights_;
  int64_t blocks_ = 0, pixels_ = 0;
  bool has_borders_ = false, fits_tile_ = true, fits_doubles_ = true;
};

}  // namespace fastinpaint
