// attention, its backward and the cache: f64 reference, the same bits on every ISA and for every number of threads,
// alone and in a batch, with shared prefixes and without, from the cache and from the whole sequence.
#include "check.h"

using namespace check;

namespace {

struct Batch {
  int64_t H, G, D, N = 0;
  std::vector<int32_t> offsets{0}, before;
  double scale;
  Tensor<float> q{{0}}, k{{0}}, v{{0}}, d_o{{0}};
  Tensor<int32_t> cu{{0}}, prefix{{0}};
  bool shared = false;

  Batch(int64_t H, int64_t G, int64_t D, std::vector<int> lengths, Random& random, std::vector<int> prefixes = {},
      int64_t gap = 0)
      : H(H), G(G), D(D), scale(1 / std::sqrt(double(D))) {
    for (int n : lengths) N += n, offsets.push_back(int32_t(N));
    q = Tensor<float>({N, H, D}, random, 2, H * D + gap), k = Tensor<float>({N, G, D}, random, 2, G * D + gap);
    v = Tensor<float>({N, G, D}, random, 1, G * D + gap), d_o = Tensor<float>({N, H, D}, random, 1, H * D + gap);
    cu = Tensor<int32_t>({int64_t(offsets.size())}), cu.data.assign(offsets.begin(), offsets.end()),
    cu.t.data = cu.data.data();
    shared = !prefixes.empty();
    before.assign(lengths.size(), -1);
    if (shared) before.assign(prefixes.begin(), prefixes.end());
    prefix = Tensor<int32_t>({int64_t(before.size())});
    prefix.data.assign(before.begin(), before.end()), prefix.t.data = prefix.data.data();
  }
  int64_t B() const { return int64_t(before.size()); }
  const rlhf_tensor* prefixes() const { return shared ? &prefix.t : nullptr; }
  // token rows that sequence b sees, in order of position
  std::vector<int64_t> keys(int64_t b) const {
    std::vector<int64_t> rows;
    if (before[b] >= 0) rows = keys(before[b]);
    for (int64_t i = offsets[b]; i < offsets[b + 1]; i++) rows.push_back(i);
    return rows;
  }
};

struct Forward {
  Tensor<float> o, lse;
  explicit Forward(const Batch& x) : o({x.N, x.H, x.D}), lse({x.N, x.H}) {}
};

Forward forward(Stream& s, const Batch& x) {
  Forward y(x);
  CALL(s, attention, x.q, x.k, x.v, x.cu, x.prefixes(), x.scale, y.o, y.lse);
  return y;
}

struct Reference {
  std::vector<double> o, lse, dq, dk, dv;
};

Reference reference(const Batch& x) {
  Reference r;
  const int64_t H = x.H, G = x.G, D = x.D;
  r.o.assign(x.N * H * D, 0), r.lse.assign(x.N * H, 0), r.dq.assign(x.N * H * D, 0), r.dk.assign(x.N * G * D, 0),
      r.dv.assign(x.N * G * D, 0);
  for (int64_t b = 0; b < x.B(); b++) {
    const std::vector<int64_t> rows = x.keys(b);
    for (int64_t i = x.offsets[b]; i < x.offsets[b + 1]; i++)
      for (int64_t h = 0; h < H; h++) {
        const int64_t g = h / (H / G), n = int64_t(rows.size()) - (x.offsets[b + 1] - 1 - i);
        const float* q = &x.q[i * x.q.t.stride + h * D];
        const float* go = &x.d_o[i * x.d_o.t.stride + h * D];
        std::vector<double> s(n), dp(n);
        double top = -INFINITY, l = 0, delta = 0;
        for (int64_t j = 0; j < n; j++) {
          const float *k = &x.k[rows[j] * x.k.t.stride + g * D], *v = &x.v[rows[j] * x.v.t.stride + g * D];
          for (int64_t d = 0; d < D; d++) s[j] += double(q[d]) * k[d], dp[j] += double(go[d]) * v[d];
          s[j] *= x.scale, top = std::max(top, s[j]);
        }
        for (int64_t j = 0; j < n; j++) l += std::exp(s[j] - top);
        r.lse[i * H + h] = top + std::log(l);
        for (int64_t j = 0; j < n; j++) {
          const double p = std::exp(s[j] - top) / l;
          delta += p * dp[j];
          for (int64_t d = 0; d < D; d++) r.o[(i * H + h) * D + d] += p * x.v[rows[j] * x.v.t.stride + g * D + d];
        }
        for (int64_t j = 0; j < n; j++) {
          const double p = std::exp(s[j] - top) / l, ds = p * (dp[j] - delta) * x.scale;
          for (int64_t d = 0; d < D; d++) {
            r.dq[(i * H + h) * D + d] += ds * x.k[rows[j] * x.k.t.stride + g * D + d];
            r.dk[(rows[j] * G + g) * D + d] += ds * q[d];
            r.dv[(rows[j] * G + g) * D + d] += p * go[d];
          }
        }
      }
  }
  return r;
}

struct Backward {
  Tensor<float> dq, dk, dv;
};

Backward backward(Stream& s, const Batch& x, const Forward& y) {
  Backward g{Tensor<float>({x.N, x.H, x.D}), Tensor<float>({x.N, x.G, x.D}), Tensor<float>({x.N, x.G, x.D})};
  CALL(s, attention_grad, x.d_o, x.q, x.k, x.v, y.o, y.lse, x.cu, x.prefixes(), x.scale, g.dq, g.dk, g.dv);
  return g;
}

void holds(const std::string& what, const Batch& x) {
  Stream s("scalar", 1);
  const Forward y = forward(s, x);
  const Reference r = reference(x);
  expect_near(y.o.data, r.o, 2e-5, 1e-5, what + " o");
  expect_near(y.lse.data, r.lse, 2e-6, 2e-6, what + " lse");
  same_everywhere<float>(what, [&](Stream& t) {
    const Forward z = forward(t, x);
    std::vector<float> all;
    return append(all, z.o), append(all, z.lse), all;
  });
  const Backward g = backward(s, x, y);
  expect_near(g.dq.data, r.dq, 1e-4, 1e-4, what + " dq");
  expect_near(g.dk.data, r.dk, 1e-4, 2e-4, what + " dk");
  expect_near(g.dv.data, r.dv, 1e-4, 2e-4, what + " dv");
  same_everywhere<float>(what + " backward", [&](Stream& t) {
    const Backward z = backward(t, x, y);
    std::vector<float> all;
    return append(all, z.dq), append(all, z.dk), append(all, z.dv), all;
  });
}

// Sequence b of x and all that it continues, as one sequence of its own.
Batch alone(const Batch& x, int64_t b) {
  const std::vector<int64_t> rows = x.keys(b);
  Random random(0);
  Batch y(x.H, x.G, x.D, {int(rows.size())}, random);
  for (size_t i = 0; i < rows.size(); i++) {
    std::memcpy(&y.q[int64_t(i) * x.H * x.D], &x.q[rows[i] * x.q.t.stride], size_t(x.H * x.D) * 4);
    std::memcpy(&y.k[int64_t(i) * x.G * x.D], &x.k[rows[i] * x.k.t.stride], size_t(x.G * x.D) * 4);
    std::memcpy(&y.v[int64_t(i) * x.G * x.D], &x.v[rows[i] * x.v.t.stride], size_t(x.G * x.D) * 4);
    std::memcpy(&y.d_o[int64_t(i) * x.H * x.D], &x.d_o[rows[i] * x.d_o.t.stride], size_t(x.H * x.D) * 4);
  }
  return y;
}

void same_alone(const std::string& what, const Batch& x) {
  Stream s("scalar", 1),
      best(std::string(rlhf_isa_available()).substr(0, std::string(rlhf_isa_available()).find(' ')), 2);
  const Forward whole = forward(best, x);
  for (int64_t b = 0; b < x.B(); b++) {
    const int64_t own = x.offsets[b + 1] - x.offsets[b];
    if (own == 0) continue;
    const Batch one = alone(x, b);
    const Forward y = forward(s, one);
    const int64_t skip = (one.N - own) * x.H;
    expect(std::memcmp(&y.o[skip * x.D], &whole.o[x.offsets[b] * x.H * x.D], size_t(own * x.H * x.D) * 4) == 0,
        "%s: o of sequence %d alone", what.c_str(), int(b));
    expect(std::memcmp(&y.lse[skip], &whole.lse[x.offsets[b] * x.H], size_t(own * x.H) * 4) == 0,
        "%s: lse of sequence %d alone", what.c_str(), int(b));
    if (x.shared) continue;
    const Backward g = backward(s, one, y), all = backward(best, x, whole);
    expect(std::memcmp(&g.dq[0], &all.dq[x.offsets[b] * x.H * x.D], size_t(own * x.H * x.D) * 4) == 0,
        "%s: dq of sequence %d alone", what.c_str(), int(b));
    expect(std::memcmp(&g.dk[0], &all.dk[x.offsets[b] * x.G * x.D], size_t(own * x.G * x.D) * 4) == 0,
        "%s: dk of sequence %d alone", what.c_str(), int(b));
    expect(std::memcmp(&g.dv[0], &all.dv[x.offsets[b] * x.G * x.D], size_t(own * x.G * x.D) * 4) == 0,
        "%s: dv of sequence %d alone", what.c_str(), int(b));
  }
}

// A sequence written into a cache of rubbish, then every token of it asked for: the rows of attention.
void decodes(const std::string& what, int64_t H, int64_t G, int64_t D, int n) {
  Random random(99);
  const Batch x(H, G, D, {n}, random);
  const int64_t S = 3, T = (n + 63) / 64 * 64 + 64;
  Stream s("scalar", 1);
  const Forward y = forward(s, x);
  same_everywhere<float>(what, [&](Stream& t) {
    Tensor<float> keys({S, G, T, D}), values({S, G, T, D});
    for (auto* cache : {&keys, &values}) std::fill(cache->data.begin(), cache->data.end(), NAN);
    Tensor<int32_t> slots({n}), positions({n}), lengths({n}), from({1}), to({1});
    for (int i = 0; i < n; i++) slots[i] = 2, positions[i] = i, lengths[i] = i + 1;
    CALL(t, kv_write, x.k, x.v, slots, positions, keys, values);
    from[0] = 2, to[0] = 0;
    CALL(t, kv_copy, from, to, keys, values);
    for (int i = 0; i < n; i++) slots[i] = i % 2 ? 0 : 2;
    Tensor<float> o({n, H, D});
    CALL(t, attention_decode, x.q, keys, values, slots, lengths, x.scale, o);
    expect(same_bits(o.data, y.o.data), "%s: decode on %s equals attention", what.c_str(), t.name.c_str());
    return o.data;
  });
}

void others_do_not_leak() {
  Random random(7);
  Batch x(4, 2, 20, {70, 33, 130}, random);
  Stream s(std::string(rlhf_isa_available()).substr(0, std::string(rlhf_isa_available()).find(' ')), 2);
  const Forward y = forward(s, x);
  const Backward g = backward(s, x, y);
  for (float rubbish : {NAN, INFINITY, 1e30f}) {
    Batch z = x;
    for (int64_t i = 70; i < 103; i++)
      for (int64_t c = 0; c < 40; c++)
        z.k[i * 40 + c] = z.v[i * 40 + c] = z.q[i * 80 + c] = z.d_o[i * 80 + c] = rubbish;
    const Forward w = forward(s, z);
    const Backward e = backward(s, z, w);
    for (auto [from, to] : {std::pair{0, 70}, std::pair{103, 233}}) {
      const size_t wide = size_t(to - from) * 80 * 4, narrow = size_t(to - from) * 40 * 4;
      expect(std::memcmp(&w.o[from * 80], &y.o[from * 80], wide) == 0, "o with %g in another sequence", rubbish);
      expect(std::memcmp(&w.lse[from * 4], &y.lse[from * 4], size_t(to - from) * 16) == 0,
          "lse with %g in another sequence", rubbish);
      expect(std::memcmp(&e.dq[from * 80], &g.dq[from * 80], wide) == 0, "dq with %g in another sequence", rubbish);
      expect(std::memcmp(&e.dk[from * 40], &g.dk[from * 40], narrow) == 0, "dk with %g in another sequence", rubbish);
      expect(std::memcmp(&e.dv[from * 40], &g.dv[from * 40], narrow) == 0, "dv with %g in another sequence", rubbish);
    }
  }
}

void refuses() {
  Random random(8);
  Batch x(2, 1, 4, {3, 2}, random, {-1, 0});
  Forward y(x);
  Stream s("scalar", 2);
  std::vector<char> memory(1 << 20);
  for (int wrong : {1, 7, -2}) {
    x.prefix[1] = wrong;
    expect(rlhf_attention(s.handle, x.q, x.k, x.v, x.cu, x.prefix, 1, y.o, y.lse, memory.data(), 1 << 20) ==
               RLHF_BAD_ARGUMENT,
        "prefix %d is refused", wrong);
    expect(std::isnan(y.o[0]) && std::isnan(y.lse[9]), "o is NaN after prefix %d", wrong);
  }
  Tensor<float> q({1, 2, 4}, random), keys({1, 1, 64, 4}), values({1, 1, 64, 4}), o({1, 2, 4});
  Tensor<int32_t> slots({1}), lengths({1});
  for (int wrong : {0, 65, -1}) {
    lengths[0] = wrong;
    expect(rlhf_attention_decode(s.handle, q, keys, values, slots, lengths, 1, o, memory.data(), 1 << 20) ==
               RLHF_BAD_ARGUMENT,
        "length %d is refused", wrong);
    expect(std::isnan(o[0]), "o is NaN after length %d", wrong);
  }
  Batch odd(3, 2, 4, {3}, random);
  Forward z(odd);
  expect(rlhf_attention(s.handle, odd.q, odd.k, odd.v, odd.cu, nullptr, 1, z.o, z.lse, memory.data(), 1 << 20) ==
             RLHF_BAD_ARGUMENT,
      "3 heads over 2 are refused");
}

}  // namespace

int main() {
  Random random(1);
  const std::vector<int> odd{1, 0, 2, 63, 64, 65, 130, 200};
  holds("D 64", Batch(2, 2, 64, odd, random));
  holds("D 1, grouped", Batch(6, 2, 1, odd, random));
  holds("D 80, strided rows", Batch(4, 1, 80, {65, 0, 7}, random, {}, 5));
  holds("D 19", Batch(3, 3, 19, {129, 1}, random));
  holds("D 128, 8 heads", Batch(8, 1, 128, {50, 70}, random));
  holds("one long sequence", Batch(2, 1, 16, {700}, random));
  holds("no tokens", Batch(2, 1, 8, {0, 0}, random));
  holds("no sequences", Batch(2, 1, 8, {}, random));
  const std::vector<int> lengths{70, 3, 60, 0, 130, 64, 5}, chain{-1, 0, 0, 1, 2, -1, 3};
  holds("prefix", Batch(4, 2, 24, lengths, random, chain));
  holds("prefix, grouped", Batch(3, 1, 64, {64, 10, 20, 1}, random, {-1, 0, 0, 2}));
  same_alone("batch", Batch(4, 2, 32, odd, random));
  same_alone("prefix", Batch(4, 2, 32, lengths, random, chain));
  for (int n : {1, 2, 63, 64, 65, 130}) decodes("cache of " + std::to_string(n), 4, 2, 20, n);
  decodes("cache, one head", 1, 1, 64, 70);
  decodes("cache, 8 heads to one", 8, 1, 33, 66);
  others_do_not_leak();
  refuses();
  return report();
}
