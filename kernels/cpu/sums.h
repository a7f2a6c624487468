// Sums over tokens or weights: blocks of 4,096 counted from the start of each sequence, in f64, sixteen lanes within a
// block, blocks added in order. Nothing but an element's place in its sequence decides where it goes.
#pragma once
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {

constexpr int64_t SUM_BLOCK = 4096;

// The sum of one block of n elements; value(i, count) gives elements i .. i + 15 as D, 0 beyond count.
template <class F>
RLHF_INLINE double block_sum(int64_t begin, int64_t end, F&& value) {
  D total = setd(0);
  for (int64_t i = begin; i < end; i += LANES) total = total + value(i, end - i < LANES ? int(end - i) : LANES);
  return sum(total);
}

// total continued with the elements begin .. end of one sequence
template <class F>
RLHF_INLINE double sequence_total(double total, int64_t begin, int64_t end, F&& value) {
  for (int64_t block = begin; block < end; block += SUM_BLOCK) total = total + block_sum(block, block + SUM_BLOCK < end ? block + SUM_BLOCK : end, value);
  return total;
}

// the same over packed sequences, in order
template <class F>
RLHF_INLINE double packed_total(double total, View<const int32_t> cu_seqlens, F&& value) {
  for (int64_t b = 0; b + 1 < cu_seqlens.dim[0]; b++) total = sequence_total(total, cu_seqlens[b], cu_seqlens[b + 1], value);
  return total;
}

// doubles that packed_sums needs
RLHF_INLINE int64_t packed_sums_scratch(int64_t tokens, View<const int32_t> cu_seqlens, int n) { return (tokens / SUM_BLOCK + cu_seqlens.dim[0]) * n; }

// n sums over all blocks of packed sequences, blocks over threads: f(sequence, begin, end, sums) gives those of a block,
// which are then added to `totals` in order.
template <class F>
RLHF_INLINE void packed_sums(Context& ctx, View<const int32_t> cu_seqlens, int64_t tokens, int n, double* memory, double* totals, F&& f) {
  const int64_t B = cu_seqlens.dim[0] - 1;
  const int64_t parts = tokens < 32768 ? 1 : ctx.threads;
  const auto share = [&](int thread) {
    int64_t at = 0;  // blocks before this sequence
    for (int64_t b = 0; b < B; b++) {
      const int64_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
      // a block is the thread's in whose share of the tokens it begins
      for (int64_t block = begin; block < end; block += SUM_BLOCK, at++)
        if (block * parts / tokens == thread) f(b, block, block + SUM_BLOCK < end ? block + SUM_BLOCK : end, memory + at * n);
    }
  };
  if (parts == 1) {
    share(0);
  } else {
    ctx.each([&](int thread) { share(thread); });
  }
  int64_t blocks = 0;
  for (int64_t b = 0; b < B; b++) blocks += (cu_seqlens[b + 1] - cu_seqlens[b] + SUM_BLOCK - 1) / SUM_BLOCK;
  for (int64_t at = 0; at < blocks; at++)
    for (int k = 0; k < n; k++) totals[k] = totals[k] + memory[at * n + k];
}

// lanes of a mask (absent: all) among the first n
RLHF_INLINE B unmasked(View<const int32_t> mask, int64_t i, int n) {
  if (!mask) return first(n);
  if (n == LANES) return !(load(&mask[i]) == seti(0));
  int32_t lanes[LANES] = {};
  for (int k = 0; k < n; k++) lanes[k] = mask[i + k];
  return !(load(lanes) == seti(0));
}

// x[i ..], 0 in lanes that do not count: what stands in a masked slot is never used
RLHF_INLINE V load_where(const float* x, int n, B counts) { return select(counts, load(x, n), zero()); }

// Sixteen tokens of which some count. Where all are known to, the compiler drops the masks.
struct Sixteen {
  int64_t i;
  int n;
  bool all;
  B counts;
  RLHF_INLINE V only(V x) const { return all ? x : select(counts, x, zero()); }
  RLHF_INLINE V of(const float* x) const { return all ? load(x + i) : load_where(x + i, n, counts); }
  RLHF_INLINE void put(float* y, V x) const { all ? store(y + i, x) : store(y + i, only(x), n); }
  RLHF_INLINE int count() const { return all ? LANES : __builtin_popcount(bits(counts)); }
  RLHF_INLINE int count(B b) const { return __builtin_popcount(bits(all ? b : b & counts)); }
};

// f(sixteen) for the tokens [begin, end)
template <class F>
RLHF_INLINE void each_sixteen(View<const int32_t> mask, int64_t begin, int64_t end, F&& f) {
  int64_t i = begin;
  if (!mask)
    for (; i + LANES <= end; i += LANES) f(Sixteen{i, LANES, true, first(LANES)});
  for (; i < end; i += LANES) {
    const int n = end - i < LANES ? int(end - i) : LANES;
    f(Sixteen{i, n, false, unmasked(mask, i, n)});
  }
}

}  // namespace rlhf::RLHF_ISA
