// What the ops of the language-model head share: logits of a block of rows, computed by vocabulary tiles.
#pragma once
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/logprob.h"
#include "native/rlhf_kernels.h"

namespace rlhf::RLHF_ISA {
namespace {

struct Head {
  View<const float> h, weight;
  View<const int32_t> rows, y;
  float inverse_temperature;
  int64_t M, C, V_, tiles;

  template <class A>
  explicit Head(const A& a)
      : h(a.h),
        weight(a.weight),
        rows(a.rows),
        y(a.y),
        inverse_temperature(float(1 / a.temperature)),
        M(a.rows.dim[0]),
        C(a.weight.dim[1]),
        V_(a.weight.dim[0]),
        tiles((V_ + VOCABULARY_TILE - 1) / VOCABULARY_TILE) {}

  RLHF_INLINE int64_t tile_size(int64_t tile) const { return smaller(VOCABULARY_TILE, V_ - tile * VOCABULARY_TILE); }
  RLHF_INLINE int64_t target(int64_t m, int64_t tile) const {
    const int64_t at = y[m] - tile * VOCABULARY_TILE;
    return at >= 0 && at < VOCABULARY_TILE ? at : -1;
  }
};

// hidden states of the pairs [m0, m1), one after another
RLHF_INLINE void gather(Context& ctx, const Head& head, int64_t m0, int64_t m1, float* to) {
  ctx.split(m1 - m0, 1, 16384 / (head.C + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::memcpy(to + i * head.C, head.h.row(head.rows[m0 + i]), size_t(head.C) * sizeof(float));
  });
}

RLHF_INLINE int64_t tile_scratch(const Head& head, int64_t rows) {
  return round_up(product_scratch(rows, VOCABULARY_TILE, head.C, head.weight.layout == RLHF_PANELS), LANES);
}

// logits of gathered rows [r0, r1) in one tile, to c (row stride c_row), by the calling thread
RLHF_INLINE void tile_logits(const Head& head, const float* gathered, int64_t tile, int64_t r0, int64_t r1, float* c, int64_t c_row, float* scratch) {
  const int64_t j = tile * VOCABULARY_TILE, n = head.tile_size(tile);
  with_numbers(head.weight, [&]<class T>(const T* weight) {
    const T* w = weight + j * head.C;  // of either layout
    product_columns(
        Product<T>{r1, n, head.C, {gathered, head.C, 1}, {w, 1, head.C}, head.weight.layout == RLHF_PANELS ? w : nullptr, c, c_row}, 0, n, r0, r1, scratch);
  });
}

// f(thread, row range, tile range): the work of a block, split by tiles or, where they are few, by rows
template <class F>
RLHF_INLINE void split_block(Context& ctx, int64_t rows, int64_t tiles, F&& f) {
  const int64_t threads = ctx.threads;
  if (tiles >= 2 * threads || rows < 2 * MR) {
    ctx.each([&](int t) { f(t, int64_t(0), rows, tiles * t / threads, tiles * (t + 1) / threads); });
  } else {
    const int64_t grains = (rows + MR - 1) / MR;
    ctx.each([&](int t) { f(t, grains * t / threads * MR, smaller(rows, grains * (t + 1) / threads * MR), int64_t(0), tiles); });
  }
}

// A block of logits [rows, stride] on its way to being their gradient, and what else the backward pass needs.
constexpr int64_t BACKWARD_ROWS = 256;
struct BackwardMemory {
  int64_t rows, stride, thread_floats, total;
  float *gathered, *logits, *dh, *scratch;
  TileStats* stats;  // [tiles][rows]
  float* targets;  // [rows]

  BackwardMemory(const Head& head, int threads, float* base) {
    rows = smaller(BACKWARD_ROWS, head.M);
    stride = round_up(head.V_, LANES) + LANES;  // not a power of two
    int64_t most = tile_scratch(head, rows);
    most = most > product_scratch(rows, head.C, head.V_, false) ? most : product_scratch(rows, head.C, head.V_, false);
    most = most > product_scratch(head.V_, head.C, rows, false) ? most : product_scratch(head.V_, head.C, rows, false);
    thread_floats = round_up(most, LANES);
    float* p = base;
    auto take = [&](int64_t n) {
      float* at = p;
      p += round_up(n, LANES);
      return at;
    };
    gathered = take(rows * head.C), logits = take(rows * stride), dh = take(rows * head.C), targets = take(rows);
    stats = reinterpret_cast<TileStats*>(take(head.tiles * rows * int64_t(sizeof(TileStats) / sizeof(float))));
    scratch = take(thread_floats * threads);
    total = p - base;
  }
};

// From the gradient of a block's logits to dh and dweight; both chains go on from block to block.
RLHF_INLINE void head_backward(Context& ctx, const Head& head, const BackwardMemory& memory, int64_t m0, int64_t count, View<float> dh, View<float> dweight) {
  if (dh) {
    with_numbers(head.weight, [&]<class T>(const T* weight) {
      product(ctx, Product<T>{count, head.C, head.V_, {memory.logits, memory.stride, 1}, {weight, head.C, 1}, nullptr, memory.dh, head.C}, memory.scratch);
    });
    ctx.split(head.C, LANES, 16384 / (count + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < count; i++) {
        float* to = dh.row(head.rows[m0 + i]);
        for (int64_t c = begin; c < end; c += LANES) {
          const int n = int(smaller(LANES, end - c));
          store(to + c, load(to + c, n) + load(memory.dh + i * head.C + c, n), n);
        }
      }
    });
  }
  if (dweight)
    product(
        ctx, {head.V_, head.C, count, {memory.logits, 1, memory.stride}, {memory.gathered, head.C, 1}, nullptr, dweight.data, head.C, true}, memory.scratch);
}

RLHF_INLINE void zero_rows(Context& ctx, View<float> x) {
  if (!x) return;
  ctx.split(x.dim[0] * x.dim[1], 1024, 65536, [&](int64_t begin, int64_t end) { std::memset(x.data + begin, 0, size_t(end - begin) * sizeof(float)); });
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
