// Linear layers, W [O,I]:
//   y = x W^T + b     dx = dy W     dW += dy^T x, dbias += sum over tokens of dy
//   x, dy, W f32 or bf16; y, dx, dW, db f32
//
// Plan and blocks: gemm.h. The heads (linear_head.h) use the last two products for their own dh and
// dW. A sum over few tiles is not split along k. History: kernels/notes/linear.md.
#include "kernels/cuda/linear.h"

namespace rlhf::cuda {

template <class T>
struct BiasGradParams {
  Global<const T> dy;
  Global<float> dbias;
  int64_t N, O, stride;
};

#if RLHF_DEVICE_CODE

template <class Mma, class P>
DEVICE void product(const P& params) {
  multiply_tiles<Mma>(params, [](Mma& mma, const Place& at, const auto& p, SharedMemory) {
    store_tile(mma, at, p.product.M, p.product.N, p.c, p.product.N, [&](int64_t m, int64_t n, float sum) {
      if (p.add) return p.c[m * p.product.N + n] + sum;
      return p.bias ? sum + p.bias[n] : sum;
    });
  });
}

KERNEL(linear_bf16, LinearParams<bf16>, 256) { product<Bf16<true, true>>(p); }
KERNEL(linear_f32, LinearParams<float>, 256) { product<F32<true, true>>(p); }
KERNEL(linear_grad_input_bf16, LinearParams<bf16>, 256) { product<Bf16<true, false>>(p); }
KERNEL(linear_grad_input_f32, LinearParams<float>, 256) { product<F32<true, false>>(p); }
KERNEL(linear_grad_weight_bf16, LinearParams<bf16>, 256) { product<Bf16<false, false>>(p); }
KERNEL(linear_grad_weight_f32, LinearParams<float>, 256) { product<F32<false, false>>(p); }

#if RLHF_HOPPER_CODE
KERNEL(linear_bf16_hopper, WithMaps<LinearParams<bf16>>, 384, 1) { product<Wgmma<true, true>>(p); }
KERNEL(linear_grad_input_bf16_hopper, WithMaps<LinearParams<bf16>>, 384, 1) { product<Wgmma<true, false>>(p); }
KERNEL(linear_grad_weight_bf16_hopper, WithMaps<LinearParams<bf16>>, 384, 1) { product<Wgmma<false, false>>(p); }
#endif

// a thread per output, tokens in order
template <class T>
DEVICE void bias_grad(const BiasGradParams<T>& p) {
  const int64_t o = int64_t(block_x()) * 128 + thread();
  if (o >= p.O) return;
  float total = p.dbias[o];
  for (int64_t n = 0; n < p.N; n++) total += to_float(p.dy[n * p.stride + o]);
  p.dbias[o] = total;
}
KERNEL(linear_grad_bias_bf16, BiasGradParams<bf16>, 128) { bias_grad(p); }
KERNEL(linear_grad_bias_f32, BiasGradParams<float>, 128) { bias_grad(p); }

#endif

#if RLHF_HOST_CODE

template <class T>
void linear_of(Context& ctx, const linear_args& a) {
  const int64_t N = a.x.dim[0], I = a.x.dim[1], O = a.weight.dim[0];
  LinearParams<T> p{{rows_of<T>(a.x), rows_of<T>(a.weight), N, O, I}, global(a.y),
      a.bias ? global(a.bias) : Global<const float>(), 0};
  launch_product<true, true>(ctx, dtype_name<T>("linear_f32", "linear_bf16"), p);
}

template <class T>
void linear_grad_input_of(Context& ctx, const linear_grad_input_args& a) {
  const int64_t N = a.dy.dim[0], O = a.dy.dim[1], I = a.weight.dim[1];
  LinearParams<T> p{{rows_of<T>(a.dy), rows_of<T>(a.weight), N, I, O}, global(a.dx), Global<const float>(), 0};
  launch_product<true, false>(ctx, dtype_name<T>("linear_grad_input_f32", "linear_grad_input_bf16"), p);
}

template <class T>
void linear_grad_weight_of(Context& ctx, const linear_grad_weight_args& a) {
  const int64_t N = a.dy.dim[0], O = a.dy.dim[1], I = a.x.dim[1];
  LinearParams<T> p{{rows_of<T>(a.dy), rows_of<T>(a.x), O, I, N}, global(a.dweight), Global<const float>(), 1};
  launch_product<false, false>(ctx, dtype_name<T>("linear_grad_weight_f32", "linear_grad_weight_bf16"), p);
  if (!a.dbias || !O) return;
  const BiasGradParams<T> b{rows_of<T>(a.dy).data, global(a.dbias), N, O, a.dy.stride};
  launch(ctx, dtype_name<T>("linear_grad_bias_f32", "linear_grad_bias_bf16"), {(O + 127) / 128}, 128, 0, b);
}

void linear(Context& ctx, const linear_args& a) {
  if (ctx.measuring) return;  // no workspace
  if (!row_major(ctx, a.weight)) return;
  a.x.dtype == RLHF_BF16 ? linear_of<bf16>(ctx, a) : linear_of<float>(ctx, a);
}
void linear_grad_input(Context& ctx, const linear_grad_input_args& a) {
  if (ctx.measuring) return;  // no workspace
  if (!row_major(ctx, a.weight)) return;
  a.dy.dtype == RLHF_BF16 ? linear_grad_input_of<bf16>(ctx, a) : linear_grad_input_of<float>(ctx, a);
}
void linear_grad_weight(Context& ctx, const linear_grad_weight_args& a) {
  if (ctx.measuring) return;  // no workspace
  a.dy.dtype == RLHF_BF16 ? linear_grad_weight_of<bf16>(ctx, a) : linear_grad_weight_of<float>(ctx, a);
}

#endif

}  // namespace rlhf::cuda
