// torch's parallel_for with threads of its own, for ThreadSanitizer: it sees a thread start and end, but not
// the barriers of torch's OpenMP, which is not compiled for it, so that whatever two threads do one after the
// other would look like a race. Hidden: the kernels in this library call it, torch goes on calling its own.
#ifdef __SANITIZE_THREAD__

  #include <algorithm>
  #include <cstdint>
  #include <latch>
  #include <thread>
  #include <utility>
  #include <vector>

// As torch/csrc/stable/c/shim.h declares them, but for the visibility.
using ParallelFunc = void (*)(int64_t begin, int64_t end, void* context);
extern "C" int32_t torch_get_num_threads(uint32_t* threads);

extern "C" __attribute__((visibility("hidden"))) int32_t torch_parallel_for(int64_t begin, int64_t end,
                                                                            int64_t grain_size,
                                                                            ParallelFunc function,
                                                                            void* context) {
  thread_local bool inside = false;
  if (begin >= end) return 0;
  // Divided as by at::parallel_for: equal chunks of at least the grain, one for each thread, and a single one
  // where it is called inside of itself.
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  const int64_t count = end - begin, grain = std::max<int64_t>(grain_size, 1);
  const int64_t wanted = inside ? 1 : std::min<int64_t>(threads, (count + grain - 1) / grain);
  const int64_t chunk = (count + wanted - 1) / wanted;
  // All begin together; otherwise the first would often be done with everything before the second is there.
  std::latch begun((count + chunk - 1) / chunk);
  const auto run = [&](int64_t first) {
    begun.arrive_and_wait();
    const bool outer = std::exchange(inside, true);
    function(first, std::min(first + chunk, end), context);
    inside = outer;
  };
  std::vector<std::thread> others;
  for (int64_t first = begin + chunk; first < end; first += chunk) others.emplace_back(run, first);
  run(begin);
  for (std::thread& other : others) other.join();
  return 0;
}

#endif
