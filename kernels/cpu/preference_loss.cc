// Losses of comparisons: pair p prefers s_c = scores[chosen[p]] to s_r = scores[rejected[p]].
//
//   bradley_terry (Christiano et al. 2017; margin: Touvron et al. 2023): z = s_c - s_r - margin
//   dpo (Rafailov et al. 2023): z = beta ((s_c - ref_c) - (s_r - ref_r)) - margin
//     l = -q log sigmoid(z) - (1 - q) log sigmoid(-z),  q = label, smoothed to q (1 - e) + (1 - q) e;  dl/dz = sigmoid(z) - q
//   ipo (Azar et al. 2023): l = (z - 1/(2 beta))^2,  z = (s_c - ref_c) - (s_r - ref_r), of log-probs averaged per token
//   plus center_coef (s_c + s_r)^2;  loss = scale / denominator sum over pairs of weight l
//
// Law: in f64; each score gets its contributions in the order of the pairs. The sums of up to 4,096 pairs are chains, continued
// from the statistics (so that an update of no more ends with the same ones however it is split); those of more are law 4's.
// Plan: blocks of 4,096 pairs over threads, where each thread's pairs have scores of their own; 256 pairs at a time are
// gathered, computed sixteen abreast and scattered, so that no vector waits for the stores of its lanes.
//
// AMD Zen 4, AVX-512, 2 cores, two threads, 1 M pairs: 3.2 ms (49 pair by pair on one thread), a sixth of the limit; 4.9 where
// threads' pairs share scores and one does all. One pass over a chunk in place of three took 3.1 to 4.9, in another run.
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

struct Ids {
  int32_t least, most;
  RLHF_INLINE Ids(const int32_t* x, const int32_t* y, int64_t n) : least(INT32_MAX), most(-1) {
    I low = seti(least), high = seti(most);
    const auto with = [&](I i) __attribute__((always_inline)) { low = select(i < low, i, low), high = select(high < i, i, high); };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) with(load(x + i)), with(load(y + i));
    for (; i < n; i++) with(seti(x[i])), with(seti(y[i]));
    int32_t lanes[2][LANES];
    store(lanes[0], low), store(lanes[1], high);
    for (int k = 0; k < LANES; k++) {
      if (lanes[0][k] < least) least = lanes[0][k];
      if (lanes[1][k] > most) most = lanes[1][k];
    }
  }
};

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

// Three passes over a chunk, each short enough that several sixteens are under way at once.
// z and exp(-|z|)
template <Preference FORM, bool CHAIN>
RLHF_INLINE void differences(const preference_loss_args& a, const SixteenPairs& pairs, Chunk& x, Lanes& sums) {
  const int64_t at = pairs.at;
  D chosen = widen(load(x.scores[0] + at)), rejected = widen(load(x.scores[1] + at));
  if (FORM != Preference::bradley_terry) chosen = chosen - widen(load(x.references[0] + at)), rejected = rejected - widen(load(x.references[1] + at));
  D z = chosen - rejected;
  if (FORM == Preference::dpo) z = setd(a.beta) * z;
  if (FORM != Preference::ipo && a.margin) z = z - widen(load(&a.margin[pairs.p], pairs.n));
  store(x.z + at, z), store(x.small + at, exp_below(select(z < setd(0), z, setd(0) - z)));
  pairs.add<CHAIN>(sums.chosen, x.chosen, chosen), pairs.add<CHAIN>(sums.rejected, x.rejected, rejected);
  if (!CHAIN) pairs.add<CHAIN>(sums.z, x.z, z);
}

RLHF_INLINE D weights(const preference_loss_args& a, const SixteenPairs& pairs) {
  if (!a.weight) return setd(a.scale / a.denominator);
  return widen(load(&a.weight[pairs.p], pairs.n)) * setd(a.scale) / setd(a.denominator);
}
RLHF_INLINE D labels(const preference_loss_args& a, const SixteenPairs& pairs) {
  const D q = a.label ? widen(load(&a.label[pairs.p], pairs.n)) : setd(1);
  return q * setd(1 - a.label_smoothing) + (setd(1) - q) * setd(a.label_smoothing);
}
RLHF_INLINE D both(const SixteenPairs& pairs, const Chunk& x) { return widen(load(x.scores[0] + pairs.at)) + widen(load(x.scores[1] + pairs.at)); }

// Gradients; returns twice the wins, a tie is half of one.
template <Preference FORM, bool CHAIN>
RLHF_INLINE int64_t slopes(const preference_loss_args& a, const SixteenPairs& pairs, Chunk& x, Lanes& sums) {
  const int64_t at = pairs.at;
  const D one = setd(1), none = setd(0), z = load(x.z + at), small = load(x.small + at);
  const B positive = none < z, negative = z < none;
  const D probability = select(negative, small, one) / (one + small);  // sigmoid(z)
  D dz = probability - labels(a, pairs), beta = one;
  if (FORM == Preference::dpo) beta = setd(a.beta);
  if (FORM == Preference::ipo) dz = z - setd(1 / (2 * a.beta)), dz = dz + dz;
  const D weight = weights(a, pairs), slope = weight * beta * dz;
  D up = slope, down = none - slope;
  if (a.center_coef != 0) {
    const D center = weight * setd(2) * setd(a.center_coef) * both(pairs, x);
    up = slope + center, down = center - slope;
  }
  store(x.slopes[0] + at, narrow(up)), store(x.slopes[1] + at, narrow(down));
  pairs.add<CHAIN>(sums.probability, x.probability, probability);
  const B there = first(pairs.n), tied = !positive & !negative & (z < setd(__builtin_inf()));
  return 2 * __builtin_popcount(bits(positive & there)) + __builtin_popcount(bits(tied & there));
}

template <Preference FORM, bool CHAIN>
RLHF_INLINE void losses(const preference_loss_args& a, const SixteenPairs& pairs, Chunk& x, Lanes& sums) {
  const D none = setd(0), z = load(x.z + pairs.at);
  D l;
  if (FORM == Preference::ipo) {
    const D off = z - setd(1 / (2 * a.beta));
    l = off * off;
  } else {
    const D q = labels(a, pairs), size = select(z < none, none - z, z);
    l = log1p(load(x.small + pairs.at)) + select(none < z, setd(1) - q, q) * size;  // softplus(-|z|), and |z| of the side that lost
  }
  if (a.center_coef != 0) {
    const D sum = both(pairs, x);
    l = l + setd(a.center_coef) * sum * sum;
  }
  pairs.add<CHAIN>(sums.loss, x.loss, weights(a, pairs) * l);
}

// Pairs [begin, end): their gradients, and their sums to *total. Scores from *cleared on hold nothing yet.
template <Preference FORM, bool CHAIN>
RLHF_INLINE void pairs_in_order(const preference_loss_args& a, int64_t begin, int64_t end, int64_t* cleared, Sums* total) {
  const float *scores = a.scores.data, *references = a.ref_scores.data;
  float* dscores = a.dscores.data;
  Chunk x;
  Lanes lanes;
  Sums all = *total;
  for (int64_t first_pair = begin; first_pair < end; first_pair += CHUNK) {
    const int64_t n = end - first_pair < CHUNK ? end - first_pair : CHUNK;
    const int32_t *chosen = &a.chosen[first_pair], *rejected = &a.rejected[first_pair];
    for (int64_t i = 0; i < n; i++) x.scores[0][i] = scores[chosen[i]], x.scores[1][i] = scores[rejected[i]];
    for (int64_t i = 0; FORM != Preference::bradley_terry && i < n; i++)
      x.references[0][i] = references[chosen[i]], x.references[1][i] = references[rejected[i]];
    for (int64_t i = n; i % LANES; i++)
      for (int side = 0; side < 2; side++) x.scores[side][i] = x.references[side][i] = 0;
    int64_t wins = 0;
    const auto each = [&](auto&& f) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; i += LANES) f(SixteenPairs{first_pair + i, i, n - i < LANES ? int(n - i) : LANES});
    };
    each([&](const SixteenPairs& pairs) __attribute__((always_inline)) { differences<FORM, CHAIN>(a, pairs, x, lanes); });
    each([&](const SixteenPairs& pairs) __attribute__((always_inline)) { wins += slopes<FORM, CHAIN>(a, pairs, x, lanes); });
    each([&](const SixteenPairs& pairs) __attribute__((always_inline)) { losses<FORM, CHAIN>(a, pairs, x, lanes); });
    all.wins = all.wins + 0.5 * double(wins), all.pairs = all.pairs + double(n);
    const int64_t beyond = int64_t(Ids(chosen, rejected, n).most) + 1;
    if (beyond > *cleared) std::memset(dscores + *cleared, 0, size_t(beyond - *cleared) * sizeof(float)), *cleared = beyond;
    for (int64_t i = 0; i < n; i++) {
      const int32_t c = chosen[i], r = rejected[i];
      dscores[c] = dscores[c] + x.slopes[0][i], dscores[r] = dscores[r] + x.slopes[1][i];
      if (!CHAIN) continue;
      all.loss = all.loss + x.loss[i], all.own = all.own + x.loss[i], all.z = all.z + x.z[i];
      all.chosen = all.chosen + x.chosen[i], all.rejected = all.rejected + x.rejected[i], all.probability = all.probability + x.probability[i];
    }
  }
  if (!CHAIN) {
    const double loss = sum(lanes.loss);
    all.loss = all.loss + loss, all.own = all.own + loss, all.z = all.z + sum(lanes.z);
    all.chosen = all.chosen + sum(lanes.chosen), all.rejected = all.rejected + sum(lanes.rejected);
    all.probability = all.probability + sum(lanes.probability);
  }
  *total = all;
}

template <bool CHAIN>
RLHF_INLINE void pairs_in_order(const preference_loss_args& a, int64_t begin, int64_t end, int64_t* cleared, Sums* total) {
  switch (a.form) {
    case Preference::bradley_terry: return pairs_in_order<Preference::bradley_terry, CHAIN>(a, begin, end, cleared, total);
    case Preference::dpo: return pairs_in_order<Preference::dpo, CHAIN>(a, begin, end, cleared, total);
    case Preference::ipo: return pairs_in_order<Preference::ipo, CHAIN>(a, begin, end, cleared, total);
  }
}

}  // namespace

void preference_loss(Context& ctx, const preference_loss_args& a) {
  const int64_t P = a.chosen.dim[0], M = a.scores.dim[0], blocks = (P + SUM_BLOCK - 1) / SUM_BLOCK;
  Sums* sums = static_cast<Sums*>(ctx.scratch(blocks * int64_t(sizeof(Sums)) + 2 * ctx.threads * int64_t(sizeof(int64_t))));
  if (!sums) return;
  if (a.form != Preference::bradley_terry && !a.ref_scores) return ctx.fail("ref_scores is missing");
  int64_t *least = reinterpret_cast<int64_t*>(sums + blocks), *most = least + ctx.threads;
  const auto from = [&](int64_t part, int64_t parts) { return blocks * part / parts; };
  const auto pair = [&](int64_t block) { return block * SUM_BLOCK < P ? block * SUM_BLOCK : P; };

  int64_t parts = blocks / 2 < ctx.threads ? blocks / 2 : ctx.threads;
  if (parts > 1)
    ctx.each([&](int part) {
      if (part >= parts) return;
      const int64_t begin = pair(from(part, parts)), end = pair(from(part + 1, parts));
      const Ids ids(&a.chosen[begin], &a.rejected[begin], end - begin);
      least[part] = ids.least, most[part] = ids.most;
    });
  for (int64_t part = 1; part < parts; part++)
    if (least[part] <= most[part - 1]) parts = 1;
  if (parts < 1) parts = 1;

  Sums total{a.stats[0], a.stats[1], a.stats[2], a.stats[3], a.stats[4], a.stats[5], a.stats[6], 0};
  const auto share = [&](int64_t part) {
    int64_t cleared = part > 0 ? most[part - 1] + 1 : 0;
    const int64_t zone = part + 1 < parts ? most[part] + 1 : M;
    if (blocks == 1) pairs_in_order<true>(a, 0, P, &cleared, &total);
    else
      for (int64_t block = from(part, parts); block < from(part + 1, parts); block++) {
        sums[block] = Sums{};
        pairs_in_order<false>(a, pair(block), pair(block + 1), &cleared, &sums[block]);
      }
    std::memset(a.dscores.data + cleared, 0, size_t(zone - cleared) * sizeof(float));
  };
  if (parts > 1)
    ctx.each([&](int part) {
      if (part < parts) share(part);
    });
  else share(0);

  double* totals = &total.loss;
  for (int64_t block = 0; block < blocks && blocks > 1; block++)
    for (int k = 0; k < PREFERENCE_SUMS; k++) totals[k] = totals[k] + (&sums[block].loss)[k];
  for (int k = 0; k < 7; k++) a.stats[k] = totals[k];
  a.loss[0] = float(total.own);
}

}  // namespace rlhf::RLHF_ISA
