// Sums per sequence: y[b] = sum of x[t] over its tokens, divided by their number if mean.
//   gradient: dx[t] = dy[b], divided by the number if mean
//   x, dx: f32 [N] packed by cu_seqlens i32 [B+1]; y, dy: f32 [B]
// Plan: a warp per sequence, whose order depends on the sequence alone. Memory is the limit.
#include "kernels/cuda/offsets.h"

namespace rlhf::cuda {

struct SequenceParams {
  Global<const float> x;  // [N], or [B] of the gradient
  Global<const int32_t> offsets;
  Global<float> y;
  int64_t N, B;
  int32_t mean;
  Latch error;
};

#if RLHF_DEVICE_CODE

KERNEL(sequence_sum, SequenceParams, 128) {
  const int64_t b = int64_t(block_x()) * 4 + warp();
  if (b >= p.B) return;
  const bool bad = p.error[0] != 0;
  const int64_t begin = bad ? 0 : p.offsets[b], end = bad ? 0 : p.offsets[b + 1];
  double sum = 0;
  UNROLL_BY(4) for (int64_t i = begin + lane(); i < end; i += 32) sum += p.x[i];
  UNROLL for (int step = 16; step; step /= 2) sum += shuffle_down(sum, step);
  if (lane() == 0) p.y[b] = bad ? NOT_A_NUMBER : float(p.mean && end > begin ? sum / double(end - begin) : sum);
}
KERNEL(sequence_sum_grad, SequenceParams, 256) {
  const int64_t i = int64_t(block_x()) * 256 + thread();
  if (i >= p.N) return;
  if (p.error[0] != 0) {
    p.y[i] = NOT_A_NUMBER;
    return;
  }
  const int64_t b = sequence_of(p.offsets, p.B, i);
  p.y[i] = p.mean ? float(double(p.x[b]) / double(p.offsets[b + 1] - p.offsets[b])) : p.x[b];
}

#endif

#if RLHF_HOST_CODE
void sequence_sum(Context& ctx, const sequence_sum_args& a) {
  const int64_t N = a.x.dim[0], B = a.y.dim[0];
  check_offsets(ctx, a.cu_seqlens, N);
  const SequenceParams p{global(a.x), global(a.cu_seqlens), global(a.y), N, B, a.mean != 0, latch_of(ctx)};
  launch(ctx, "sequence_sum", {(B + 3) / 4}, 128, 0, p);
}

void sequence_sum_grad(Context& ctx, const sequence_sum_grad_args& a) {
  const int64_t N = a.dx.dim[0], B = a.dy.dim[0];
  check_offsets(ctx, a.cu_seqlens, N);
  const SequenceParams p{global(a.dy), global(a.cu_seqlens), global(a.dx), N, B, a.mean != 0, latch_of(ctx)};
  launch(ctx, "sequence_sum_grad", {(N + 255) / 256}, 256, 0, p);
}
#endif

}  // namespace rlhf::cuda
