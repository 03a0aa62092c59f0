// What kernels in CUDA C++ need to run on the CPU, one block after the other.
//
// Each thread of a block is a fibre: it runs until it reaches a barrier or a warp operation, and
// continues once all participants have arrived. A warp runs ahead until it needs the others. The
// order of warps, and of the threads in a warp, is set by EMULATION_ORDER: "forward" (default),
// "reverse" or "shuffled". Code that depends on it, for example because of a missing
// __syncthreads(), gives different results in different orders.
//
// Stricter than the hardware: all threads of a block must reach the same barrier, and all 32 lanes
// of a warp must take part in the same warp operation.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__ [[maybe_unused]] static
#define __device__ [[maybe_unused]]
#define __host__
#define __forceinline__ inline
#define __grid_constant__
// One block runs at a time, so data shared by its threads can be static.
#define __shared__ static

#define __syncthreads() emulation::block_barrier(__FILE__, __LINE__)
#define __syncthreads_or(value) emulation::block_or(value, __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, offset) \
  emulation::shuffle(mask, value, emulation::lane() + (offset), __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  emulation::shuffle(mask, value, emulation::lane() ^ (bits), __FILE__, __LINE__)
#define __ballot_sync(mask, value) emulation::ballot(mask, value, __FILE__, __LINE__)
#define __any_sync(mask, value) (emulation::ballot(mask, value, __FILE__, __LINE__) != 0)
#define __popc __builtin_popcount
#define __ffs __builtin_ffs

using std::isfinite;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  uint64_t count() const { return uint64_t(x) * y * z; }
};
using cudaStream_t = void*;

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 256 << 10;

struct Place {
  const char* file = nullptr;
  int line = 0;
  bool operator==(const Place& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  jmp_buf point;  // where it continues
  char* stack = nullptr;
  bool waits_for_a_kernel = false;
  State state = State::kDone;
  Place place;        // of the barrier that it waits at
  uint64_t value[2];  // given to the warp; they alternate, so one barrier per operation suffices
  unsigned operations = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  unsigned current = 0;
  unsigned size = 0;
  const std::function<void()>* kernel = nullptr;
};

inline Block block;

// Contexts are only used to start fibres: swapcontext makes a system call each time, _longjmp does
// not.
[[gnu::noinline]] inline void leave(Fiber& fiber) {
  if (_setjmp(fiber.point) == 0) _longjmp(block.scheduler, 1);
}

[[gnu::noinline]] inline void go_on(Fiber& fiber) {
  if (_setjmp(block.scheduler) == 0) _longjmp(fiber.point, 1);
}

// A fibre runs one kernel after another; when started it only waits for the first.
inline void run_fiber() {
  const unsigned self = block.current;  // a larger block moves the fibres
  while (true) {
    block.fibers[self].state = State::kDone;
    block.fibers[self].waits_for_a_kernel = true;
    leave(block.fibers[self]);
    block.fibers[self].waits_for_a_kernel = false;
    (*block.kernel)();
  }
}

[[gnu::noinline]] inline void begin(Fiber& fiber) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, run_fiber, 0);
  if (_setjmp(block.scheduler) == 0) setcontext(&context);
}

inline void wait(State state, const char* file, int line) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  fiber.place = {file, line};
  leave(fiber);
}

inline void block_barrier(const char* file, int line) { wait(State::kAtBlockBarrier, file, line); }

inline bool block_or(bool value, const char* file, int line) {
  block.fibers[block.current].value[0] = value;
  block_barrier(file, line);
  bool any = false;
  for (unsigned i = 0; i < block.size; ++i) any |= block.fibers[i].value[0] != 0;
  block_barrier(file, line);  // no value changes before all have read it
  return any;
}

inline unsigned lane() { return block.current % kWarp; }

// Gives `bits` to the warp and returns the slot with the values of the other lanes.
inline unsigned exchange(unsigned mask, uint64_t bits, const char* file, int line) {
  if (mask != 0xffffffffu) throw std::logic_error("only full masks are emulated");
  Fiber& fiber = block.fibers[block.current];
  const unsigned slot = fiber.operations++ % 2;
  fiber.value[slot] = bits;
  wait(State::kAtWarpBarrier, file, line);
  return slot;
}

inline uint64_t value_of_lane(unsigned other, unsigned slot) {
  return block.fibers[block.current / kWarp * kWarp + other].value[slot];
}

// Lanes that would read beyond the warp keep their own value, as on the hardware.
template <typename T>
T shuffle(unsigned mask, T value, unsigned from, const char* file, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "as the hardware");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const unsigned slot = exchange(mask, bits, file, line);
  if (from >= kWarp) return value;
  bits = value_of_lane(from, slot);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned ballot(unsigned mask, bool value, const char* file, int line) {
  const unsigned slot = exchange(mask, value, file, line);
  unsigned bits = 0;
  for (unsigned i = 0; i < kWarp; ++i) bits |= unsigned(value_of_lane(i, slot) != 0) << i;
  return bits;
}

// Releases the threads in [begin, end) if all wait in `state`; throws if in different places.
inline bool release(unsigned begin, unsigned end, State state) {
  for (unsigned i = begin; i < end; ++i) {
    if (block.fibers[i].state != state) return false;
  }
  for (unsigned i = begin; i < end; ++i) {
    if (!(block.fibers[i].place == block.fibers[begin].place)) {
      throw std::logic_error(
          "threads wait in different places: " + block.fibers[begin].place.text() + " and " +
          block.fibers[i].place.text());
    }
    block.fibers[i].state = State::kReady;
  }
  return true;
}

// The numbers below `count` in the order of EMULATION_ORDER.
inline std::vector<unsigned> turns(unsigned count) {
  static const std::string order = [] {
    const char* name = std::getenv("EMULATION_ORDER");
    return std::string(name == nullptr ? "forward" : name);
  }();
  static std::mt19937 random(0);
  std::vector<unsigned> turns(count);
  std::iota(turns.begin(), turns.end(), 0u);
  if (order == "reverse") {
    std::reverse(turns.begin(), turns.end());
  } else if (order == "shuffled") {
    std::shuffle(turns.begin(), turns.end(), random);
  } else if (order != "forward") {
    throw std::logic_error("EMULATION_ORDER is forward, reverse or shuffled, not " + order);
  }
  return turns;
}

// Fibres of a failed launch are in the middle of their kernel and must be restarted.
inline void start(unsigned i) {
  Fiber& fiber = block.fibers[i];
  if (fiber.stack == nullptr) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    fiber.stack = static_cast<char*>(stack);
  }
  block.current = i;
  if (!fiber.waits_for_a_kernel) begin(fiber);
  fiber.state = State::kReady;
  fiber.operations = 0;
}

// Runs a warp as far ahead of the others as possible.
inline void run_warp(unsigned begin) {
  do {
    for (unsigned lane : turns(kWarp)) {
      const unsigned i = begin + lane;
      if (block.fibers[i].state != State::kReady) continue;
      block.current = i;
      threadIdx = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
      go_on(block.fibers[i]);
    }
  } while (release(begin, begin + kWarp, State::kAtWarpBarrier));
}

inline void run_block() {
  for (unsigned i = 0; i < block.size; ++i) start(i);
  do {
    for (unsigned warp : turns(block.size / kWarp)) run_warp(warp * kWarp);
  } while (release(0, block.size, State::kAtBlockBarrier));
  for (unsigned i = 0; i < block.size; ++i) {
    if (block.fibers[i].state == State::kDone) continue;
    throw std::logic_error("not all threads came to " + block.fibers[i].place.text());
  }
}

struct Launch {
  dim3 grid, threads;

  Launch(dim3 grid, dim3 threads, size_t shared_bytes, cudaStream_t)
      : grid(grid), threads(threads) {
    if (shared_bytes != 0) throw std::logic_error("shared memory of a launch is not emulated");
  }

  // Arguments are copied once per launch and once per thread, as each thread has its own.
  template <typename Kernel, typename... Arguments>
  void operator()(const Kernel& kernel, Arguments... arguments) const {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        threads.count() == 0 || threads.count() > 1024 || threads.count() % kWarp != 0) {
      throw std::logic_error("a launch that the hardware refuses, or of half a warp");
    }
    const std::function<void()> call = [&] { kernel(arguments...); };
    block.kernel = &call;
    block.size = static_cast<unsigned>(threads.count());
    if (block.fibers.size() < block.size) block.fibers.resize(block.size);
    gridDim = grid;
    blockDim = threads;
    const bool backwards = turns(2)[0] != 0;
    for (uint64_t i = 0; i < grid.count(); ++i) {
      const uint64_t b = backwards ? grid.count() - 1 - i : i;
      blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                      static_cast<unsigned>(b / grid.x / grid.y));
      run_block();
    }
  }
};

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline int32_t current_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

}  // namespace emulation

template <typename T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target += value;
  return before;
}

template <typename T>
T atomicMax(T* target, T value) {
  const T before = *target;
  *target = std::max(before, value);
  return before;
}
