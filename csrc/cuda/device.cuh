// What the kernels use of the device beside CUDA's own names. tests/cuda_on_cpu has the same for the CPU.
#pragma once

namespace fastinpaint {

// A block's dynamic shared memory.
__device__ __forceinline__ unsigned char* block_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// A value in global memory that other threads may be changing by atomic operations at this moment.
__device__ __forceinline__ int load_relaxed(const int* place) {
  return *static_cast<const volatile int*>(place);
}

__device__ __forceinline__ int highest_bit(unsigned long long word) {
  return 63 - __clzll(static_cast<long long>(word));
}

}  // namespace fastinpaint
