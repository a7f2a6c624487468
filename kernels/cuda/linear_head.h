// What the ops of the language-model head share on the GPU: a block of logits, its statistics, its
// gradient, and what follows from it.
//
//   x = h[rows[m]] W^T / T,  m_t = max x,  s_t = sum exp(x - m_t),  u_t = sum exp(x - m_t) (x - m_t)
//
// Each tile of 256 vocabulary entries (f32: 128) of a row is summed in f32 where it was computed.
// The target's own term is left out of s and u (kernels/cpu/logprob.h). A warp joins the tiles of a
// row in f64, lane = tile mod 32: one order for every row of every batch.
// Backward, a block of pairs at a time: g [R,V] from the recomputed logits, dh_m = g W for each
// pair, dW += g^T h[rows]. g has the dtype of h and W. In bf16 its rounding is 2^-9 of each entry,
// as that of h and W, which it is multiplied with. The exponent has the range of f32, so no
// probability is lost. dh of a token is the sum of its pairs in their order, in f32: each pair
// knows the next of its token. History: kernels/notes/linear_head.md.
#pragma once
#include "kernels/cuda/linear.h"

namespace rlhf::cuda {

template <class T>
struct LogitsParams {
  ProductParams<T> product;  // h gathered, W
  Global<const int32_t> y;  // [M], of this block, as all below
  float inverse_temperature;
  Global<float> stats;  // [M][tiles][3]
  Global<float> targets;  // [M]: the logit at y
  Global<float> logits;  // [M][stride], or null: not kept
  int64_t stride;
};

struct PairGrad {  // of each pair; dentropy may be null
  Global<const float> logp, lse, entropy, dlogp, dentropy;
};

template <class T>
struct LogitsGradParams {
  ProductParams<T> product;
  Global<const int32_t> y;
  float inverse_temperature;
  PairGrad pair;
  Global<T> g;  // [M][stride]
  int64_t stride;
};

// stats of a block of pairs to their log-probs
struct FinishParams {
  Global<const float> stats, targets;  // [M][tiles][3], [M]
  Global<const int32_t> rows, y;  // [M]
  Global<float> logp, lse, entropy;  // [M]
  int64_t M, tiles, N, V;
  float inverse_temperature;
  Latch error;
};

template <class T>
struct PackParams {
  Operand<T> from;  // gathered
  Global<T> to;  // [M][C]
};

struct LinksParams {
  Global<const int32_t> rows;  // [M]
  Global<int32_t> first, next;  // [N], [M]
  int64_t N, M;
};

template <class T>
struct GatherParams {
  Global<const float> pairs;  // [M][C]
  Global<const int32_t> first, next;
  Global<T> dh;  // [N][C]
  int64_t C;
};

#if RLHF_DEVICE_CODE

// The parts of the block's rows that its warps have left in shared memory, in their order.
template <class Mma>
DEVICE void join_parts(Shared<float> parts, const Place& at, int64_t M, int64_t tiles, float t, Global<float> stats) {
  sync_threads();
  const int64_t m = at.m + thread();
  if (thread() >= Mma::M || m >= M) return;
  const Shared<float> own = parts + thread() * Mma::PARTS * 3;
  float most = -INFINITE, s = 0, u = 0;
  for (int k = 0; k < Mma::PARTS; k++) most = max(most, own[3 * k]);
  for (int k = 0; k < Mma::PARTS; k++) {
    const float d = own[3 * k] == -INFINITE ? 0.0f : (own[3 * k] - most) * t, b = exp(d);
    s += b * own[3 * k + 1], u += b * (own[3 * k + 2] + d * own[3 * k + 1]);
  }
  const int64_t to = (m * tiles + at.n / Mma::N) * 3;
  stats[to] = most, stats[to + 1] = s, stats[to + 2] = u;
}

// The statistics of a tile of logits x, which stay in the accumulators: m = max x, the sums over (x - m) / T
template <class Mma, class T>
DEVICE void tile_stats(Mma& mma, const Place& at, const LogitsParams<T>& p, SharedMemory& memory) {
  const Shared<float> parts = memory.take<float>(Mma::PARTS > 1 ? 3 * Mma::PARTS * Mma::M : 0);
  const int64_t M = p.product.M, V = p.product.N, tiles = (V + Mma::N - 1) / Mma::N;
  const int columns = int(V - at.n < Mma::N ? V - at.n : Mma::N);
#pragma unroll
  for (int i = 0; i < Mma::ROWS; i++) {
    const int64_t m = at.m + Mma::row(i);
    const int64_t y = m < M ? p.y[m] - at.n : -1;
    const int target = y >= 0 && y < columns ? int(y) : -1;  // its column
    float most = -INFINITE;
#pragma unroll
    for (int j = 0; j < Mma::COLUMNS; j++) {
      float& x = mma.at(i, j);
      x = Mma::column(j) < columns ? x : -INFINITE;
      most = x > most ? x : most;
      if (Mma::column(j) == target) p.targets[m] = x;
    }
    for (int k = 1; k < Mma::SHARERS; k *= 2) most = max(most, shuffle_xor(most, k));
    float s = 0, u = 0;
#pragma unroll
    for (int j = 0; j < Mma::COLUMNS; j++) {
      const float x = mma.at(i, j), d = (x - most) * p.inverse_temperature;
      float e = most == -INFINITE ? (x == -INFINITE ? 0.0f : x) : exp(d);  // a row of NaN alone stays NaN
      if (Mma::column(j) == target || Mma::column(j) >= columns) e = 0;
      s += e;
      if (e > 0) u = fma(e, d, u);
    }
    for (int k = 1; k < Mma::SHARERS; k *= 2) s += shuffle_xor(s, k), u += shuffle_xor(u, k);
    if (lane() % Mma::SHARERS) continue;
    if constexpr (Mma::PARTS > 1) {
      const int to = (Mma::row(i) * Mma::PARTS + Mma::part()) * 3;
      parts[to] = most, parts[to + 1] = s, parts[to + 2] = u;
    } else if (m < M) {
      const int64_t to = (m * tiles + at.n / Mma::N) * 3;
      p.stats[to] = most, p.stats[to + 1] = s, p.stats[to + 2] = u;
    }
  }
  if constexpr (Mma::PARTS > 1) join_parts<Mma>(parts, at, M, tiles, p.inverse_temperature, p.stats);
}

// d loss / d logit of one row, with p_j = exp(logit_j / T - lse):
//   g_j = -(dlogp p_j + dentropy p_j (log p_j + H)) / T;  at the target -dlogp expm1(logp) / T in place of -dlogp p / T
struct RowGrad {
  float lse, entropy, dlogp, dentropy, own, t;
  int64_t target;

  DEVICE RowGrad(const PairGrad& pair, int64_t m, int64_t y, int64_t V, float inverse_temperature)
      : lse(y >= 0 && y < V ? pair.lse[m] : __builtin_nanf("")),  // a bad id leaves NaN
        entropy(pair.entropy[m]),
        dlogp(pair.dlogp[m]),
        dentropy(pair.dentropy ? pair.dentropy[m] : 0.0f),
        own(dlogp * expm1(pair.logp[m])),
        t(inverse_temperature),
        target(y) {}

  DEVICE float at(int64_t j, float logit) const {
    const float d = logit * t - lse, e = exp(d);
    float g = j == target ? own : dlogp * e;
    if (dentropy != 0 && e > 0) g += dentropy * (e * (d + entropy));
    return -(g * t);
  }
};

#endif

#if RLHF_HOST_CODE
namespace {

template <class T>
struct Head {
  Operand<T> h, weight;
  View<const int32_t> rows, y;
  float inverse_temperature;
  int64_t N, M, C, V, tiles;
  int64_t padded;  // V in whole pieces: the stride of a row of logits or of their gradient
  bool packs;  // on a Hopper, whose copy engine does not gather: the rows of a block are gathered before
  Global<T> packed;  // [block][C]

  template <class A>
  Head(const Context& ctx, const A& a)
      : h(rows_of<T>(a.h)),
        weight(rows_of<T>(a.weight)),
        rows(a.rows),
        y(a.y),
        inverse_temperature(float(1 / a.temperature)),
        N(a.h.dim[0]),
        M(a.rows.dim[0]),
        C(a.weight.dim[1]),
        V(a.weight.dim[0]),
        tiles((V + Block<T>::N - 1) / Block<T>::N),
        padded((V + 63) / 64 * 64),
        packs(sizeof(T) == 2 && ctx.gpu->architecture == 90 && weight.aligned) {}

  void take(Workspace& w, int64_t block) {
    if (packs) packed = w.take<T>(block * C);
  }
  void pack(Context& ctx, int64_t m0, int64_t count) const {
    if (!packs) return;
    const PackParams<T> p{gathered(h, global<const int32_t>(rows.data + m0, count), count), packed};
    launch(ctx, "head_pack_bf16", {count}, 128, 0, p);
  }

  // pairs of a block such that `bytes` for each logit stay below 1.75 GiB
  int64_t block(int64_t bytes) const {
    const int64_t most = (int64_t(7) << 28) / (padded * bytes + 1) / Block<T>::M * Block<T>::M;
    const int64_t rows = most < Block<T>::M ? Block<T>::M : most > 4096 ? 4096 : most;
    return M < rows ? M : rows;
  }
  ProductParams<T> logits(int64_t m0, int64_t count) const {
    return {
        packs ? operand<T>(packed.data, count, C, C) : gathered(h, global<const int32_t>(rows.data + m0, count), count),
        weight, count, V, C};
  }
};

// log-softmax statistics of a block, and its logits where `logits` is given
struct ForwardMemory {
  Global<float> stats, targets;
  template <class T>
  ForwardMemory(const Head<T>& head, Workspace& w, int64_t block)
      : stats(w.take<float>(block * head.tiles * 3)), targets(w.take<float>(block)) {}
};
template <class T>
void head_forward(Context& ctx, const Head<T>& head, const ForwardMemory& memory, int64_t m0, int64_t count,
    Global<float> logits, Global<float> logp, Global<float> lse, Global<float> entropy) {
  const Global<const int32_t> rows = global<const int32_t>(head.rows.data + m0, count),
                              y = global<const int32_t>(head.y.data + m0, count);
  const LogitsParams<T> p{
      head.logits(m0, count), y, head.inverse_temperature, memory.stats, memory.targets, logits, head.padded};
  launch_product<true, true>(ctx, dtype_name<T>("head_logits_f32", "head_logits_bf16"), p);
  const FinishParams f{memory.stats, memory.targets, rows, y, logp + m0, lse + m0, entropy + m0, count, head.tiles,
      head.N, head.V, head.inverse_temperature, latch_of(ctx)};
  launch(ctx, "head_finish", {(count + 3) / 4}, 128, 0, f);
}

// what leads from g to dh and dW
template <class T>
struct BackwardMemory {
  Global<T> g;  // [block][padded]
  Global<float> pairs;  // [M][C]: dh of each
  Global<int32_t> first, next;  // [N], [M]
  BackwardMemory(const Head<T>& head, Workspace& w, bool with_dh)
      : pairs(w.take<float>(with_dh ? head.M * head.C : 0)),
        first(w.take<int32_t>(with_dh ? head.N : 0)),
        next(w.take<int32_t>(with_dh ? head.M : 0)) {}
};

// dh of the pairs of a block, and dW continued
template <class T>
void head_backward(Context& ctx, const Head<T>& head, const BackwardMemory<T>& memory, int64_t m0, int64_t count,
    bool with_dh, View<float> dweight) {
  const Operand<T> g{memory.g, Global<const int32_t>(), count, count, head.padded, head.padded, 1};
  const Global<const float> no_bias;
  if (with_dh) {
    const LinearParams<T> p{{g, head.weight, count, head.C, head.V}, memory.pairs + m0 * head.C, no_bias, 0};
    launch_product<true, false>(ctx, dtype_name<T>("linear_grad_input_f32", "linear_grad_input_bf16"), p);
  }
  if (dweight) {
    const LinearParams<T> p{{g, head.logits(m0, count).a, head.V, head.C, count}, global(dweight), no_bias, 1};
    launch_product<false, false>(ctx, dtype_name<T>("linear_grad_weight_f32", "linear_grad_weight_bf16"), p);
  }
}

// dh of every token from its pairs
template <class T>
void head_gather_dh(Context& ctx, const Head<T>& head, const BackwardMemory<T>& memory, View<float> dh) {
  if (!head.N || !head.C) return;
  const LinksParams links{global<const int32_t>(head.rows.data, head.M), memory.first, memory.next, head.N, head.M};
  launch(ctx, "head_links", {(head.N + head.M + 3) / 4}, 128, 0, links);
  const GatherParams<T> p{
      memory.pairs, memory.first, memory.next, global<T>(reinterpret_cast<T*>(dh.data), head.N * head.C), head.C};
  launch(ctx, dtype_name<T>("head_gather_f32", "head_gather_bf16"), {head.N}, 128, 0, p);
}

}  // namespace
#endif

}  // namespace rlhf::cuda
