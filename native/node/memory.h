// A caching allocator. Freed memory is kept and handed out again for about the same size: since the device runs its
// calls in order, memory that is freed while calls on it are still queued may be given to later calls at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "native/abi/rlhf_kernels.h"

namespace rlhf {

// Where memory comes from: the host, or the GPU of a stream.
struct Pages {
  rlhf_stream* gpu = nullptr;
  void* allocate(size_t bytes) const;  // 64-byte aligned, in large pages where there are many; null if there is none
  void release(void*) const;
};

struct Failure;  // queue.h

// One piece of memory, in use or kept for the next. It lives as long as its Memory, so queued calls point to it.
struct Block {
  char* data = nullptr;
  size_t bytes = 0;  // of the size class

  // For the thread that allocates.
  size_t asked = 0;  // bytes of the present use
  uint64_t life = 0;  // number of the present use, never given twice; 0 while it is free
  void* owner = nullptr;  // whoever frees it when it is lost; the allocator never looks
  Block** kept = nullptr;  // list of free blocks of its size class
  Block* next = nullptr;  // in that list

  // For the queue's thread: the failure of an op that spoilt these numbers, in the use of that number.
  uint64_t spoilt = 0;
  std::shared_ptr<const Failure> failure;
};

class Memory {
 public:
  explicit Memory(Pages pages = {}) : pages_(pages) {}
  ~Memory();
  Memory& operator=(const Memory&) = delete;
  Block* allocate(size_t bytes);  // 64-byte aligned; null if there is none
  void release(Block*) noexcept;  // of a block in use
  Block* find(uint64_t address, size_t bytes) const;  // the block in use that holds all of these bytes, or null
  size_t current() const { return current_; }
  size_t peak() const { return peak_; }
  size_t held() const { return held_; }  // in use and cached
  void reset_peak() { peak_ = current_; }
  void trim() noexcept;  // gives the cached memory back, which nothing queued may use

  // f(block) for every block in use; f may release it.
  template <class F>
  void each(F&& f) {
    for (const Entry& entry : order_)
      if (entry.block->life) f(*entry.block);
  }

 private:
  struct Entry {
    uint64_t begin;
    Block* block;
  };
  Block* fresh(size_t bytes);

  const Pages pages_;
  std::deque<Block> blocks_;
  Block* spare_ = nullptr;  // blocks without memory
  std::vector<Entry> order_;  // blocks with memory, by address
  std::map<size_t, Block*> cached_;  // free blocks by size class; an empty list stays
  uint64_t lives_ = 0;
  size_t current_ = 0, peak_ = 0, held_ = 0;
};

}  // namespace rlhf
