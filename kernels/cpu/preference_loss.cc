// Losses of comparisons: pair p prefers s_c = scores[chosen[p]] to s_r = scores[rejected[p]].
//
//   bradley_terry (Christiano et al. 2017; margin: Touvron et al. 2023): z = s_c - s_r - margin
//   dpo (Rafailov et al. 2023): z = beta ((s_c - ref_c) - (s_r - ref_r)) - margin
//     l = -q log sigmoid(z) - (1 - q) log sigmoid(-z),  q = label, smoothed to q (1 - e) + (1 - q) e;  dl/dz = sigmoid(z) - q
//   ipo (Azar et al. 2023): l = (z - 1/(2 beta))^2,  z = (s_c - ref_c) - (s_r - ref_r), of log-probs averaged per token
//   plus center_coef (s_c + s_r)^2;  loss = scale / denominator sum over pairs of weight l
//
// Law: pairs are few; one thread takes them in order, in f64, and each score gets its contributions in that order.
#include "kernels/cpu/math.h"
#include "kernels/cpu/sums.h"

namespace rlhf::RLHF_ISA {

void preference_loss(Context& ctx, const preference_loss_args& a) {
  const bool reference = a.form != Preference::bradley_terry;
  if (reference && !a.ref_scores) return ctx.fail("ref_scores is missing");
  std::memset(a.dscores.data, 0, size_t(a.dscores.dim[0]) * sizeof(float));
  double loss = 0;
  for (int64_t p = 0; p < a.chosen.dim[0]; p++) {
    const int64_t c = a.chosen[p], r = a.rejected[p];
    const double chosen = double(a.scores[c]) - (reference ? a.ref_scores[c] : 0), rejected = double(a.scores[r]) - (reference ? a.ref_scores[r] : 0);
    const double weight = (a.weight ? a.weight[p] : 1.0) * a.scale / a.denominator, margin = a.margin ? a.margin[p] : 0;
    const double beta = a.form == Preference::dpo ? a.beta : 1;
    const double z = a.form == Preference::ipo ? chosen - rejected : beta * (chosen - rejected) - margin;
    const double size = z < 0 ? -z : z, small = exp(-size), probability = z < 0 ? small / (1 + small) : 1 / (1 + small);  // sigmoid(z)
    double l, dz;
    if (a.form == Preference::ipo) {
      const double off = z - 1 / (2 * a.beta);
      l = off * off, dz = 2 * off;
    } else {
      const double given = a.label ? a.label[p] : 1.0, e = a.label_smoothing, q = given * (1 - e) + (1 - given) * e;
      const double tail = log1p(small);  // softplus(-|z|)
      const double positive = (z > 0 ? 0 : size) + tail, negative = (z > 0 ? size : 0) + tail;  // -log sigmoid(z), -log sigmoid(-z)
      l = q * positive + (1 - q) * negative;
      dz = probability - q;
    }
    const double both = double(a.scores[c]) + a.scores[r];
    l = l + a.center_coef * both * both;
    const double slope = weight * beta * dz, center = weight * 2 * a.center_coef * both;
    a.dscores[c] = a.dscores[c] + float(slope + center);
    a.dscores[r] = a.dscores[r] + float(center - slope);
    loss = loss + weight * l;
    const double values[] = {weight * l, z > 0 ? 1.0 : z == 0 ? 0.5 : 0.0, z, chosen, rejected, 1, probability};
    for (int k = 0; k < 7; k++) a.stats[k] = a.stats[k] + values[k];
  }
  a.loss[0] = float(loss);
}

}  // namespace rlhf::RLHF_ISA
