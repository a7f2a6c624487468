// Losses of comparisons; the formulas are those of kernels/cpu/preference_loss.cc, in f64.
// Plan: a thread per pair, then a thread per score that adds what its pairs give it, in their order; the sums in a
// third launch.
#include "kernels/cuda/sums.h"

namespace rlhf::cuda {

constexpr int PREFERENCE_SUMS = 7;

struct PairParams {
  Global<const float> scores, ref_scores, margin, label, weight;
  Global<const int32_t> chosen, rejected;
  Global<double> pairs;  // [P][PREFERENCE_SUMS + 2]: the statistics of a pair, then d/d chosen, d/d rejected
  Global<double> stats;
  Global<float> loss, dscores;
  int64_t M, P;
  int32_t form;  // Preference
  double beta, label_smoothing, center_coef, factor;  // factor: scale / denominator
  Latch error;
};
constexpr int PAIR = PREFERENCE_SUMS + 2;

#if RLHF_DEVICE_CODE

KERNEL(preference_pairs, PairParams, 128) {
  const int64_t i = int64_t(block_x()) * 128 + thread();
  if (i >= p.P) return;
  const Global<double> out = p.pairs + i * PAIR;
  const int64_t c = p.chosen[i], r = p.rejected[i];
  if (c < 0 || c >= p.M || r < 0 || r >= p.M) {
    latch(p.error, BAD_ID);
    for (int k = 0; k < PAIR; k++) out[k] = double(NOT_A_NUMBER);
    return;
  }
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
  const double both = double(p.scores[c]) + p.scores[r];
  l += p.center_coef * both * both;
  const double slope = weight * beta * dz, center = weight * 2 * p.center_coef * both, small = exp(z < 0 ? z : -z);
  out[0] = weight * l,
  out[1] = z > 0    ? 1.0
           : z == 0 ? 0.5
                    : 0.0,
  out[2] = z, out[3] = chosen, out[4] = rejected, out[5] = 1;
  out[6] = z < 0 ? small / (1 + small) : 1 / (1 + small);
  out[7] = slope + center, out[8] = center - slope;
}

KERNEL(preference_scores, PairParams, 128) {
  const int64_t m = int64_t(block_x()) * 128 + thread();
  if (m >= p.M) return;
  float sum = 0;
  for (int64_t i = 0; i < p.P; i++) {
    if (p.chosen[i] == m) sum += float(p.pairs[i * PAIR + 7]);
    if (p.rejected[i] == m) sum += float(p.pairs[i * PAIR + 8]);
  }
  p.dscores[m] = p.error[0] != 0 ? NOT_A_NUMBER : sum;
}

KERNEL(preference_finish, PairParams, 32) {
  double sum = 0;
  if (lane() >= PREFERENCE_SUMS) return;
  for (int64_t i = 0; i < p.P; i++) sum += p.pairs[i * PAIR + lane()];
  p.stats[lane()] += sum;
  if (lane() == 0) p.loss[0] = float(sum);
}

#endif

#if RLHF_HOST_CODE
void preference_loss(Context& ctx, const preference_loss_args& a) {
  const int64_t M = a.scores.dim[0], P = a.chosen.dim[0];
  double* memory = static_cast<double*>(ctx.scratch(P * PAIR * int64_t(sizeof(double)) + 8));
  if (!memory) return;
  if (a.form != Preference::bradley_terry && !a.ref_scores) return ctx.fail("ref_scores is missing");
  const PairParams p{global(a.scores), global(a.ref_scores), global(a.margin), global(a.label), global(a.weight),
      global(a.chosen), global(a.rejected), global<double>(memory, P * PAIR), global(a.stats), global(a.loss),
      global(a.dscores), M, P, int32_t(a.form), a.beta, a.label_smoothing, a.center_coef, a.scale / a.denominator,
      latch_of(ctx)};
  launch(ctx, "preference_pairs", {(P + 127) / 128}, 128, 0, p);
  launch(ctx, "preference_scores", {(M + 127) / 128}, 128, 0, p);
  launch(ctx, "preference_finish", {1}, 32, 0, p);
}
#endif

}  // namespace rlhf::cuda
