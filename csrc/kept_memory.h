// Working memory that a thread keeps from call to call: fresh pages cost more than the work on them.
#pragma once

#include <cstdint>
#include <memory>

namespace fastinpaint {

// Room for `count` values, aligned to 64 bytes, not initialised. It is the thread's own until it asks again
// for the same type and use, and it only grows.
template <class Value, int kUse = 0>
Value* kept_memory(int64_t count) {
  constexpr int64_t kAlign = 64;
  thread_local std::unique_ptr<unsigned char[]> memory;
  thread_local int64_t size = 0;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Value)) + kAlign;
  if (size < bytes) {
    memory.reset();  // before the new one, so that both are never held
    size = 0;
    memory.reset(new unsigned char[bytes]);
    size = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<Value*>((address + kAlign - 1) / kAlign * kAlign);
}

}  // namespace fastinpaint
