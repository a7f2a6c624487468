#include "native/node/memory.h"

#include <algorithm>
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
  for (const Entry& entry : order_) pages_.release(entry.block->data);
}

Block* Memory::allocate(size_t asked) {
  const size_t bytes = size_class(asked);
  Block* block = nullptr;
  for (auto kept = cached_.lower_bound(bytes); !block && kept != cached_.end() && kept->first <= largest_taken(bytes);
       ++kept)
    if ((block = kept->second)) kept->second = block->next;
  if (!block) block = fresh(bytes);
  if (!block) return nullptr;
  block->asked = asked, block->life = ++lives_;
  current_ += block->bytes;
  if (current_ > peak_) peak_ = current_;
  return block;
}

// A block with memory of its own. Whatever may throw comes before the memory is taken.
Block* Memory::fresh(size_t bytes) {
  Block** const kept = &cached_[bytes];
  if (order_.size() == order_.capacity()) order_.reserve(2 * order_.size() + 16);
  if (!spare_) spare_ = &blocks_.emplace_back();
  void* p = pages_.allocate(bytes);
  if (!p) return nullptr;
  Block* block = spare_;
  spare_ = block->next;
  block->data = static_cast<char*>(p), block->bytes = bytes, block->kept = kept, block->next = nullptr;
  const Entry entry{uint64_t(reinterpret_cast<uintptr_t>(p)), block};
  order_.insert(std::upper_bound(order_.begin(), order_.end(), entry,
                    [](const Entry& a, const Entry& b) { return a.begin < b.begin; }),
      entry);
  held_ += bytes;
  return block;
}

void Memory::release(Block* block) noexcept {
  current_ -= block->bytes;
  block->life = 0, block->owner = nullptr;
  block->next = *block->kept;
  *block->kept = block;
}

Block* Memory::find(uint64_t address, size_t bytes) const {
  const auto after = std::upper_bound(
      order_.begin(), order_.end(), address, [](uint64_t a, const Entry& entry) { return a < entry.begin; });
  if (after == order_.begin()) return nullptr;
  const Entry& entry = after[-1];
  const uint64_t offset = address - entry.begin;
  const size_t asked = entry.block->asked;
  return entry.block->life && offset <= asked && bytes <= asked - offset ? entry.block : nullptr;
}

void Memory::trim() noexcept {
  for (auto& [bytes, kept] : cached_)
    for (; kept; held_ -= bytes) {
      Block* block = kept;
      kept = block->next;
      pages_.release(block->data);
      block->data = nullptr, block->next = spare_;
      spare_ = block;
    }
  order_.erase(std::remove_if(order_.begin(), order_.end(), [](const Entry& entry) { return !entry.block->data; }),
      order_.end());
}

}  // namespace rlhf
