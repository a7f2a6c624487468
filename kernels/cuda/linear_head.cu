// The language-model head: log-probs, or the loss of the policy, from the hidden state. Logits
// exist only as a tile.
//
//   linear_logprob: logp[m] = x_y - log sum_j exp(x_j),  x = h[rows[m]] W^T / T;  entropy = lse - sum_j p_j x_j
//   linear_policy_loss: the loss of those (policy_loss.h), with dh and dW
//
// Plan of linear_logprob: 8192 pairs at a time against every tile of the vocabulary (gemm.h). Each
// tile is reduced in its registers to (m, s, u); then a warp per pair joins them. Scratch: 12 bytes
// for each pair and 256 entries.
// Plan of its gradient: at most 4096 pairs at a time (2 GiB of scratch in all). Logits are computed
// again, turned into their gradient in registers and written once. Then dh of each pair and dW. At
// the end a token gathers its pairs. 4 products with the forward pass.
// Plan of linear_policy_loss: three products, as many pairs at a time as keep the scratch below 2
// GiB. Logits are computed once and kept in f32, with the statistics of each tile (linear_head.h).
// logp, entropy and the loss's gradient for each pair follow (policy_loss.h). One pass turns the
// logits into their gradient: in place in f32, else into bf16 beside. Then dh of each pair and dW.
// The loss and its statistics come last, over all pairs.
// Expected at 8192 pairs, C 4096, V 151936 in bf16 on an H200, not yet measured: linear_logprob 16
// ms forward and 50 backward, linear_policy_loss 52 to 56. History: kernels/notes/linear_head.md.
#include "kernels/cuda/linear_head.h"
#include "kernels/cuda/policy_loss.h"

namespace rlhf::cuda {

template <class T>
struct HeadGradientParams {
  Global<const float> logits;  // [M][stride]: x
  Global<T> g;  // [M][stride], may be the same memory
  int64_t stride, V;
  Global<const int32_t> y;
  float inverse_temperature;
  PairGrad pair;
};

#if RLHF_DEVICE_CODE

template <class Mma, class P>
DEVICE void head_logits(const P& params) {
  multiply_tiles<Mma>(params, [](Mma& mma, const Place& at, const auto& p, SharedMemory memory) {
    tile_stats(mma, at, p, memory);
    if (p.logits)
      store_tile(mma, at, p.product.M, p.product.N, p.logits, p.stride, [](int64_t, int64_t, float x) { return x; });
  });
}
KERNEL(head_logits_bf16, LogitsParams<bf16>, 256) { head_logits<Bf16<true, true>>(p); }
KERNEL(head_logits_f32, LogitsParams<float>, 256) { head_logits<F32<true, true>>(p); }

template <class Mma, class P>
DEVICE void head_logits_grad(const P& params) {
  multiply_tiles<Mma>(params, [](Mma& mma, const Place& at, const auto& p, SharedMemory) {
    const int64_t M = p.product.M, V = p.product.N;
#pragma unroll
    for (int i = 0; i < Mma::ROWS; i++) {
      const int64_t m = at.m + Mma::row(i);
      if (m >= M) continue;
      const RowGrad row(p.pair, m, p.y[m], V, p.inverse_temperature);
#pragma unroll
      for (int j = 0; j < Mma::COLUMNS; j++) {
        const int64_t n = at.n + Mma::column(j);
        mma.at(i, j) = n < V ? row.at(n, mma.at(i, j)) : 0.0f;
      }
    }
    store_tile(mma, at, M, p.stride, p.g, p.stride, [](int64_t, int64_t, float g) { return g; });  // zeros beyond V
  });
}
KERNEL(head_logits_grad_bf16, LogitsGradParams<bf16>, 256) { head_logits_grad<Bf16<true, true>>(p); }
KERNEL(head_logits_grad_f32, LogitsGradParams<float>, 256) { head_logits_grad<F32<true, true>>(p); }

#if RLHF_HOPPER_CODE
KERNEL(head_logits_bf16_hopper, WithMaps<LogitsParams<bf16>>, 384, 1) { head_logits<Wgmma<true, true>>(p); }
KERNEL(head_logits_grad_bf16_hopper, WithMaps<LogitsGradParams<bf16>>, 384, 1) {
  head_logits_grad<Wgmma<true, true>>(p);
}
#endif

// a block per pair: its row of h, zeros where there is none
KERNEL(head_pack_bf16, PackParams<bf16>, 128) {
  const int64_t m = block_x(), row = p.from.index[m], C = p.from.extent, from = row * p.from.stride;
  const bool there = row >= 0 && row < p.from.limit;
  for (int64_t c = 8 * thread(); c < C; c += 8 * 128) {
    Piece<bf16> piece{};
    if (there && p.from.aligned) piece = load_as<Piece<bf16>>(p.from.data, from + c);
    else if (there)
      for (int e = 0; e < 8; e++) piece.x[e] = p.from.data[from + c + e];
    store_as<Piece<bf16>>(p.to, m * C + c, piece);
  }
}

// a warp per pair
KERNEL(head_finish, FinishParams, 128) {
  const int64_t m = int64_t(block_x()) * 4 + warp();
  if (m >= p.M) return;
  const int64_t begin = m * p.tiles * 3, end = begin + p.tiles * 3;
  float most = -INFINITE;
  for (int64_t t = begin + 3 * lane(); t < end; t += 96) most = max(most, p.stats[t]);
  for (int k = 16; k > 0; k /= 2) most = max(most, shuffle_xor(most, k));
  double s = 0, u = 0;
  for (int64_t t = begin + 3 * lane(); t < end; t += 96) {
    const double d = p.stats[t] == -INFINITE ? 0.0 : (double(p.stats[t]) - most) * p.inverse_temperature, b = exp(d);
    s += b * p.stats[t + 1], u += b * (p.stats[t + 2] + d * p.stats[t + 1]);
  }
  for (int k = 16; k > 0; k /= 2) s += shuffle_xor(s, k), u += shuffle_xor(u, k);
  if (lane() != 0) return;
  const int32_t y = p.y[m], row = p.rows[m];
  if (y < 0 || y >= p.V || row < 0 || row >= p.N) {
    latch(p.error, BAD_ID);
    p.logp[m] = p.lse[m] = p.entropy[m] = __builtin_nanf("");
    return;
  }
  if (most == -INFINITE && s == 0) {  // nothing is possible
    p.logp[m] = p.lse[m] = -INFINITE, p.entropy[m] = 0;
    return;
  }
  const double d = (double(p.targets[m]) - most) * p.inverse_temperature, own = d == 0 ? 1.0 : exp(d);
  const double tail = d == 0 ? log1p(s) : log(s + own);  // lse - m
  const double entropy = tail - (u + (own > 0 ? own * d : 0)) / (s + own);
  p.logp[m] = float(d - tail), p.lse[m] = float(most * double(p.inverse_temperature) + tail),
  p.entropy[m] = entropy < 0 ? 0.0f : float(entropy);
}

// a warp per token, then per pair: the first pair of the token from there on
KERNEL(head_links, LinksParams, 128) {
  const int64_t item = int64_t(block_x()) * 4 + warp();
  if (item >= p.N + p.M) return;
  const int64_t pair = item - p.N;
  const int64_t row = pair < 0 ? item : p.rows[pair];
  int32_t found = -1;
  for (int64_t i = pair < 0 ? 0 : pair + 1; i < p.M && found < 0; i += 32) {
    const uint32_t hits = ballot(i + lane() < p.M && p.rows[i + lane()] == row);
    for (int k = 31; k >= 0; k--)
      if (hits >> k & 1) found = int32_t(i + k);
  }
  if (lane() == 0) (pair < 0 ? p.first + item : p.next + pair)[0] = found;
}

// a block per token
template <class T>
DEVICE void head_gather(const GatherParams<T>& p) {
  const int64_t n = block_x();
  for (int64_t c = thread(); c < p.C; c += 128) {
    float sum = 0;
    for (int32_t m = p.first[n]; m >= 0; m = p.next[m]) sum += p.pairs[m * p.C + c];
    put(p.dh, n * p.C + c, sum);
  }
}
KERNEL(head_gather_bf16, GatherParams<bf16>, 128) { head_gather(p); }
KERNEL(head_gather_f32, GatherParams<float>, 128) { head_gather(p); }

// a block per pair, eight logits a thread
template <class T>
DEVICE void head_gradient(const HeadGradientParams<T>& p) {
  const int64_t m = block_x(), row = m * p.stride;
  const RowGrad grad(p.pair, m, p.y[m], p.V, p.inverse_temperature);
  for (int64_t j = 8 * thread(); j < p.stride; j += 8 * 256) {
    const Piece<float> x[2] = {load_as<Piece<float>>(p.logits, row + j), load_as<Piece<float>>(p.logits, row + j + 4)};
    T g[8];
    for (int e = 0; e < 8; e++) {
      const float one = j + e < p.V ? grad.at(j + e, x[e / 4].x[e % 4]) : 0.0f;
      if constexpr (sizeof(T) == 2) g[e] = to_bf16(one);
      else g[e] = one;
    }
    for (int e = 0; e < 8; e += Piece<T>::SIZE) {
      Piece<T> piece;
      for (int i = 0; i < Piece<T>::SIZE; i++) piece.x[i] = g[e + i];
      store_as<Piece<T>>(p.g, row + j + e, piece);
    }
  }
}
KERNEL(head_gradient_bf16, HeadGradientParams<bf16>, 256) { head_gradient(p); }
KERNEL(head_gradient_f32, HeadGradientParams<float>, 256) { head_gradient(p); }

#endif

#if RLHF_HOST_CODE

template <class T>
void linear_logprob_of(Context& ctx, const linear_logprob_args& a) {
  Head<T> head(ctx, a);
  const int64_t block = head.M < 8192 ? head.M : 8192;
  const auto plan = [&](char* base) {
    Workspace w{base};
    head.take(w, block);
    const ForwardMemory memory(head, w, block);
    return std::pair(memory, w.used);
  };
  char* base = static_cast<char*>(ctx.scratch(plan(nullptr).second));
  if (!base) return;
  const ForwardMemory memory = plan(base).first;
  for (int64_t m0 = 0; m0 < head.M; m0 += block) {
    const int64_t count = std::min(block, head.M - m0);
    head.pack(ctx, m0, count);
    head_forward(ctx, head, memory, m0, count, Global<float>(), global(a.logp), global(a.lse), global(a.entropy));
  }
}

template <class T>
void linear_logprob_grad_of(Context& ctx, const linear_logprob_grad_args& a) {
  Head<T> head(ctx, a);
  const int64_t block = head.block(sizeof(T));
  const auto plan = [&](char* base) {
    Workspace w{base};
    head.take(w, block);
    BackwardMemory<T> memory(head, w, bool(a.dh));
    memory.g = w.take<T>(block * head.padded);
    return std::pair(memory, w.used);
  };
  char* base = static_cast<char*>(ctx.scratch(plan(nullptr).second));
  if (!base) return;
  const BackwardMemory<T> memory = plan(base).first;
  for (int64_t m0 = 0; m0 < head.M; m0 += block) {
    const int64_t count = std::min(block, head.M - m0);
    head.pack(ctx, m0, count);
    const auto of = [&](const View<const float>& x) { return global<const float>(x.data + m0, count); };
    const PairGrad pair{
        of(a.logp), of(a.lse), of(a.entropy), of(a.dlogp), a.dentropy ? of(a.dentropy) : Global<const float>()};
    const LogitsGradParams<T> p{head.logits(m0, count), global<const int32_t>(head.y.data + m0, count),
        head.inverse_temperature, pair, memory.g, head.padded};
    launch_product<true, true>(ctx, dtype_name<T>("head_logits_grad_f32", "head_logits_grad_bf16"), p);
    head_backward(ctx, head, memory, m0, count, bool(a.dh), a.dweight);
  }
  if (a.dh) head_gather_dh(ctx, head, memory, a.dh);
}

void linear_logprob(Context& ctx, const linear_logprob_args& a) {
  if (!row_major(ctx, a.weight)) return;
  a.h.dtype == RLHF_BF16 ? linear_logprob_of<bf16>(ctx, a) : linear_logprob_of<float>(ctx, a);
}
void linear_logprob_grad(Context& ctx, const linear_logprob_grad_args& a) {
  if (!row_major(ctx, a.weight)) return;
  a.h.dtype == RLHF_BF16 ? linear_logprob_grad_of<bf16>(ctx, a) : linear_logprob_grad_of<float>(ctx, a);
}

namespace {
template <class T>
struct PolicyMemory {
  ForwardMemory forward;
  BackwardMemory<T> backward;
  Global<float> logits, lse, dlogp, dentropy;
  PolicySums sums;
  int64_t bytes;
};
}  // namespace

template <class T>
void linear_policy_loss_of(Context& ctx, const linear_policy_loss_args& a) {
  Head<T> head(ctx, a);
  const bool backward = a.dh || a.dweight, narrow = sizeof(T) == 2;
  const int64_t block = backward ? head.block(narrow ? 6 : 4) : std::min<int64_t>(head.M, 8192);
  const auto plan = [&](char* base) {
    Workspace w{base};
    head.take(w, block);
    const int64_t logits = backward ? block * head.padded : 0;
    PolicyMemory<T> memory{ForwardMemory(head, w, block), BackwardMemory<T>(head, w, bool(a.dh)), w.take<float>(logits),
        w.take<float>(head.M), w.take<float>(head.M), w.take<float>(head.M), PolicySums(a, w), 0};
    if constexpr (sizeof(T) == 2) memory.backward.g = w.take<T>(logits);
    else memory.backward.g = memory.logits;
    memory.bytes = w.used;
    return memory;
  };
  char* base = static_cast<char*>(ctx.scratch(plan(nullptr).bytes));
  if (!base) return;
  if (a.kl_coef != 0 && !a.ref_logp) return ctx.fail("kl_coef is not 0, and ref_logp is missing");
  const PolicyMemory<T> memory = plan(base);
  const Global<float> logp = global(a.logp), entropy = global(a.entropy);
  weigh_sequences(ctx, a, memory.sums.weights, head.M);
  for (int64_t m0 = 0; m0 < head.M; m0 += block) {
    const int64_t count = std::min(block, head.M - m0);
    head.pack(ctx, m0, count);
    head_forward(
        ctx, head, memory.forward, m0, count, backward ? memory.logits : Global<float>(), logp, memory.lse, entropy);
    if (!backward) continue;
    policy_gradients(ctx, a, memory.sums, logp, m0, count, memory.dlogp, memory.dentropy);
    const PairGrad pair{logp + m0, memory.lse + m0, entropy + m0, memory.dlogp + m0, memory.dentropy + m0};
    const HeadGradientParams<T> p{memory.logits, memory.backward.g, head.padded, head.V,
        global<const int32_t>(head.y.data + m0, count), head.inverse_temperature, pair};
    launch(ctx, dtype_name<T>("head_gradient_f32", "head_gradient_bf16"), {count}, 256, 0, p);
    head_backward(ctx, head, memory.backward, m0, count, bool(a.dh), a.dweight);
  }
  if (a.dh) head_gather_dh(ctx, head, memory.backward, a.dh);
  policy_sums(ctx, a, memory.sums, logp, entropy);
}

void linear_policy_loss(Context& ctx, const linear_policy_loss_args& a) {
  if (!row_major(ctx, a.weight)) return;
  a.h.dtype == RLHF_BF16 ? linear_policy_loss_of<bf16>(ctx, a) : linear_policy_loss_of<float>(ctx, a);
}

#endif

}  // namespace rlhf::cuda
