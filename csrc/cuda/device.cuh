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

// For kernels that may start before the one launched before them has ended (programmatic dependent launch).
// The one before says from where on they may; they wait for its end before they touch what it writes. Both do
// nothing in a kernel that was launched in the ordinary way.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ int highest_bit(unsigned long long word) {
  return 63 - __clzll(static_cast<long long>(word));
}

}  // namespace fastinpaint
