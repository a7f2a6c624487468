// What a simulated kernel asks of its machine. kernels/cuda/simulator.h and hopper_simulator.h make the language of
// simt.h and hopper.h from it.
#pragma once
#include <atomic>
#include <cstdint>

namespace rlhf::simt {

struct Place {  // of the fibre that runs
  int thread, block[3], grid[3];
};
const Place& place();
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
void sync_block();
void sync_warp();
// All 32 lanes meet; the last of them computes from what each brought. The function is the name of the meeting.
void meet(void* mine, void (*compute)(void** all));
char* shared_memory();
int take_shared(int* used, int bytes);  // the offset of 16-byte aligned memory
void touch(int offset, int bytes, bool write);
void copy_async(int offset, const void* from);  // 16 bytes; null: zeros
void copy_async_commit();
void copy_async_wait(int groups);

// Accesses to global memory so far. Exact while one thread of the host launches.
inline std::atomic<int64_t> accesses = 0;
inline void count_access() { accesses.store(accesses.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }

struct Kernel {
  Kernel(const char* name, int threads, int64_t bytes, void (*run)(const void* params));
  const char* name;
  int threads;
  int64_t bytes;
  void (*run)(const void* params);
  const Kernel* next;
};

// ---- of a Hopper

void barrier_init(int at, int arrivals);
void barrier_publish();
void barrier_arrive(int at, int bytes);
void barrier_wait(int at, int parity);
void copy_box(int to, int room, const uint64_t* map, int64_t row, int64_t column, int barrier);
void copy_line(int to, int room, const void* from, int bytes, int barrier);

// a warp's part of a product: what each lane brings
struct Product {
  float* c;
  int columns;  // of c
  uint64_t a, b;
  bool a_across, b_across, add;
  const uint32_t* registers;  // a, where it lies in them
};
void fence_async();
void multiply_begin();
void multiply(const Product& mine);
void multiply_commit();
void multiply_wait(int groups);

}  // namespace rlhf::simt
