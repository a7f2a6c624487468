// The GPU's preference loss, simulated: its accesses to memory grow as the pairs do, and a score that stands in many
// pairs gets its gradient in the order of the pairs.
#include "kernels/cuda/simt.h"
#include "test/native/check.h"

namespace {

struct Gpu {
  char why[256] = "";
  rlhf_stream* handle = rlhf_cuda_stream_create(0, nullptr, why, sizeof why);
  std::string name = "the simulated GPU";
  ~Gpu() { rlhf_stream_destroy(handle); }
};

// P pairs of any of M scores
struct Update {
  check::Tensor<float> scores, loss{{1}}, dscores;
  check::Tensor<int32_t> chosen, rejected;
  check::Tensor<double> stats{{8}};

  Update(int64_t P, int64_t M, check::Random& random) : scores({M}, random), dscores({M}), chosen({P}), rejected({P}) {
    for (int64_t i = 0; i < P; i++) chosen[i] = int32_t(random.below(M)), rejected[i] = int32_t(random.below(M));
  }
  void run(Gpu& on) {
    const rlhf_tensor* none = nullptr;
    CALL(on, preference_loss, scores, none, chosen, rejected, none, none, none, 0, 0.3, 0.0, 0.0, 7.0, 1.0, stats, loss,
        dscores);
  }
  // what the law says of gradients: each score's in the order of the pairs, rounded to f32 at each addition
  std::vector<float> in_order() const {
    std::vector<float> sums(scores.data.size());
    for (size_t i = 0; i < chosen.data.size(); i++) {
      const size_t c = size_t(chosen.data[i]), r = size_t(rejected.data[i]);
      const double z = double(scores.data[c]) - double(scores.data[r]), small = std::exp(z < 0 ? z : -z);
      const double slope = 1.0 / 7 * ((z < 0 ? small / (1 + small) : 1 / (1 + small)) - 1);
      sums[c] += float(slope), sums[r] += float(0 - slope);
    }
    return sums;
  }
};

int64_t accesses(int64_t P, int64_t M, uint64_t stream) {
  check::Random random(stream);
  Update update(P, M, random);
  Gpu on;
  const int64_t before = rlhf::simt::accesses;
  update.run(on);
  const int64_t count = rlhf::simt::accesses - before;
  check::expect(check::same_bits(update.dscores.data, update.in_order()),
      "%lld pairs over %lld scores: gradients are not sums in the order of the pairs", (long long)P, (long long)M);
  return count;
}

}  // namespace

int main() {
  // M as P: four times the pairs take one pass of the sort more, which counts each record twice and moves it
  for (const int64_t P : {2000, 8000}) {
    const int64_t once = accesses(P, 2 * P, 1), four = accesses(4 * P, 8 * P, 2);
    check::expect(four < 6 * once, "%lld accesses at %lld pairs, %lld at four times as many", (long long)once,
        (long long)P, (long long)four);
  }
  // each score in thousands of pairs, one score in all of them
  for (const int64_t M : {1, 2, 7}) {
    const int64_t once = accesses(6000, M, 3), four = accesses(24000, M, 4);
    check::expect(four < 4.1 * double(once), "%lld accesses at 6000 pairs over %lld scores, %lld at 24000",
        (long long)once, (long long)M, (long long)four);
  }
  return check::report();
}
