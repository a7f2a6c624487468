// What the machine can do at most: the bars that the benchmarks measure every kernel against.
//
//   limit_fma   independent chains of V fma per thread, enough to hide the latency: no memory
//   limit_read  one add per 16 values read, four chains: the plainest stream
#include "kernels/cpu/vector.h"

namespace rlhf::RLHF_ISA {
namespace {

#if RLHF_VECTOR_AVX512
constexpr int CHAINS = 24;  // of 32 registers
#else
constexpr int CHAINS = 6;  // two or more registers each, of 16 or 32
#endif

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

void limit_read(Context& ctx, const limit_read_args& a) {
  const int64_t n = a.x.dim[0] / 64 * 64, threads = a.sink.dim[0];
  ctx.each([&](int thread) {
    if (thread >= threads) return;
    const int64_t begin = n / 64 * thread / threads * 64, end = n / 64 * (thread + 1) / threads * 64;
    V s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    for (int64_t i = begin; i < end; i += 64) {
      s0 = s0 + load(&a.x[i]), s1 = s1 + load(&a.x[i + 16]);
      s2 = s2 + load(&a.x[i + 32]), s3 = s3 + load(&a.x[i + 48]);
    }
    a.sink[thread] = sum((s0 + s1) + (s2 + s3));
  });
}

}  // namespace rlhf::RLHF_ISA
