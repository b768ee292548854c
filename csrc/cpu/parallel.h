// The one loop over tasks that all CPU kernels use, on PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastinpaint {

// Calls work(i) for i in [0, count), each thread taking the next i when it is done with one.
template <class Work>
void for_each_task(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min<int64_t>(count, torch::stable::get_num_threads()), 1,
                              [&](int64_t, int64_t) {
                                for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
                                  work(i);
                              });
}

}  // namespace fastinpaint
