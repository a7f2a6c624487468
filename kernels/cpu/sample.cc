// One token per row of logits, with its log-prob; normal deviates.
//
//   p = softmax of logit / T, as exp((logit - max) / T)
//   top-k, top-p, min-p (Nguyen et al. 2024), in this order, on the tokens sorted by (p descending, id ascending).
//     The token that crosses top_p stays.
//   then the inverse CDF over the kept ids in their order, one 53-bit uniform in f64
//   T = 0: the argmax, with log-probs at T = 1
//   logp is that of the whole vocabulary, the bits of logprob; truncated_logp that among the kept
//
// Law: 3 (log-prob), 8 (sampling). Cumulative sums are f64 chains.
// Plan: rows over threads, four abreast in the chains. The chains keep their sum at every 512th
// token, so that the drawn one is looked for in one block only.
// Figures: 10 to 21 % of the limit of memory: the chains bind. History: kernels/notes/sample.md.
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

// Sorts c[0, n), or only the first k where no more are wanted. Returns min(n, k).
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

// The distribution of a row: p = exp(x - max x) in index order, and the running sum at the start of every block.
constexpr int64_t BLOCK = 512;
constexpr int ABREAST = 4;  // rows whose chains run side by side, each hiding the latency of the others

struct Weights {
  float* p;
  double* running;  // [blocks + 1], the last one the total
  int64_t best;
};

// Finds the argmax, and p = exp((x - max x) / T) unless only the argmax is wanted. p is at most 1, and 1 at
// the argmax, whatever the temperature. False where no token is possible, or a logit is NaN or +infinity.
RLHF_INLINE bool weigh(const float* logits, int64_t size, float inverse, bool greedy, Weights& w) {
  const V none = set(-__builtin_inff());
  V top = none;
  B whole = first(LANES);  // lanes that have seen numbers only
  each_vector(0, size, [&](int64_t i, int n) {
    const V x = select(first(n), load(logits + i, n), none);
    top = max(x, top), whole = whole & (x == x);
  });
  const float most = max(top);
  if (sum(select(whole, zero(), set(1.0f))) != 0 || !(most > -__builtin_inff() && most < __builtin_inff()))
    return false;
  for (w.best = 0; logits[w.best] != most;) w.best++;
  if (greedy) return true;
  const V m = set(most), t = set(inverse);
  if (inverse == 1)
    each_vector(
        0, size, [&](int64_t i, int n) __attribute__((always_inline)) {
          store(w.p + i, exp_diff(load(logits + i, n), m), n);
        });
  else
    each_vector(
        0, size, [&](int64_t i, int n) __attribute__((always_inline)) {
          store(w.p + i, exp_diff(load(logits + i, n), m, t), n);
        });
  return true;
}

// The f64 chains of p, each row in index order.
template <int R>
RLHF_INLINE void chain(const Weights* w, int64_t size) {
  double sum[R] = {};
  for (int64_t block = 0; block * BLOCK < size; block++) {
    for (int r = 0; r < R; r++) w[r].running[block] = sum[r];
    const int64_t end = size - block * BLOCK < BLOCK ? size : (block + 1) * BLOCK;
    for (int64_t i = block * BLOCK; i < end; i++)
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sum[r] += w[r].p[i];
  }
  for (int r = 0; r < R; r++) w[r].running[(size + BLOCK - 1) / BLOCK] = sum[r];
}

// Sets p to 0 where top-k, top-p or min-p drop a token.
RLHF_INLINE void truncate(const sample_args& a, int64_t size, float* p, Candidate* sorted) {
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
    int64_t kept = 0;
    while (kept < n && double(sorted[kept].p) >= a.min_p * double(sorted[0].p)) kept++;
    n = kept;
  }
  for (int64_t i = 0; i < size; i++) p[i] = 0;
  for (int64_t i = 0; i < n; i++) p[sorted[i].id] = sorted[i].p;
}

// The first id whose running sum exceeds u times the total. Where rounding left none, the last possible id.
RLHF_INLINE int64_t pick(const Weights& w, int64_t size, double u) {
  const int64_t blocks = (size + BLOCK - 1) / BLOCK;
  const double goal = u * w.running[blocks];
  int64_t block = 0;
  while (block + 1 < blocks && !(w.running[block + 1] > goal)) block++;
  double sum = w.running[block];
  for (int64_t i = block * BLOCK; i < size; i++)
    if ((sum += w.p[i]) > goal) return i;
  int64_t last = size - 1;
  while (last > 0 && w.p[last] == 0) last--;
  return last;
}

}  // namespace

void sample(Context& ctx, const sample_args& a) {
  const int64_t rows = a.logits.dim[0], size = a.logits.dim[1], blocks = (size + BLOCK - 1) / BLOCK;
  const auto up = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t candidates = up(size * int64_t(sizeof(Candidate))), sums = up((blocks + 1) * int64_t(sizeof(double))),
                weights = up(size * int64_t(sizeof(float)));
  const int64_t each = candidates + ABREAST * (sums + weights);
  char* scratch = static_cast<char*>(ctx.scratch(each * ctx.threads));
  if (!scratch) return;
  if (size == 0 && rows > 0) return ctx.fail("the vocabulary is empty");
  const bool greedy = a.temperature == 0;
  const float inverse = greedy ? 1.0f : float(1 / a.temperature);
  if (!(inverse >= 0x1p-120f && inverse <= 0x1p127f))
    return ctx.fail("temperature is neither 0 nor in [2^-127, 2^120]");
  const bool truncated = !greedy && (a.top_k > 0 || a.top_p < 1 || a.min_p > 0);
  bool bad[1024] = {};  // as many threads as a stream may have
  ctx.each([&](int thread) {
    char* own = scratch + each * thread;
    Weights w[ABREAST];
    for (int r = 0; r < ABREAST; r++)
      w[r].running = reinterpret_cast<double*>(own + candidates + r * sums),
      w[r].p = reinterpret_cast<float*>(own + candidates + ABREAST * sums + r * weights);
    const int64_t end = rows * (thread + 1) / ctx.threads;
    for (int64_t begin = rows * thread / ctx.threads; begin < end; begin += ABREAST) {
      const int n = end - begin < ABREAST ? int(end - begin) : ABREAST;
      bool good[ABREAST];
      double everything[ABREAST];
      for (int r = 0; r < n; r++) {
        good[r] = weigh(a.logits.row(begin + r), size, inverse, greedy, w[r]);
        if (!good[r]) memset(w[r].p, 0, size_t(weights)), bad[thread] = true;
      }
      const auto chains = [&] {
        if (n == ABREAST) return chain<ABREAST>(w, size);
        for (int r = 0; r < n; r++) chain<1>(w + r, size);
      };
      if (!greedy) chains();
      if (truncated) {
        for (int r = 0; r < n; r++) {
          everything[r] = w[r].running[blocks];
          if (good[r]) truncate(a, size, w[r].p, reinterpret_cast<Candidate*>(own));
        }
        chains();
      }
      for (int r = 0; r < n; r++) {
        const int64_t row = begin + r;
        if (!good[r]) {
          a.token[row] = 0, a.logp[row] = __builtin_nanf(""), a.truncated_logp[row] = __builtin_nanf("");
          continue;
        }
        const int32_t* c = a.counter.row(row);
        const Words random = philox(
            uint32_t(a.seed), uint32_t(a.stream), uint32_t(c[0]), uint32_t(c[1]), uint32_t(c[2]), uint32_t(c[3]));
        const int64_t token = greedy ? w[r].best : pick(w[r], size, uniform(random, 0));
        const float logp = row_stats(a.logits.row(row), size, token, inverse).logp;
        const double total = greedy ? 0 : w[r].running[blocks];
        a.token[row] = int32_t(token), a.logp[row] = logp;
        a.truncated_logp[row] = greedy                               ? 0
                                : truncated && total < everything[r] ? float(log(double(w[r].p[token]) / total))
                                                                     : logp;
      }
    }
  });
  for (int thread = 0; thread < ctx.threads; thread++)
    if (bad[thread]) ctx.fail("logits hold NaN or infinity, or no token is possible");
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
