// A caching allocator. Freed memory is kept and handed out again for about the same size: since the device runs its
// calls in order, memory that is freed while calls on it are still queued may be given to later calls at once.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "native/rlhf_kernels.h"

namespace rlhf {

// Where memory comes from: the host, or the GPU of a stream.
struct Pages {
  rlhf_stream* gpu = nullptr;
  void* allocate(size_t bytes) const;  // 64-byte aligned, in large pages where there are many; null if there is none
  void release(void*) const;
};

class Memory {
 public:
  explicit Memory(Pages pages = {}) : pages_(pages) {}
  ~Memory();
  Memory& operator=(const Memory&) = delete;
  void* allocate(size_t bytes);  // 64-byte aligned; null if there is none
  bool release(void*);  // false if it is not ours, or released already
  size_t current() const { return current_; }
  size_t peak() const { return peak_; }
  size_t held() const { return held_; }  // in use and cached
  void reset_peak() { peak_ = current_; }
  void trim();  // gives the cached memory back, which nothing queued may use

 private:
  const Pages pages_;
  std::unordered_map<void*, size_t> live_;
  std::map<size_t, std::vector<void*>> cached_;  // by size; none is empty
  size_t current_ = 0, peak_ = 0, held_ = 0;
};

}  // namespace rlhf
