// Losses of comparisons. Formulas: kernels/cpu/preference_loss.cc, here in f64.
//   scores, ref_scores, dscores f32 [M]; chosen, rejected i32 [P]; margin, label, weight f32 [P]; stats f64 [8]
//
// Plan:
//   1. A thread per pair computes its terms. It leaves two records, (score, slope), in the order of the pairs.
//      Blocks of 4,096 pairs sum the statistics as sums.h does.
//   2. A stable radix sort orders the records by score, 4 bits a pass. Records of one score stay in pair order.
//   3. The first record of each score adds all of that score's slopes, in order.
// Cost: O(M + P log M), in passes of 4 bits of M. A pass reads 24 bytes a record and writes 8.
// Workspace: 32 bytes a pair. The order of every sum depends on the pairs alone, and no two threads
// add to one place. History: kernels/notes/preference_loss.md.
#include "kernels/cuda/sums.h"

namespace rlhf::cuda {

constexpr int PREFERENCE_SUMS = 7;
constexpr int DIGITS = 16;  // of a pass of the sort
constexpr int RECORDS = 16;  // that a thread sorts
constexpr int64_t RECORDS_BLOCK = 256 * RECORDS;

struct alignas(8) Record {  // what a pair gives to one of its scores
  int32_t score;
  float slope;
};
struct PairParams {
  Global<const float> scores, ref_scores, margin, label, weight;
  Global<const int32_t> chosen, rejected;
  Global<Record> records;  // [2 P]: chosen and rejected of each pair
  Global<double> partial;  // [blocks][PREFERENCE_SUMS]
  int64_t M, P;
  int32_t form;  // Preference
  double beta, label_smoothing, center_coef, factor;  // factor: scale / denominator
  Latch error;
};
struct SortParams {
  Global<const Record> from;  // [n]
  Global<Record> to;
  Global<uint32_t> counts;  // [DIGITS][blocks]: records of a block with a digit, later where the first one goes
  int64_t n, blocks;
  int32_t shift;
};
struct GatherParams {
  Global<const Record> records;  // [n], ordered by score
  Global<float> dscores;
  int64_t n, M;
  Latch error;
};
struct PreferenceFinishParams {
  Global<const double> partial;
  Global<double> stats;
  Global<float> loss;
  int64_t blocks;
};

#if RLHF_DEVICE_CODE

struct PairTerms {
  double sums[PREFERENCE_SUMS];  // as in stats
  double slope, center;  // d/d chosen = center + slope, d/d rejected = center - slope
};
DEVICE PairTerms pair_terms(const PairParams& p, int64_t i, int64_t c, int64_t r) {
  const bool reference = p.form != int32_t(0);
  const double chosen = double(p.scores[c]) - (reference ? p.ref_scores[c] : 0),
               rejected = double(p.scores[r]) - (reference ? p.ref_scores[r] : 0);
  const double weight = (p.weight ? p.weight[i] : 1.0) * p.factor, margin = p.margin ? p.margin[i] : 0;
  double l, dz, z, beta = 1;
  if (p.form == 2) {  // ipo
    z = chosen - rejected;
    const double off = z - 1 / (2 * p.beta);
    l = off * off, dz = 2 * off;
  } else {
    beta = reference ? p.beta : 1;
    z = beta * (chosen - rejected) - margin;
    const double given = p.label ? p.label[i] : 1.0, e = p.label_smoothing, q = given * (1 - e) + (1 - given) * e;
    const double size = z < 0 ? -z : z, small = exp(-size), tail = log1p(small);
    l = q * ((z > 0 ? 0 : size) + tail) + (1 - q) * ((z > 0 ? size : 0) + tail);
    dz = (z < 0 ? small / (1 + small) : 1 / (1 + small)) - q;
  }
  const double both = double(p.scores[c]) + p.scores[r], small = exp(z < 0 ? z : -z);
  l += p.center_coef * both * both;
  const double win = z > 0 ? 1.0 : z == 0 ? 0.5 : 0.0, sigmoid = z < 0 ? small / (1 + small) : 1 / (1 + small);
  return {{weight * l, win, z, chosen, rejected, 1, sigmoid}, weight * beta * dz, weight * 2 * p.center_coef * both};
}

KERNEL(preference_pairs, PairParams, 256) {
  double sums[PREFERENCE_SUMS] = {};
  const int64_t first = block_x() * SUM_ELEMENTS;
  for (int64_t i = first + thread(); i < first + SUM_ELEMENTS && i < p.P; i += 256) {
    const int64_t c = p.chosen[i], r = p.rejected[i];
    if (c < 0 || c >= p.M || r < 0 || r >= p.M) {
      latch(p.error, BAD_ID);
      UNROLL for (int k = 0; k < PREFERENCE_SUMS; k++) sums[k] = double(NOT_A_NUMBER);
      p.records[2 * i] = p.records[2 * i + 1] = Record{0, NOT_A_NUMBER};
      continue;
    }
    const PairTerms terms = pair_terms(p, i, c, r);
    UNROLL for (int k = 0; k < PREFERENCE_SUMS; k++) sums[k] += terms.sums[k];
    p.records[2 * i] = Record{int32_t(c), float(terms.slope + terms.center)};
    p.records[2 * i + 1] = Record{int32_t(r), float(terms.center - terms.slope)};
  }
  block_sums(sums, p.partial + block_x() * PREFERENCE_SUMS);
}

KERNEL(preference_finish, PreferenceFinishParams, 256) {
  double sums[PREFERENCE_SUMS] = {};
  for (int64_t block = thread(); block < p.blocks; block += 256)
    UNROLL for (int k = 0; k < PREFERENCE_SUMS; k++) sums[k] += p.partial[block * PREFERENCE_SUMS + k];
  const double sum = block_sums(sums);
  if (thread() < PREFERENCE_SUMS) p.stats[thread()] += sum;
  if (thread() == 0) p.loss[0] = float(sum);
}

// Sums of x over the lanes up to this one
DEVICE uint32_t scan_lanes(uint32_t x) {
  for (int n = 1; n < 32; n *= 2) {
    const uint32_t before = shuffle_up(x, n);
    if (lane() >= n) x += before;
  }
  return x;
}

// A pass of the sort. A thread has RECORDS neighbours, and a counter for each digit: counts[digit][thread].
DEVICE void count_digits(const SortParams& p, Shared<uint32_t> counts) {
  for (int digit = 0; digit < DIGITS; digit++) counts[256 * digit + thread()] = 0u;
  const int64_t first = block_x() * RECORDS_BLOCK + RECORDS * thread();
  for (int64_t i = first; i < first + RECORDS && i < p.n; i++)
    counts[256 * (p.from[i].score >> p.shift & (DIGITS - 1)) + thread()] += 1u;
  sync_threads();
}
// A warp turns the counts of a digit into `before` and the counts of earlier threads. Returns `before` and all counts.
DEVICE uint32_t scan_digit(Shared<uint32_t> counts, int digit, uint32_t before) {
  for (int from = 256 * digit; from < 256 * (digit + 1); from += 32) {
    const uint32_t own = counts[from + lane()], sum = scan_lanes(own);
    counts[from + lane()] = before + sum - own;
    before += shuffle(sum, 31);
  }
  return before;
}
KERNEL(preference_count, SortParams, 256) {
  SharedMemory memory;
  const Shared<uint32_t> counts = memory.take<uint32_t>(256 * DIGITS);
  count_digits(p, counts);
  for (int digit = warp(); digit < DIGITS; digit += 8) {
    const uint32_t all = scan_digit(counts, digit, 0);
    if (lane() == 0) p.counts[digit * p.blocks + block_x()] = all;
  }
}
// Each count becomes the sum of those before it. A thread has a stretch of counts.
KERNEL(preference_places, SortParams, 256) {
  SharedMemory memory;
  const Shared<uint32_t> warps = memory.take<uint32_t>(8);
  const int64_t n = DIGITS * p.blocks, each = (n + 255) / 256, first = each * thread(), end = min(n, first + each);
  uint32_t own = 0;
  for (int64_t i = first; i < end; i++) own += p.counts[i];
  const uint32_t sum = scan_lanes(own);
  if (lane() == 31) warps[warp()] = sum;
  sync_threads();
  uint32_t before = sum - own;
  for (int w = 0; w < warp(); w++) before += warps[w];
  for (int64_t i = first; i < end; i++) {
    const uint32_t here = p.counts[i];
    p.counts[i] = before;
    before += here;
  }
}
KERNEL(preference_move, SortParams, 256) {
  SharedMemory memory;
  const Shared<uint32_t> places = memory.take<uint32_t>(256 * DIGITS);
  count_digits(p, places);
  for (int digit = warp(); digit < DIGITS; digit += 8)
    scan_digit(places, digit, p.counts[digit * p.blocks + block_x()]);
  sync_threads();
  const int64_t first = block_x() * RECORDS_BLOCK + RECORDS * thread();
  for (int64_t i = first; i < first + RECORDS && i < p.n; i++) {
    const Record record = p.from[i];
    const int at = 256 * (record.score >> p.shift & (DIGITS - 1)) + thread();
    const uint32_t place = places[at];
    p.to[place] = record;
    places[at] = place + 1;
  }
}

KERNEL(preference_clear, GatherParams, 256) {
  const int64_t m = int64_t(block_x()) * 256 + thread();
  if (m < p.M) p.dscores[m] = p.error[0] != 0 ? NOT_A_NUMBER : 0;
}
KERNEL(preference_gather, GatherParams, 256) {
  constexpr int AHEAD = 4;  // loads on their way
  const int64_t first = int64_t(block_x()) * 256 + thread();
  if (first >= p.n || p.error[0] != 0) return;
  const int32_t score = p.records[first].score;
  if (first > 0 && p.records[first - 1].score == score) return;
  float sum = 0;
  bool own = true;
  for (int64_t i = first; own; i += AHEAD) {
    Record next[AHEAD];
    UNROLL for (int k = 0; k < AHEAD; k++) next[k] = i + k < p.n ? p.records[i + k] : Record{-1, 0};
    UNROLL for (int k = 0; k < AHEAD; k++) {
      own = own && next[k].score == score;
      if (own) sum += next[k].slope;
    }
  }
  p.dscores[score] = sum;
}

#endif

#if RLHF_HOST_CODE
namespace {

// Orders n records by score, of which there are M. They end in one of the two arrays, which is returned.
Global<Record> sort_records(
    Context& ctx, Global<Record> records, Global<Record> other, Global<uint32_t> counts, int64_t n, int64_t M) {
  const int64_t blocks = (n + RECORDS_BLOCK - 1) / RECORDS_BLOCK;
  for (int shift = 0; shift < 31 && (M - 1) >> shift > 0; shift += 4) {
    const SortParams p{records, other, counts, n, blocks, shift};
    constexpr int64_t shared = 256 * DIGITS * int64_t(sizeof(uint32_t));
    launch(ctx, "preference_count", {blocks}, 256, shared, p);
    launch(ctx, "preference_places", {blocks > 0}, 256, 8 * sizeof(uint32_t), p);
    launch(ctx, "preference_move", {blocks}, 256, shared, p);
    std::swap(records, other);
  }
  return records;
}

struct PreferenceMemory {
  Global<Record> records[2];
  Global<uint32_t> counts;
  Global<double> partial;
  PreferenceMemory(Workspace& w, int64_t P)
      : records{w.take<Record>(2 * P), w.take<Record>(2 * P)},
        counts(w.take<uint32_t>(DIGITS * ((2 * P + RECORDS_BLOCK - 1) / RECORDS_BLOCK))),
        partial(w.take<double>(sum_blocks_of(P) * PREFERENCE_SUMS)) {}
};

}  // namespace

void preference_loss(Context& ctx, const preference_loss_args& a) {
  const int64_t M = a.scores.dim[0], P = a.chosen.dim[0], blocks = sum_blocks_of(P);
  Workspace measure{nullptr};
  PreferenceMemory(measure, P);
  char* base = static_cast<char*>(ctx.scratch(measure.used));
  if (!base) return;
  if (a.form != Preference::bradley_terry && !a.ref_scores) return ctx.fail("ref_scores is missing");
  if (P > int64_t(1) << 31) return ctx.fail("there are more than 2^31 pairs");
  Workspace w{base};
  const PreferenceMemory memory(w, P);
  const Latch error = latch_of(ctx);
  const PairParams pairs{global(a.scores), global(a.ref_scores), global(a.margin), global(a.label), global(a.weight),
      global(a.chosen), global(a.rejected), memory.records[0], memory.partial, M, P, int32_t(a.form), a.beta,
      a.label_smoothing, a.center_coef, a.scale / a.denominator, error};
  launch(ctx, "preference_pairs", {blocks}, 256, block_sums_shared(PREFERENCE_SUMS), pairs);
  const PreferenceFinishParams finish{memory.partial, global(a.stats), global(a.loss), blocks};
  launch(ctx, "preference_finish", {1}, 256, block_sums_shared(PREFERENCE_SUMS), finish);
  const Global<Record> records = sort_records(ctx, memory.records[0], memory.records[1], memory.counts, 2 * P, M);
  const GatherParams gather{records, global(a.dscores), 2 * P, M, error};
  launch(ctx, "preference_clear", {(M + 255) / 256}, 256, 0, gather);
  launch(ctx, "preference_gather", {(2 * P + 255) / 256}, 256, 0, gather);
}
#endif

}  // namespace rlhf::cuda
