// The preference loss over many blocks of pairs: the same bits for every ISA and number of threads, whether threads'
// pairs share scores or not, and next to the formula; an update of up to one block ends with the same statistics
// however it is split.
#include <algorithm>

#include "test/native/check.h"

namespace {

constexpr int64_t BLOCK = 4096;
enum Form { BRADLEY_TERRY, DPO, IPO };

struct Update {
  std::string name;
  Form form;
  check::Tensor<int32_t> chosen, rejected;
  check::Tensor<float> scores, references, margin, label, weight;
  check::Tensor<double> stats{{8}};
  check::Tensor<float> loss{{1}}, dscores;

  // id(pair, side): which of M scores
  template <class Id>
  Update(const std::string& what, Form form, int64_t P, int64_t M, check::Random& random, Id&& id)
      : name(what),
        form(form),
        chosen({P}),
        rejected({P}),
        scores({M}, random),
        references({M}, random),
        margin({P}, random),
        label({P}),
        weight({P}, random),
        dscores({M}) {
    for (int64_t p = 0; p < P; p++)
      chosen[p] = int32_t(id(p, 0)), rejected[p] = int32_t(id(p, 1)), label[p] = float(random.uniform());
    for (int64_t k = 0; k < 8; k++) stats[k] = 0.5;
  }

  // Pairs [begin, end), as one call
  void run(check::Stream& on, int64_t begin, int64_t end) {
    const auto part = [&](const rlhf_tensor* all) {
      rlhf_tensor t = *all;
      t.data = static_cast<char*>(t.data) + 4 * begin, t.dims[0] = end - begin;
      return t;
    };
    const rlhf_tensor c = part(chosen), r = part(rejected), m = part(margin), q = part(label), w = part(weight);
    CALL(on, preference_loss, scores, references, &c, &r, &m, &q, &w, form, 0.3, 0.1, 0.01, 7.0, 0.7, stats, loss,
        dscores);
  }
};

void expect_formula(const Update& u) {
  const int64_t P = u.chosen.t.dims[0], M = u.scores.t.dims[0];
  std::vector<double> stats(8, 0.5), loss(1), gradients(static_cast<size_t>(M));
  const auto softplus = [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); };
  for (int64_t p = 0; p < P; p++) {
    const size_t c = size_t(u.chosen[p]), r = size_t(u.rejected[p]);
    const double sc = u.scores.data[c], sr = u.scores.data[r], both = sc + sr;
    const double a = u.form == BRADLEY_TERRY ? sc : sc - double(u.references.data[c]),
                 b = u.form == BRADLEY_TERRY ? sr : sr - double(u.references.data[r]);
    const double beta = u.form == DPO ? 0.3 : 1, z = beta * (a - b) - (u.form == IPO ? 0 : double(u.margin[p]));
    const double q = u.label[p] * 0.9 + (1 - double(u.label[p])) * 0.1, w = double(u.weight[p]) * 0.7 / 7,
                 off = z - 1 / 0.6, sigmoid = 1 / (1 + std::exp(-z));
    const double l = w * ((u.form == IPO ? off * off : q * softplus(-z) + (1 - q) * softplus(z)) + 0.01 * both * both);
    const double slope = w * (u.form == IPO ? 2 * off : beta * (sigmoid - q)), center = w * 0.02 * both;
    gradients[c] += slope + center, gradients[r] += center - slope, loss[0] += l;
    const double values[] = {l, z > 0 ? 1.0 : z == 0 ? 0.5 : 0, z, a, b, 1, sigmoid};
    for (size_t k = 0; k < 7; k++) stats[k] += values[k];
  }
  check::expect_near(u.dscores.data, gradients, 1e-5, 2e-5, u.name + ": dscores");
  check::expect_near(u.loss.data, loss, 1e-5, 1e-5, u.name + ": loss");
  check::expect_near(u.stats.data, stats, 1e-9, 1e-9, u.name + ": stats");
}

}  // namespace

int main() {
  check::Random random(1);
  const int64_t P = 9 * BLOCK + 77;
  std::vector<Update> updates;
  for (const Form form : {BRADLEY_TERRY, DPO, IPO}) {
    updates.emplace_back("pairs side by side, scores of no pair between", form, P, 3 * P + 5, random,
        [](int64_t p, int side) { return 3 * p + side; });
    updates.emplace_back(
        "rankings of four", form, P, P, random, [](int64_t p, int side) { return p / 6 * 4 + (side ? 3 : p % 3); });
    updates.emplace_back(
        "chosen first, then rejected", form, P, 2 * P, random, [&](int64_t p, int side) { return p + side * P; });
    updates.emplace_back("any pairs", form, P, 100, random, [&](int64_t, int) { return random.below(100); });
    updates.emplace_back("one block", form, BLOCK, 2 * BLOCK, random, [](int64_t p, int side) { return 2 * p + side; });
  }
  for (const Update& update : updates) {
    check::same_everywhere<double>(update.name, [&](check::Stream& on) {
      Update u = update;
      u.run(on, 0, u.chosen.t.dims[0]);
      expect_formula(u);
      std::vector<double> all = u.stats.data;
      for (const float x : u.dscores.data) all.push_back(x);
      all.push_back(u.loss[0]);
      return all;
    });
  }

  const Update& whole = updates[4];
  check::Stream on("scalar", 1);
  Update once = whole, split = whole;
  once.run(on, 0, BLOCK);
  for (int64_t p = 0; p < BLOCK; p += 700) split.run(on, p, std::min(BLOCK, p + 700));
  check::expect(check::same_bits(split.stats.data, once.stats.data),
      "statistics of an update in parts are not those of the whole");
  return check::report();
}
