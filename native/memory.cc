#include "native/memory.h"

#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rlhf {
namespace {

constexpr size_t LARGE = size_t(2) << 20;

// Sixteen classes for each power of two: weights, which stay, waste next to nothing.
size_t size_class(size_t bytes) {
  if (bytes <= 256) return 256;
  size_t power = size_t(1) << (63 - __builtin_clzll(bytes - 1));
  size_t step = power < 1024 ? 64 : power / 16;
  return (bytes + step - 1) / step * step;
}

// Free memory this much larger is taken too, since batches come and go in all sizes.
size_t largest_taken(size_t bytes) { return bytes + bytes / 4; }

}  // namespace

void* Pages::allocate(size_t bytes) const {
  if (gpu) return rlhf_stream_allocate(gpu, int64_t(bytes));
  size_t alignment = bytes >= 2 * LARGE ? LARGE : 64;
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#if defined(__linux__)
  if (p && alignment == LARGE) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

void Pages::release(void* p) const {
  if (gpu) rlhf_stream_release(gpu, p);
  else std::free(p);
}

Memory::~Memory() {
  for (auto& [p, bytes] : live_) pages_.release(p);
  trim();
}

void* Memory::allocate(size_t bytes) {
  bytes = size_class(bytes);
  auto found = cached_.lower_bound(bytes);
  void* p;
  if (found != cached_.end() && found->first <= largest_taken(bytes)) {
    bytes = found->first;
    p = found->second.back();
    found->second.pop_back();
    if (found->second.empty()) cached_.erase(found);
  } else {
    p = pages_.allocate(bytes);
    if (!p) return nullptr;
    held_ += bytes;
  }
  live_[p] = bytes;
  current_ += bytes;
  if (current_ > peak_) peak_ = current_;
  return p;
}

bool Memory::release(void* p) {
  auto found = live_.find(p);
  if (found == live_.end()) return false;
  current_ -= found->second;
  cached_[found->second].push_back(p);
  live_.erase(found);
  return true;
}

void Memory::trim() {
  for (auto& [bytes, free] : cached_)
    for (void* p : free) pages_.release(p), held_ -= bytes;
  cached_.clear();
}

}  // namespace rlhf
