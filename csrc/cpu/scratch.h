// Working memory that a thread keeps from call to call, because page-faulting new memory costs more than the
// computation.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace fastinpaint {

#ifdef FASTINPAINT_SANITIZE
// AddressSanitizer sees accesses past a block or to one that was given back: each has just the wanted size,
// and is given back when the next is asked for.
constexpr bool kKeepMemory = false;
#else
constexpr bool kKeepMemory = true;
#endif

struct RowMemory;  // the tag of kernels that work row by row

// Room for `count` values, aligned to 64 bytes, not initialised. It belongs to the calling thread until that
// asks again for the same tag and type, and it only grows.
template <class Tag, class Value>
Value* scratch(int64_t count) {
  constexpr std::align_val_t kAlign{64};
  struct Delete {
    void operator()(void* block) const { ::operator delete(block, kAlign); }
  };
  thread_local std::unique_ptr<void, Delete> memory;
  thread_local int64_t size = 0;
  if (memory == nullptr || size < count || !kKeepMemory) {
    memory.reset();  // before the new one, so that both are never held
    memory.reset(::operator new(count * sizeof(Value), kAlign));
    size = count;
  }
  return static_cast<Value*>(memory.get());
}

}  // namespace fastinpaint
