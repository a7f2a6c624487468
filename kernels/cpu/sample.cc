// One token per row of logits, with its log-prob; normal deviates.
//
//   x = logit / T, p = softmax(x); with top-k, top-p, min-p (Nguyen et al. 2024) in this order on the tokens sorted by
//   (p descending, id ascending); the token that crosses top_p stays; then inverse CDF over the kept ids in their order,
//   one 53-bit uniform in f64. T = 0: the argmax, with log-probs at T = 1.
//   logp is that of the whole vocabulary, the bits of logprob; truncated_logp that among the kept.
//
// Law: 3 (log-prob), 8 (sampling); cumulative sums are f64 chains. Plan: rows over threads.
#include "kernels/cpu/logprob.h"
#include "kernels/cpu/random.h"

namespace rlhf::RLHF_ISA {
namespace {

struct Candidate {
  float p;
  int32_t id;
};

RLHF_INLINE bool before(const Candidate& a, const Candidate& b) { return a.p > b.p || (a.p == b.p && a.id < b.id); }

RLHF_INLINE void sift(Candidate* heap, int64_t i, int64_t n) {  // the last in order at the root
  for (;;) {
    int64_t worst = i;
    for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
      if (before(heap[worst], heap[child])) worst = child;
    if (worst == i) return;
    const Candidate t = heap[i];
    heap[i] = heap[worst], heap[worst] = t, i = worst;
  }
}

// sorts c[0, n); where only the first k are wanted, only they are sorted: returns min(n, k)
RLHF_INLINE int64_t sort_first(Candidate* c, int64_t n, int64_t k) {
  if (k > n) k = n;
  for (int64_t i = k / 2 - 1; i >= 0; i--) sift(c, i, k);
  for (int64_t i = k; i < n; i++)
    if (before(c[i], c[0])) c[0] = c[i], sift(c, 0, k);
  for (int64_t end = k - 1; end > 0; end--) {
    const Candidate t = c[0];
    c[0] = c[end], c[end] = t;
    sift(c, 0, end);
  }
  return k;
}

RLHF_INLINE bool draw(const sample_args& a, int64_t row, float* p, Candidate* sorted) {
  const int64_t size = a.logits.dim[1];
  const float* logits = a.logits.row(row);
  float top = -__builtin_inff();
  int64_t best = 0;
  for (int64_t i = 0; i < size; i++)
    if (logits[i] > top) top = logits[i], best = i;
  if (!(top > -__builtin_inff() && top < __builtin_inff())) return false;
  for (int64_t i = 0; i < size; i++)
    if (logits[i] != logits[i]) return false;
  if (a.temperature == 0) {
    a.token[row] = int32_t(best), a.logp[row] = row_stats(logits, size, best, 1.0f).logp, a.truncated_logp[row] = 0;
    return true;
  }
  const float inverse = float(1 / a.temperature);
  const V t = set(inverse), m = set(top * inverse);
  double total = 0;
  for (int64_t i = 0; i < size; i += LANES) {
    const int n = size - i < LANES ? int(size - i) : LANES;
    store(p + i, exp_diff(load(logits + i, n) * t, m), n);
  }
  for (int64_t i = 0; i < size; i++) total += p[i];
  const double everything = total;
  const bool truncated = a.top_k > 0 || a.top_p < 1 || a.min_p > 0;
  if (truncated) {
    int64_t n = 0;
    for (int64_t i = 0; i < size; i++)
      if (p[i] > 0) sorted[n++] = {p[i], int32_t(i)};
    n = sort_first(sorted, n, a.top_k > 0 ? a.top_k : n);
    if (a.top_p < 1) {  // of what top-k left
      double left = 0, sum = 0;
      for (int64_t i = 0; i < n; i++) left += sorted[i].p;
      int64_t kept = 0;
      while (kept < n) {
        sum += sorted[kept++].p;
        if (sum >= a.top_p * left) break;
      }
      n = kept;
    }
    if (a.min_p > 0) {
      int64_t kept = 1;
      while (kept < n && double(sorted[kept].p) >= a.min_p * double(sorted[0].p)) kept++;
      n = kept;
    }
    for (int64_t i = 0; i < size; i++) p[i] = 0;
    for (int64_t i = 0; i < n; i++) p[sorted[i].id] = sorted[i].p;
    total = 0;
    for (int64_t i = 0; i < size; i++) total += p[i];
  }
  const int32_t* c = a.counter.row(row);
  const double goal = uniform(philox(uint32_t(a.seed), uint32_t(a.stream), uint32_t(c[0]), uint32_t(c[1]), uint32_t(c[2]), uint32_t(c[3])), 0) * total;
  double sum = 0;
  int64_t token = best;
  for (int64_t i = 0; i < size; i++) {
    if (p[i] == 0) continue;
    sum += p[i], token = i;
    if (sum > goal) break;
  }
  a.token[row] = int32_t(token);
  a.logp[row] = row_stats(logits, size, token, inverse).logp;
  a.truncated_logp[row] = truncated && total < everything ? float(log(double(p[token]) / total)) : a.logp[row];
  return true;
}

}  // namespace

void sample(Context& ctx, const sample_args& a) {
  const int64_t rows = a.logits.dim[0], size = a.logits.dim[1], each = (size * int64_t(sizeof(float) + sizeof(Candidate)) + 63) / 64 * 64;
  char* scratch = static_cast<char*>(ctx.scratch(each * ctx.threads));
  if (!scratch) return;
  if (size == 0 && rows > 0) return ctx.fail("the vocabulary is empty");
  bool good[256] = {};
  ctx.each([&](int thread) {
    Candidate* sorted = reinterpret_cast<Candidate*>(scratch + each * thread);
    float* p = reinterpret_cast<float*>(sorted + size);
    good[thread] = true;
    for (int64_t row = rows * thread / ctx.threads; row < rows * (thread + 1) / ctx.threads; row++)
      if (!draw(a, row, p, sorted)) good[thread] = false, a.token[row] = 0, a.logp[row] = __builtin_nanf(""), a.truncated_logp[row] = __builtin_nanf("");
  });
  for (int thread = 0; thread < ctx.threads; thread++)
    if (!good[thread]) ctx.fail("logits hold NaN or infinity, or no token is possible");
}

// Box and Muller, two to a block of Philox words; element i takes block i / 2
void normal(Context& ctx, const normal_args& a) {
  const int64_t size = a.y.size();
  ctx.split(size, 2, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 2) {
      const Words x = philox(uint32_t(a.seed), uint32_t(a.stream), uint32_t(i / 2), uint32_t((i / 2) >> 32), 0, 0);
      const double radius = __builtin_sqrt(-2 * log(1 - uniform(x, 0))), angle = 6.283185307179586477 * uniform(x, 1);
      a.y[i] = float(a.mean + a.deviation * (radius * cos(angle)));
      if (i + 1 < end) a.y[i + 1] = float(a.mean + a.deviation * (radius * cos(angle - 1.5707963267948966192)));
    }
  });
}

}  // namespace rlhf::RLHF_ISA
