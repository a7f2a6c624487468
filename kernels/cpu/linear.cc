// Linear layers, W [O,I]:
//   y = x W^T + b     dx = dy W     dW += dy^T x, dbias += sum over tokens of dy
//
// Law: every element of y, dx and dW is one chain over I, O or tokens. The bias is added after the
// chain. dW and dbias are continued, so a split of the tokens changes no bit. Plan and blocks:
// gemm.h. History: kernels/notes/linear.md.
#include "kernels/cpu/columns.h"
#include "kernels/cpu/gemm.h"
#include "native/list/types.h"

namespace rlhf::RLHF_ISA {

void pack(Context& ctx, const pack_args& a) {
  const int64_t O = a.weight.dim[0], I = a.weight.dim[1];
  const int64_t lanes = a.transposed ? I : O, depth = a.transposed ? O : I;
  if (a.packed.dim[0] != round_up(lanes, PANEL) * depth)
    return ctx.fail("packed has another size than the panels of weight");
  with_numbers(a.weight, [&]<class T>(const T* weight) {
    const MatrixOf<T> b{weight, a.transposed ? I : 1, a.transposed ? 1 : I};
    ctx.split(lanes, PANEL, 16384 / (depth + 1) + 1, [&](int64_t begin, int64_t end) {
      if (a.packed.dtype == RLHF_F32) return pack_b(b, 0, depth, begin, end - begin, a.packed.data + begin * depth);
      bf16* to = reinterpret_cast<bf16*>(a.packed.data) + begin * depth;
      constexpr int64_t STEPS = 64;
      float wide[STEPS * PANEL];
      for (int64_t j = begin; j < end; j += PANEL)
        for (int64_t s = 0; s < depth; s += STEPS) {
          const int64_t steps = smaller(STEPS, depth - s);
          pack_b(b, s, steps, j, smaller(PANEL, end - j), wide);
          for (int64_t i = 0; i < steps * PANEL; i += LANES, to += LANES) store(to, load(wide + i));
        }
    });
  });
}

void linear(Context& ctx, const linear_args& a) {
  const int64_t N = a.x.dim[0], I = a.x.dim[1], O = a.weight.dim[0];
  if (a.weight.layout == RLHF_PANELS_TRANSPOSED) return ctx.fail("weight is packed for the gradient");
  const bool packed = a.weight.layout == RLHF_PANELS;
  float* scratch =
      static_cast<float*>(ctx.scratch(parallel_scratch(ctx.threads, N, O, I, packed) * int64_t(sizeof(float)) + 64));
  if (!scratch) return;
  with_numbers(a.weight, [&]<class T>(const T* weight) {
    product(ctx,
        Product<T>{N, O, I, {a.x.data, a.x.stride, 1}, {weight, 1, I}, packed ? weight : nullptr, a.y.data, O, false,
            a.bias ? a.bias.data : nullptr},
        scratch);
  });
}

void linear_grad_input(Context& ctx, const linear_grad_input_args& a) {
  const int64_t N = a.dy.dim[0], O = a.dy.dim[1], I = a.weight.dim[1];
  if (a.weight.layout == RLHF_PANELS) return ctx.fail("weight is packed for the forward pass");
  const bool packed = a.weight.layout == RLHF_PANELS_TRANSPOSED;
  float* scratch =
      static_cast<float*>(ctx.scratch(parallel_scratch(ctx.threads, N, I, O, packed) * int64_t(sizeof(float)) + 64));
  if (!scratch) return;
  with_numbers(a.weight, [&]<class T>(const T* weight) {
    product(ctx,
        Product<T>{N, I, O, {a.dy.data, a.dy.stride, 1}, {weight, I, 1}, packed ? weight : nullptr, a.dx.data, I},
        scratch);
  });
}

void linear_grad_weight(Context& ctx, const linear_grad_weight_args& a) {
  const int64_t N = a.dy.dim[0], O = a.dy.dim[1], I = a.x.dim[1];
  float* scratch =
      static_cast<float*>(ctx.scratch(parallel_scratch(ctx.threads, O, I, N, false) * int64_t(sizeof(float)) + 64));
  if (!scratch) return;
  product(ctx, {O, I, N, {a.dy.data, 1, a.dy.stride}, {a.x.data, a.x.stride, 1}, nullptr, a.dweight.data, I, true},
      scratch);
  if (!a.dbias) return;
  ctx.split(O, LANES, 16384 / (N + 1) + 1, [&](int64_t begin, int64_t end) {
    each_abreast(begin, end, [&](int64_t o, const int* n) {
      V total[ABREAST];
      abreast([&](int j) { total[j] = load(&a.dbias[o + j * LANES], n[j]); });
      for (int64_t t = 0; t < N; t++)
        abreast([&](int j) { total[j] = total[j] + load(a.dy.row(t) + o + j * LANES, n[j]); });
      abreast([&](int j) { store(&a.dbias[o + j * LANES], total[j], n[j]); });
    });
  });
}

}  // namespace rlhf::RLHF_ISA
