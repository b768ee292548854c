#include "cuda_on_cpu.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <memory>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_THREAD__)
  #include <sanitizer/tsan_interface.h>
  #define UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
  #define UNSEEN
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kCanary = 64;              // bytes behind a block's memory
constexpr unsigned char kPoison = 0xff;  // NaN, or an index far away

enum class State { idle, ready, waiting };

struct Block;

struct Fiber {
  ucontext_t context;
  State state = State::idle;
  Place place{};
  Block* block = nullptr;
  void* known = nullptr;  // to ThreadSanitizer
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<unsigned char> memory;
  unsigned waiting = 0, done = 0, generation = 0;
  char met[2] = {0, 0}, ended = 0;  // addresses for ThreadSanitizer
  bool busy = false;
};

// What runs now. Never seen by ThreadSanitizer: it belongs to the scheduler, not to the kernels.
struct Machine {
  ucontext_t home;
  void* known_home = nullptr;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  unsigned random = 0;
  char launched = 0, finished = 0;
};

Machine machine;
std::vector<std::unique_ptr<Block>> slots;  // kept: their stacks are expensive

void acquire([[maybe_unused]] char& address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&address);
#endif
}

void release([[maybe_unused]] char& address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&address);
#endif
}

UNSEEN void resume(Fiber& fiber) {
  machine.running = &fiber;
#if defined(__SANITIZE_THREAD__)
  machine.known_home = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.known, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&machine.home, &fiber.context);
}

UNSEEN void suspend(Fiber& fiber, State state) {
  fiber.state = state;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(machine.known_home, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&fiber.context, &machine.home);
}

UNSEEN Fiber& current() {
  return *machine.running;
}
UNSEEN char& last_end(Fiber& fiber) {
  return fiber.block->ended;
}
UNSEEN char& meeting(Fiber& fiber, unsigned generation) {
  return fiber.block->met[generation % 2];
}

UNSEEN void finish(Fiber& fiber) {
  ++fiber.block->done;
  suspend(fiber, State::idle);
}

UNSEEN const std::function<void()>& kernel_of_launch() {
  return *machine.kernel;
}

void run_forever() {
  for (;;) {
    Fiber& fiber = current();
    acquire(machine.launched);
    acquire(last_end(fiber));  // its memory is another block's afterwards
    kernel_of_launch()();
    release(last_end(fiber));
    release(machine.finished);
    finish(fiber);
  }
}

UNSEEN unsigned arrive(Fiber& fiber) {
  ++fiber.block->waiting;
  return fiber.block->generation;
}

std::unique_ptr<Fiber> new_fiber(Block& block) {
  auto fiber = std::make_unique<Fiber>();
  fiber->block = &block;
  getcontext(&fiber->context);
  void* stack =
      mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::runtime_error("no memory for a stack");
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = kStack;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, run_forever, 0);
#if defined(__SANITIZE_THREAD__)
  fiber->known = __tsan_create_fiber(0);
#endif
  return fiber;
}

UNSEEN unsigned next_random() {
  unsigned& x = machine.random;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return x;
}

UNSEEN void fill(Block& block) {
  for (volatile unsigned char& byte : block.memory) byte = kPoison;
}

UNSEEN bool is_canary_alive(const Block& block, int shared_bytes) {
  bool alive = true;
  for (size_t i = shared_bytes; i < block.memory.size(); ++i) alive = alive && block.memory[i] == kPoison;
  return alive;
}

UNSEEN void start(Block& block, unsigned number, unsigned threads) {
  fill(block);
  block.waiting = block.done = 0;
  block.busy = true;
  for (unsigned i = 0; i < threads; ++i) {
    block.fibers[i]->place = {{i}, {number}, block.memory.data()};
    block.fibers[i]->state = State::ready;
  }
}

// Runs every thread that can run once; from the first or, at random, from another on.
UNSEEN void step(Block& block, unsigned threads) {
  const unsigned first = machine.random == 0 ? 0 : next_random() % threads;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *block.fibers[(first + i) % threads];
    if (fiber.state == State::ready) resume(fiber);
  }
  if (block.waiting > 0 && block.done > 0)
    throw std::runtime_error("a thread ended while others wait at a barrier");
  if (block.waiting == threads) {
    block.waiting = 0;
    ++block.generation;
    for (unsigned i = 0; i < threads; ++i) block.fibers[i]->state = State::ready;
  }
}

UNSEEN void run_all(unsigned blocks, unsigned threads, int shared_bytes, int resident) {
  unsigned next = 0, ended = 0;
  while (ended < blocks)
    for (int i = 0; i < resident; ++i) {
      Block& block = *slots[i];
      if (!block.busy) {
        if (next == blocks) continue;
        start(block, next++, threads);
      }
      step(block, threads);
      if (block.done == threads) {
        block.busy = false;
        ++ended;
        if (!is_canary_alive(block, shared_bytes))
          throw std::runtime_error("written behind the block's memory");
      }
    }
}

}  // namespace

UNSEEN const Place& here() {
  return machine.running->place;
}

void wait_for_block() {
  Fiber& fiber = current();
  const unsigned generation = arrive(fiber);
  release(meeting(fiber, generation));
  suspend(fiber, State::waiting);
  acquire(meeting(fiber, generation));
}

UNSEEN void give_way() {
  if (machine.random != 0 && next_random() % 8 == 0) suspend(*machine.running, State::ready);
}

void launch(const std::function<void()>& kernel, unsigned blocks, unsigned threads, int shared_bytes,
            const Schedule& schedule) {
  while (int(slots.size()) < schedule.resident) slots.push_back(std::make_unique<Block>());
  for (int i = 0; i < schedule.resident; ++i) {
    Block& block = *slots[i];
    while (block.fibers.size() < threads) block.fibers.push_back(new_fiber(block));
    block.memory.resize(shared_bytes + kCanary);
    block.busy = false;
  }
  machine.kernel = &kernel;
  machine.random = schedule.seed;
  release(machine.launched);
  run_all(blocks, threads, shared_bytes, schedule.resident);
  acquire(machine.finished);
}

}  // namespace cuda_on_cpu
