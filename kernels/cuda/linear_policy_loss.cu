// The policy's loss straight from the hidden state and the head, forward and backward in three products.
//
// Plan: as many pairs at a time as keep the scratch below 2 GiB (2048 at V 151936). Their logits are computed once and
// kept in f32, with the statistics of each tile (linear_head.h); logp, entropy and the loss's gradient for each pair
// follow (policy_loss.h); one pass over the logits turns them into their gradient, in place in f32, else into bf16
// beside; then dh of each pair and dW. The loss and its statistics come last, over all pairs. f32 logits, because a
// rounding of x to bf16 is one of p by up to 2^-9 |x|; the pass over them is 6 + 4 bytes a logit, 3 ms of the 60
// wanted.
//
// Expected at 8192 pairs, C 4096, V 151936 in bf16 on an H200, not yet measured on a GPU: 31 TFLOP at the 600 to 660
// TFLOP/s of gemm_hopper.h, 47 to 51 ms, and 20 GB of dW, 5 ms.
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
  policy_weights(ctx, a, memory.sums.weights, head.M);
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
