// Losses of comparisons: pair p prefers s_c = scores[chosen[p]] to s_r = scores[rejected[p]].
//
//   bradley_terry (Christiano et al. 2017; margin: Touvron et al. 2023): z = s_c - s_r - margin
//   dpo (Rafailov et al. 2023): z = beta ((s_c - ref_c) - (s_r - ref_r)) - margin
//     l = -q log sigmoid(z) - (1 - q) log sigmoid(-z),  q = label, smoothed to q (1 - e) + (1 - q) e
//     dl/dz = sigmoid(z) - q
//   ipo (Azar et al. 2023): l = (z - 1/(2 beta))^2,  z = (s_c - ref_c) - (s_r - ref_r), of log-probs averaged per token
//   plus center_coef (s_c + s_r)^2;  loss = scale / denominator sum over pairs of weight l
//
// Law: in f64. Each score gets its contributions in the order of the pairs. Sums of up to 4,096
// pairs are chains that continue the statistics, so that such an update ends with the same ones
// however it is split. Those of more are law 4's.
// Plan: blocks of 4,096 pairs over threads, on the guess that each thread's pairs have scores of
// their own. The first chunk that breaks the guess stops all, and one thread does the whole. A
// chunk of 256 pairs is gathered, computed sixteen abreast and scattered, so no vector waits for
// the stores of its lanes. Scores in runs or in turns need neither.
// Figures: 11 to 48 % of the limit: f64 binds. History: kernels/notes/preference_loss.md.
#include "kernels/cpu/math.h"
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t CHUNK = 256;

// The statistics, as they stand in the list of ops, and the loss of this call alone
struct Sums {
  double loss, wins, z, chosen, rejected, pairs, probability, own;
};
constexpr int PREFERENCE_SUMS = sizeof(Sums) / sizeof(double);

// Of each pair of a chunk, the chosen's before the rejected's; the last three only where sums are chains
struct Chunk {
  alignas(64) float scores[2][CHUNK], references[2][CHUNK], slopes[2][CHUNK];
  alignas(64) double z[CHUNK], small[CHUNK], loss[CHUNK], chosen[CHUNK], rejected[CHUNK], probability[CHUNK];
};
struct Lanes {
  D loss = setd(0), z = loss, chosen = loss, rejected = loss, probability = loss;
};
// Pairs of a chunk whose z is above and below 0
struct Signs {
  D above = setd(0), below = above;
};

// x[i] = x[0] + step i
RLHF_INLINE bool is_run(const int32_t* x, int64_t n, int32_t step) {
  const I wanted = step == 1 ? iota() : iota() + iota();
  I off = seti(0);
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) off = off | ((load(x + i) - seti(x[0] + step * int32_t(i))) ^ wanted);
  bool run = all(off == seti(0));
  for (; i < n; i++) run = run && x[i] == x[0] + step * int32_t(i);
  return run;
}

// How the scores of a chunk lie: chosen and rejected in runs of their own, in turns, or in any order
enum class Layout { runs, turns, any };
RLHF_INLINE Layout layout(const int32_t* chosen, const int32_t* rejected, int64_t n) {
  const int32_t apart = chosen[0] < rejected[0] ? rejected[0] - chosen[0] : chosen[0] - rejected[0];
  if (apart == 1 && is_run(chosen, n, 2) && is_run(rejected, n, 2)) return Layout::turns;
  if (apart >= n && is_run(chosen, n, 1) && is_run(rejected, n, 1)) return Layout::runs;
  return Layout::any;
}

// Where the scores of some pairs lie.
struct Range {
  int32_t least, most;
  RLHF_INLINE Range(const int32_t* x, int64_t n, Layout layout) : least(x[0]), most(x[n - 1]) {
    if (layout != Layout::any) return;
    I low = seti(least), high = seti(most);
    const auto with = [&](I i) __attribute__((always_inline)) {
      low = select(i < low, i, low), high = select(high < i, i, high);
    };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) with(load(x + i));
    for (; i < n; i++) with(seti(x[i]));
    int32_t lanes[2][LANES];
    store(lanes[0], low), store(lanes[1], high);
    for (int k = 0; k < LANES; k++) {
      if (lanes[0][k] < least) least = lanes[0][k];
      if (lanes[1][k] > most) most = lanes[1][k];
    }
  }
};

// Part of the scores that one thread has to itself; from `cleared` on their gradients hold nothing yet.
struct Zone {
  int64_t begin, end, cleared;
  RLHF_INLINE bool holds(const Range& r) const { return r.least >= begin && r.most < end; }
  RLHF_INLINE void clear(float* dscores, int64_t to) {
    if (to > cleared) std::memset(dscores + cleared, 0, size_t(to - cleared) * sizeof(float)), cleared = to;
  }
};

// x[0][i], x[1][i]: of the chosen and the rejected of pair i
RLHF_INLINE void gather(
    const float* from, Layout layout, const int32_t* chosen, const int32_t* rejected, int64_t n, float (*x)[CHUNK]) {
  if (layout == Layout::runs) {
    std::memcpy(x[0], from + chosen[0], size_t(n) * sizeof(float)),
        std::memcpy(x[1], from + rejected[0], size_t(n) * sizeof(float));
  } else if (layout == Layout::turns) {
    const bool swapped = rejected[0] < chosen[0];
    const float* both = from + (swapped ? rejected : chosen)[0];
    float *even = x[swapped], *odd = x[!swapped];
    for (int64_t i = 0; i < n; i++) even[i] = both[2 * i], odd[i] = both[2 * i + 1];
  } else {
    for (int64_t i = 0; i < n; i++) x[0][i] = from[chosen[i]], x[1][i] = from[rejected[i]];
  }
  for (int64_t i = n; i % LANES; i++) x[0][i] = x[1][i] = 0;
}
// adds what gather would find there
RLHF_INLINE void scatter(
    const float (*x)[CHUNK], Layout layout, const int32_t* chosen, const int32_t* rejected, int64_t n, float* to) {
  if (layout == Layout::runs) {
    float *c = to + chosen[0], *r = to + rejected[0];
    for (int64_t i = 0; i < n; i++) c[i] = c[i] + x[0][i];
    for (int64_t i = 0; i < n; i++) r[i] = r[i] + x[1][i];
  } else if (layout == Layout::turns) {
    const bool swapped = rejected[0] < chosen[0];
    float* both = to + (swapped ? rejected : chosen)[0];
    const float *even = x[swapped], *odd = x[!swapped];
    for (int64_t i = 0; i < n; i++) both[2 * i] = both[2 * i] + even[i], both[2 * i + 1] = both[2 * i + 1] + odd[i];
  } else {
    for (int64_t i = 0; i < n; i++) {
      const int32_t c = chosen[i], r = rejected[i];
      to[c] = to[c] + x[0][i], to[r] = to[r] + x[1][i];
    }
  }
}

// Sixteen pairs of a chunk, of which n are there: p, p + 1 ..., at index `at` of the chunk
struct SixteenPairs {
  int64_t p, at;
  int n;
  // to the lanes of a sum, or to the terms of its chain
  template <bool CHAIN>
  RLHF_INLINE void add(D& sum, double* terms, D term) const {
    if (CHAIN) store(terms + at, term);
    else sum = sum + (n == LANES ? term : select(first(n), term, setd(0)));
  }
};

// The arguments, whatever the stores may touch. As numbers: GCC copies a vector that stands in memory by halves, which
// AVX2's loads then wait for.
struct Terms {
  const float *margins, *labels, *weights;
  double beta, target, center, smooth, sharp, scale, denominator, weight;

  RLHF_INLINE explicit Terms(const preference_loss_args& a)
      : margins(a.margin.data),
        labels(a.label.data),
        weights(a.weight.data),
        beta(a.beta),
        target(1 / (2 * a.beta)),
        center(a.center_coef),
        smooth(a.label_smoothing),
        sharp(1 - a.label_smoothing),
        scale(a.scale),
        denominator(a.denominator),
        weight(a.scale / a.denominator) {}

  RLHF_INLINE D label_of(const SixteenPairs& pairs) const {
    if (!labels) return setd(sharp);  // of the label 1
    const D q = widen(load(labels + pairs.p, pairs.n));
    return q * setd(sharp) + (setd(1) - q) * setd(smooth);
  }
  RLHF_INLINE D weight_of(const SixteenPairs& pairs) const {
    if (!weights) return setd(weight);
    return widen(load(weights + pairs.p, pairs.n)) * setd(scale) / setd(denominator);
  }
};

// Three passes over a chunk, each short enough that several sixteens are under way at once.
// The first: z and exp(-|z|), the exponential of a sixteen beside the differences of the next one.
struct Difference {
  D x;  // -|z|
  WideReduction of_exp;
};
template <Preference FORM, bool CHAIN>
RLHF_FUNCTION Difference difference(const Terms& a, const SixteenPairs& pairs, Chunk& x, Lanes& sums) {
  const int64_t at = pairs.at;
  D chosen = widen(x.scores[0] + at), rejected = widen(x.scores[1] + at);
  if (FORM != Preference::bradley_terry)
    chosen = chosen - widen(x.references[0] + at), rejected = rejected - widen(x.references[1] + at);
  D z = chosen - rejected;
  if (FORM == Preference::dpo) z = setd(a.beta) * z;
  if (FORM != Preference::ipo && a.margins) z = z - widen(load(a.margins + pairs.p, pairs.n));
  store(x.z + at, z);
  pairs.add<CHAIN>(sums.chosen, x.chosen, chosen), pairs.add<CHAIN>(sums.rejected, x.rejected, rejected);
  if (!CHAIN) pairs.add<CHAIN>(sums.z, x.z, z);
  const D minus = select(z < setd(0), z, setd(0) - z);
  return {minus, WideReduction(minus)};
}

RLHF_INLINE D both(const SixteenPairs& pairs, const Chunk& x) {
  return widen(x.scores[0] + pairs.at) + widen(x.scores[1] + pairs.at);
}

template <Preference FORM, bool CHAIN>
RLHF_FUNCTION void slopes(const Terms& a, const SixteenPairs& pairs, Chunk& x, Lanes& sums) {
  const int64_t at = pairs.at;
  const D one = setd(1), none = setd(0), z = load(x.z + at), small = load(x.small + at);
  const D probability = select(z < none, small, one) / (one + small);  // sigmoid(z)
  D dz = probability - a.label_of(pairs), beta = one;
  if (FORM == Preference::dpo) beta = setd(a.beta);
  if (FORM == Preference::ipo) dz = z - setd(a.target), dz = dz + dz;
  const D weight = a.weight_of(pairs), slope = weight * beta * dz;
  D up = slope, down = none - slope;
  if (a.center != 0) {
    const D center = weight * setd(2) * setd(a.center) * both(pairs, x);
    up = slope + center, down = center - slope;
  }
  store(x.slopes[0] + at, narrow(up)), store(x.slopes[1] + at, narrow(down));
  pairs.add<CHAIN>(sums.probability, x.probability, probability);
}

template <Preference FORM, bool CHAIN>
RLHF_FUNCTION void losses(const Terms& a, const SixteenPairs& pairs, Chunk& x, Lanes& sums, Signs& signs) {
  const D none = setd(0), one = setd(1), z = load(x.z + pairs.at);  // 0 where there is no pair
  const BD above = none < z, below = z < none;
  signs.above = signs.above + select(above, one, none), signs.below = signs.below + select(below, one, none);
  D l;
  if (FORM == Preference::ipo) {
    const D off = z - setd(a.target);
    l = off * off;
  } else {
    const D q = a.label_of(pairs), size = select(below, none - z, z);
    l = log1p(load(x.small + pairs.at)) +
        select(above, one - q, q) * size;  // softplus(-|z|), and |z| of the side that lost
  }
  if (a.center != 0) {
    const D sum = both(pairs, x);
    l = l + setd(a.center) * sum * sum;
  }
  pairs.add<CHAIN>(sums.loss, x.loss, a.weight_of(pairs) * l);
}

// What the next chunk reads and adds to, if it lies as this one of n pairs does: asked for line by line while this one
// is computed.
struct Next {
  const int32_t *chosen, *rejected;
  const float* scores;
  float* dscores;
  int64_t at[2], step;  // the first scores of two lines; scores from pair to pair

  RLHF_INLINE Next(
      const preference_loss_args& a, Layout how, const int32_t* chosen_, const int32_t* rejected_, int64_t n)
      : chosen(chosen_ + n),
        rejected(rejected_ + n),
        scores(a.scores.data),
        dscores(a.dscores.data),
        step(how == Layout::turns ? 2 : 1) {
    const int64_t first_score = chosen_[0] < rejected_[0] ? chosen_[0] : rejected_[0];
    if (how == Layout::turns) at[0] = first_score + 2 * n, at[1] = at[0] + LANES;
    else at[0] = chosen_[0] + n, at[1] = rejected_[0] + n;
  }
  RLHF_INLINE void ask(int64_t i) const {  // for those of pairs i to i + 15
    __builtin_prefetch(chosen + i), __builtin_prefetch(rejected + i);
    for (const int64_t line : at)
      __builtin_prefetch(scores + line + step * i), __builtin_prefetch(dscores + line + step * i, 1);
  }
};

// Pairs [begin, end): their gradients, and their sums to *total. False, with nothing that counts done, where a score
// lies outside the zones; where there is one zone it is all of them.
template <Preference FORM, bool CHAIN>
__attribute__((noinline)) bool pairs_in_order(
    const preference_loss_args& a, int64_t begin, int64_t end, Zone* zones, int zone_count, Sums* total) {
  Chunk x;
  Lanes lanes;
  const Terms terms(a);
  Sums all = *total;
  for (int64_t first_pair = begin; first_pair < end; first_pair += CHUNK) {
    const int64_t n = end - first_pair < CHUNK ? end - first_pair : CHUNK;
    const int32_t *chosen = &a.chosen[first_pair], *rejected = &a.rejected[first_pair];
    const Layout how = layout(chosen, rejected, n);
    const Range ranges[2] = {Range(chosen, n, how), Range(rejected, n, how)};
    for (const Range& range : ranges) {
      Zone* zone = zones;
      if (zone_count > 1 && !zone->holds(range)) zone++;
      if (!zone->holds(range)) return false;
      zone->clear(a.dscores.data, int64_t(range.most) + 1);
    }
    gather(a.scores.data, how, chosen, rejected, n, x.scores);
    if (FORM != Preference::bradley_terry) gather(a.ref_scores.data, how, chosen, rejected, n, x.references);
    const auto each = [&](auto&& f) __attribute__((always_inline)) {
      int64_t i = 0;
      for (; i + LANES <= n; i += LANES) f(SixteenPairs{first_pair + i, i, LANES});
      if (i < n) f(SixteenPairs{first_pair + i, i, int(n - i)});
    };
    const auto sixteen = [&](int64_t i) __attribute__((always_inline)) {
      return SixteenPairs{first_pair + i, i, n - i < LANES ? int(n - i) : LANES};
    };
    Difference next = difference<FORM, CHAIN>(terms, sixteen(0), x, lanes);
    const Next after(a, how, chosen, rejected, n);
    for (int64_t i = 0; i < n; i += LANES) {
      const Difference now = next;
      after.ask(i);
      if (i + 2 * LANES <= n)
        next = difference<FORM, CHAIN>(terms, SixteenPairs{first_pair + i + LANES, i + LANES, LANES}, x, lanes);
      else if (i + LANES < n) next = difference<FORM, CHAIN>(terms, sixteen(i + LANES), x, lanes);
      store(x.small + i, exp_below(now.x, now.of_exp));
    }
    each([&](const SixteenPairs& pairs)
            __attribute__((always_inline)) { slopes<FORM, CHAIN>(terms, pairs, x, lanes); });
    Signs signs;
    each([&](const SixteenPairs& pairs)
            __attribute__((always_inline)) { losses<FORM, CHAIN>(terms, pairs, x, lanes, signs); });
    const double above = sum(signs.above), below = sum(signs.below);
    double valid = double(n);  // a tie is half a win, NaN none
    if (above + below != valid)
      for (int64_t i = 0; i < n; i++)
        if (x.z[i] != x.z[i]) valid = valid - 1;
    all.wins = all.wins + 0.5 * (valid + above - below), all.pairs = all.pairs + double(n);
    scatter(x.slopes, how, chosen, rejected, n, a.dscores.data);
    for (int64_t i = 0; CHAIN && i < n; i++) {
      all.loss = all.loss + x.loss[i], all.own = all.own + x.loss[i], all.z = all.z + x.z[i];
      all.chosen = all.chosen + x.chosen[i], all.rejected = all.rejected + x.rejected[i],
      all.probability = all.probability + x.probability[i];
    }
  }
  if (!CHAIN) {
    const double loss = sum(lanes.loss);
    all.loss = all.loss + loss, all.own = all.own + loss, all.z = all.z + sum(lanes.z);
    all.chosen = all.chosen + sum(lanes.chosen), all.rejected = all.rejected + sum(lanes.rejected);
    all.probability = all.probability + sum(lanes.probability);
  }
  *total = all;
  return true;
}

template <bool CHAIN>
RLHF_INLINE bool pairs_in_order(
    const preference_loss_args& a, int64_t begin, int64_t end, Zone* zones, int zone_count, Sums* total) {
  switch (a.form) {
    case Preference::bradley_terry:
      return pairs_in_order<Preference::bradley_terry, CHAIN>(a, begin, end, zones, zone_count, total);
    case Preference::dpo: return pairs_in_order<Preference::dpo, CHAIN>(a, begin, end, zones, zone_count, total);
    case Preference::ipo: return pairs_in_order<Preference::ipo, CHAIN>(a, begin, end, zones, zone_count, total);
  }
  return true;
}

// A thread's scores, on the guess that those of its pairs follow those of the pairs before it: of the 2 parts starts
// (the chosen and the rejected of each part's first pair) each begins a stretch that ends where the next one begins.
// Returns how many zones the part's two stretches are; they are disjoint from all others', and together they are all M
// scores.
RLHF_INLINE int zones_of(const int32_t* starts, int64_t parts, int64_t part, int64_t M, Zone* zones) {
  int64_t least = INT32_MAX;
  for (int64_t k = 0; k < 2 * parts; k++) least = starts[k] < least ? starts[k] : least;
  int count = 0;
  for (int side = 0; side < 2; side++) {
    const int64_t start = starts[2 * part + side];
    int64_t end = M;
    for (int64_t k = 0; k < 2 * parts; k++)
      if (starts[k] > start && starts[k] < end) end = starts[k];
    zones[count++] = {start == least ? 0 : start, end, start == least ? 0 : start};
  }
  if (zones[1].begin == zones[0].end) zones[0].end = zones[1].end, count = 1;
  else if (zones[0].begin == zones[1].end) zones[0].begin = zones[0].cleared = zones[1].begin, count = 1;
  return count;
}

}  // namespace

void preference_loss(Context& ctx, const preference_loss_args& a) {
  const int64_t P = a.chosen.dim[0], M = a.scores.dim[0], blocks = (P + SUM_BLOCK - 1) / SUM_BLOCK;
  Sums* sums =
      static_cast<Sums*>(ctx.scratch(blocks * int64_t(sizeof(Sums)) + 2 * ctx.threads * int64_t(sizeof(int32_t))));
  if (!sums) return;
  if (a.form != Preference::bradley_terry && !a.ref_scores) return ctx.fail("ref_scores is missing");
  int32_t* starts = reinterpret_cast<int32_t*>(sums + blocks);

  int64_t parts = blocks / 2 < ctx.threads ? blocks / 2 : ctx.threads;
  const auto from = [&](int64_t part) { return blocks * part / parts; };
  Sums total{a.stats[0], a.stats[1], a.stats[2], a.stats[3], a.stats[4], a.stats[5], a.stats[6], 0};
  int shared = 0;  // threads' pairs share scores
  const auto share = [&](int64_t part) {
    Zone zones[2] = {{0, M, 0}};
    const int count = parts > 1 ? zones_of(starts, parts, part, M, zones) : 1;
    if (blocks == 1) pairs_in_order<true>(a, 0, P, zones, count, &total);
    else
      for (int64_t block = from(part); block < from(part + 1) && !__atomic_load_n(&shared, __ATOMIC_RELAXED); block++) {
        sums[block] = Sums{};
        const int64_t begin = block * SUM_BLOCK, end = begin + SUM_BLOCK < P ? begin + SUM_BLOCK : P;
        if (!pairs_in_order<false>(a, begin, end, zones, count, &sums[block]))
          __atomic_store_n(&shared, 1, __ATOMIC_RELAXED);
      }
    for (int k = 0; k < count; k++) zones[k].clear(a.dscores.data, zones[k].end);
  };
  bool apart = parts > 1;
  for (int64_t part = 0; apart && part < parts; part++) {
    const int64_t pair = from(part) * SUM_BLOCK;
    starts[2 * part] = a.chosen[pair], starts[2 * part + 1] = a.rejected[pair];
    for (int64_t k = 0; k < 2 * part; k++)
      apart = apart && starts[k] != starts[2 * part] && starts[k] != starts[2 * part + 1];
    apart = apart && starts[2 * part] != starts[2 * part + 1];
  }
  if (apart)
    ctx.each([&](int part) {
      if (part < parts) share(part);
    });
  if (!apart || shared) parts = 1, shared = 0, share(0);

  double* totals = &total.loss;
  for (int64_t block = 0; block < blocks && blocks > 1; block++)
    for (int k = 0; k < PREFERENCE_SUMS; k++) totals[k] = totals[k] + (&sums[block].loss)[k];
  for (int k = 0; k < 7; k++) a.stats[k] = totals[k];
  a.loss[0] = float(total.own);
}

}  // namespace rlhf::RLHF_ISA
