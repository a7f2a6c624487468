// What the machine can do at most: the bars that the benchmarks measure every kernel against.
//
//   limit_fma     independent chains of V fma per thread, enough to hide the latency: no memory
//   limit_stream  R arrays read, U updated in place and W written, a block of each in turn
//
// limit_stream is the plainest kernel with a row's own mix of streams. History:
// kernels/notes/limit.md.
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {
namespace {

#if RLHF_VECTOR_AVX512
constexpr int CHAINS = 24;  // of 32 registers
#else
constexpr int CHAINS = 6;  // two or more registers each, of 16 or 32
#endif
constexpr int64_t BLOCK = 256;

}  // namespace

void limit_fma(Context& ctx, const limit_fma_args& a) {
  const int64_t threads = a.sink.dim[0];
  ctx.each([&](int thread) {
    V chain[CHAINS];
    for (int i = 0; i < CHAINS; i++) chain[i] = set(float(i));
    const V x = set(0.999f), y = set(1e-3f);
    for (int64_t round = 0; round < a.rounds; round++) {
#pragma GCC unroll 32
      for (int i = 0; i < CHAINS; i++) chain[i] = fma(chain[i], x, y);
    }
    V total = zero();
    for (int i = 0; i < CHAINS; i++) total = total + chain[i];
    // what the chains hold decides nothing, but the compiler must not know
    if (thread < threads) a.sink[thread] = sum(total) == 12345.678f ? 0 : double(a.rounds) * CHAINS * LANES * 2;
  });
}

void limit_stream(Context& ctx, const limit_stream_args& a) {
  const int64_t R = a.x.dim[0], U = a.y.dim[0], W = a.z.dim[0], N = a.x.dim[1], threads = a.sink.dim[0];
  if (N % BLOCK) return ctx.fail("the streams must be whole blocks of 256 values");
  if (a.past_caches && reinterpret_cast<uintptr_t>(a.z.data) % (LANES * sizeof(float)))
    return ctx.fail("z begins at no multiple of 64 bytes, which what goes past the caches must");
  ctx.each([&](int thread) {
    if (thread >= threads) return;
    const int64_t begin = N / BLOCK * thread / threads * BLOCK, end = N / BLOCK * (thread + 1) / threads * BLOCK;
    const V one = set(1);
    V sums[4] = {zero(), zero(), zero(), zero()};
    for (int64_t round = 0; round < a.rounds; round++)
      for (int64_t i = begin; i < end; i += BLOCK) {
        for (int64_t r = 0; r < R; r++)
          for (int64_t k = 0; k < BLOCK; k += 4 * LANES)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) sums[j] = sums[j] + load(a.x.row(r) + i + k + j * LANES);
        for (int64_t u = 0; u < U; u++)
          for (int64_t k = 0; k < BLOCK; k += LANES) store(a.y.row(u) + i + k, load(a.y.row(u) + i + k) + one);
        for (int64_t w = 0; w < W; w++)
          for (int64_t k = 0; k < BLOCK; k += LANES) {
            if (a.past_caches) stream(a.z.row(w) + i + k, one);
            else store(a.z.row(w) + i + k, one);
          }
      }
    end_of_stream();
    a.sink[thread] = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  });
}

}  // namespace rlhf::RLHF_ISA
