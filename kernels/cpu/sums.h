// Sums over tokens or weights, in f64: blocks of 4,096 counted from the start of each sequence,
// sixteen lanes within a block, blocks added in order. The place of an element in its sequence
// alone decides where it goes.
#pragma once
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {

constexpr int64_t SUM_BLOCK = 4096;

// sum + x; on x86 as a multiply-add, since Zen 4 converts f32 to f64 on the ports that add
#if RLHF_VECTOR_AVX512 || RLHF_VECTOR_AVX2
RLHF_INLINE D plus(D sum, D x) { return fma(x, setd(1), sum); }
#else
RLHF_INLINE D plus(D sum, D x) { return sum + x; }
#endif
RLHF_INLINE D plus(D sum, V x) { return plus(sum, widen(x)); }

// The sum of one block of n elements; value(i, count) gives elements i .. i + 15 as D, 0 beyond count.
template <class F>
RLHF_INLINE double block_sum(int64_t begin, int64_t end, F&& value) {
  D total = setd(0);
  each_vector(
      begin, end, [&](int64_t i, int n) __attribute__((always_inline)) { total = total + value(i, n); });
  return sum(total);
}

// total continued with the elements begin .. end of one sequence
template <class F>
RLHF_INLINE double sequence_total(double total, int64_t begin, int64_t end, F&& value) {
  for (int64_t block = begin; block < end; block += SUM_BLOCK)
    total = total + block_sum(block, block + SUM_BLOCK < end ? block + SUM_BLOCK : end, value);
  return total;
}

// the same over packed sequences, in order
template <class F>
RLHF_INLINE double packed_total(double total, View<const int32_t> cu_seqlens, F&& value) {
  for (int64_t b = 0; b + 1 < cu_seqlens.dim[0]; b++)
    total = sequence_total(total, cu_seqlens[b], cu_seqlens[b + 1], value);
  return total;
}

// doubles that packed_sums needs
RLHF_INLINE int64_t packed_sums_scratch(int64_t tokens, View<const int32_t> cu_seqlens, int n) {
  return (tokens / SUM_BLOCK + cu_seqlens.dim[0]) * n;
}

// n sums over all blocks of packed sequences, blocks over threads: f(sequence, begin, end, sums) gives those of a
// block, which are then added to `totals` in order.
template <class F>
RLHF_INLINE void packed_sums(
    Context& ctx, View<const int32_t> cu_seqlens, int64_t tokens, int n, double* memory, double* totals, F&& f) {
  const int64_t B = cu_seqlens.dim[0] - 1;
  const int64_t parts = tokens < 32768 ? 1 : ctx.threads;
  const auto share = [&](int64_t thread) __attribute__((noinline)) {  // once, whoever calls it: f may be long
    // a block is the thread's in whose share of the tokens it begins
    const int64_t from = (tokens * thread + parts - 1) / parts, to = (tokens * (thread + 1) + parts - 1) / parts;
    int64_t at = 0;  // blocks before this one
    for (int64_t b = 0; b < B; b++) {
      const int64_t begin = cu_seqlens[b], end = cu_seqlens[b + 1];
      for (int64_t block = begin; block < end; block += SUM_BLOCK, at++)
        if (from <= block && block < to)
          f(b, block, block + SUM_BLOCK < end ? block + SUM_BLOCK : end, memory + at * n);
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

RLHF_INLINE Sixteen whole_sixteen(int64_t i) { return {i, LANES, true, first(LANES)}; }

// f(sixteen) for the tokens [begin, end), of which some may be masked
template <class F>
RLHF_INLINE void each_some(View<const int32_t> mask, int64_t begin, int64_t end, F&& f) {
  for (int64_t i = begin; i < end; i += LANES) {
    const int n = end - i < LANES ? int(end - i) : LANES;
    f(Sixteen{i, n, false, unmasked(mask, i, n)});
  }
}

// f(sixteen) for the tokens [begin, end)
template <class F>
RLHF_INLINE void each_sixteen(View<const int32_t> mask, int64_t begin, int64_t end, F&& f) {
  if (!mask)
    for (; begin + LANES <= end; begin += LANES) f(whole_sixteen(begin));
  each_some(mask, begin, end, f);
}

// f(sixteen, second(first(sixteen))), the first step of a sixteen beside the second of the one before and f of the one
// before that: three short chains of operations at a time, where one long one fills the schedulers with what must wait.
template <class First, class Second, class F>
RLHF_INLINE void each_sixteen_ahead(
    View<const int32_t> mask, int64_t begin, int64_t end, First&& first, Second&& second, F&& f) {
  if (!mask && end - begin >= LANES) {
    const int64_t last = end - LANES;
    const auto start = [&](int64_t i) __attribute__((always_inline)) {
      return first(whole_sixteen(i <= last ? i : begin));
    };
    auto next = start(begin);
    auto now = second(next);
    next = start(begin + LANES);
    for (; begin <= last; begin += LANES) {
      const auto ready = now;
      now = second(next);
      next = start(begin + 2 * LANES);
      f(whole_sixteen(begin), ready);
    }
  }
  each_some(
      mask, begin, end, [&](const Sixteen& x) __attribute__((always_inline)) { f(x, second(first(x))); });
}

}  // namespace rlhf::RLHF_ISA
