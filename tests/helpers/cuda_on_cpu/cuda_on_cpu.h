// CUDA's names, as far as the kernels use them, for a CPU: it stands in for csrc/cuda/device.cuh.
//
// Every thread of a block is a fiber, run to its next barrier; several blocks are at work at a time. With a
// seed, threads also give way at random before they look at or change a value that others may be changing, so
// that one run after another meets other interleavings, each of them reproducible. ThreadSanitizer knows the
// fibers as threads and the barriers as the only order between those of a block.
#pragma once

#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace cuda_on_cpu {

struct Index {
  unsigned x;
};

struct Place {
  Index thread, block;
  unsigned char* memory;  // shared by the block
};

const Place& here();
void wait_for_block();
void give_way();

struct Schedule {
  unsigned seed = 0;  // 0: no thread gives way
  int resident = 1;   // blocks at work at a time
};

// Runs kernel() in every thread of every block. Throws when a block's threads do not meet at a barrier, or
// when one writes behind the block's memory.
void launch(const std::function<void()>& kernel, unsigned blocks, unsigned threads, int shared_bytes,
            const Schedule& schedule);

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::here().thread)
#define blockIdx (cuda_on_cpu::here().block)

inline void __syncthreads() {
  cuda_on_cpu::wait_for_block();
}

inline int atomicMin(int* place, int value) {
  cuda_on_cpu::give_way();
  int before = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (before > value &&
         !__atomic_compare_exchange_n(place, &before, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}

inline int atomicOr(int* place, int value) {
  cuda_on_cpu::give_way();
  return __atomic_fetch_or(place, value, __ATOMIC_RELAXED);
}

namespace fastinpaint {

inline unsigned char* block_memory() {
  return cuda_on_cpu::here().memory;
}

inline int load_relaxed(const int* place) {
  cuda_on_cpu::give_way();
  return __atomic_load_n(place, __ATOMIC_RELAXED);
}

inline void let_next_kernel_start() {}
inline void wait_for_kernel_before() {}

inline int highest_bit(unsigned long long word) {
  return 63 - __builtin_clzll(word);
}

}  // namespace fastinpaint
