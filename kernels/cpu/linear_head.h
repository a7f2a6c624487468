// What the ops of the language-model head share: logits of a block of rows by vocabulary tiles, and
// the way back from their gradient.
//
//   x = h[rows] W^T,  dh[rows] += g W,  dW += g^T h[rows],  g = d loss / d logits;  h [N,C]  W [V,C]  rows [M]
//
// Plan: a block's hidden states are packed once for all tiles and threads, as the left operand of x
// and the right one of dW. The way back takes SPAN logits of every row at a time. Threads fill
// their tiles of g, and pack g for dh together. Then each takes its columns of dh and its rows of
// dW, while a cache still holds both. Both chains go on from span to span and from block to block.
// History: kernels/notes/linear_head.md.
#pragma once
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/logprob.h"
#include "native/list/types.h"

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

// Gathers the hidden states of the pairs [m0, m1), one after another.
RLHF_INLINE void gather(Context& ctx, const Head& head, int64_t m0, int64_t m1, float* to) {
  ctx.split(m1 - m0, 1, 16384 / (head.C + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      std::memcpy(to + i * head.C, head.h.row(head.rows[m0 + i]), size_t(head.C) * sizeof(float));
  });
}

// Packs gathered rows as the left operand of their logits, for all tiles and threads.
RLHF_INLINE int64_t left_floats(int64_t rows, int64_t k) { return (rows + MR - 1) / MR * packed_step(k); }
RLHF_INLINE void pack_left(Context& ctx, const Matrix& a, int64_t rows, int64_t k, float* to) {
  ctx.split(rows, MR, 16384 / (k + 1) + 1, [&](int64_t begin, int64_t end) {
    pack_a(a, begin, end - begin, rows, 0, k, to + begin / MR * packed_step(k), packed_step(k));
  });
}

constexpr int64_t TILE_ROW = VOCABULARY_TILE + LANES;  // not a power of two

// How many floats of scratch tile_logits needs.
RLHF_INLINE int64_t tile_scratch(const Head& head, int64_t rows) {
  return round_up(product_scratch(rows, VOCABULARY_TILE, head.C, head.weight.layout == RLHF_PANELS), LANES);
}

// Computes the logits of gathered rows [r0, r1) in one tile, to c (row stride c_row), by the calling thread.
RLHF_INLINE void tile_logits(const Head& head, const float* gathered, const float* left, int64_t tile, int64_t r0,
    int64_t r1, float* c, int64_t c_row, float* scratch) {
  const int64_t j = tile * VOCABULARY_TILE, n = head.tile_size(tile);
  with_numbers(head.weight, [&]<class T>(const T* weight) {
    const T* w = weight + j * head.C;  // of either layout
    const T* panels = head.weight.layout == RLHF_PANELS ? w : nullptr;
    product_columns(
        Product<T>{r1, n, head.C, {gathered, head.C, 1}, {w, 1, head.C}, panels, c, c_row, false, nullptr, left}, 0, n,
        r0, r1, scratch);
  });
}

// Calls f(thread, row range, tile range) for each part of a block. It is split by tiles, or by rows where
// tiles are few.
template <class F>
RLHF_INLINE void split_block(Context& ctx, int64_t rows, int64_t tiles, F&& f) {
  const int64_t threads = ctx.threads;
  if (tiles >= 2 * threads || rows < 2 * MR) {
    ctx.each([&](int t) { f(t, int64_t(0), rows, tiles * t / threads, tiles * (t + 1) / threads); });
  } else {
    const int64_t grains = (rows + MR - 1) / MR;
    ctx.each([&](int t) {
      f(t, grains * t / threads * MR, smaller(rows, grains * (t + 1) / threads * MR), int64_t(0), tiles);
    });
  }
}

// The backward pass of a block of rows. SPAN logits of each row at a time, or V, become their gradient;
// then dh and dweight continue their chains.
constexpr int64_t SPAN = 6 * VOCABULARY_TILE;
struct BackwardMemory {
  int64_t rows, span, stride, thread_floats, total;
  float *gathered, *left, *right;  // [rows][C] as it is, packed for the logits, packed for dweight
  float *gradient, *gradient_left;  // [rows][stride], and packed for dh
  float *dh, *scratch;

  BackwardMemory(const Head& head, int64_t most_rows, int threads, float* base) {
    rows = smaller(most_rows, head.M), span = smaller(SPAN, head.V_), stride = round_up(span, LANES) + LANES;
    const auto larger = [](int64_t a, int64_t b) { return a > b ? a : b; };
    thread_floats = larger(tile_scratch(head, rows),
        larger(product_scratch(rows, head.C, span, false), product_scratch(span, head.C, rows, true)));
    thread_floats = round_up(thread_floats, LANES);
    float* p = base;
    auto take = [&](int64_t n) {
      float* at = p;
      p += round_up(n, LANES);
      return at;
    };
    gathered = take(rows * head.C), left = take(left_floats(rows, head.C)),
    right = take(rows * round_up(head.C, PANEL));
    gradient = take(rows * stride), gradient_left = take(left_floats(rows, span)), dh = take(rows * head.C);
    scratch = take(thread_floats * threads);
    total = p - base;
  }
};

// gradient(thread, tile, first row, last row, to) writes the gradient of a tile's logits, in rows of
// memory.stride. Both chains go on from block to block.
template <class F>
RLHF_INLINE void head_backward(Context& ctx, const Head& head, const BackwardMemory& memory, int64_t m0, int64_t count,
    View<float> dh, View<float> dweight, F&& gradient) {
  const int64_t C = head.C;
  if (dweight)
    ctx.split(C, PANEL, 16384 / (count + 1) + 1, [&](int64_t begin, int64_t end) {
      pack_b(Matrix{memory.gathered, C, 1}, 0, count, begin, end - begin, memory.right + begin * count);
    });
  for (int64_t from = 0; from < head.V_; from += SPAN) {
    const int64_t n = smaller(SPAN, head.V_ - from), first = from / VOCABULARY_TILE;
    split_block(ctx, count, (n + VOCABULARY_TILE - 1) / VOCABULARY_TILE,
        [&](int thread, int64_t r0, int64_t r1, int64_t t0, int64_t t1) {
          for (int64_t t = t0; t < t1; t++) gradient(thread, first + t, r0, r1, memory.gradient + t * VOCABULARY_TILE);
        });
    if (dh) pack_left(ctx, {memory.gradient, memory.stride, 1}, count, n, memory.gradient_left);
    ctx.each([&](int thread) {
      float* scratch = memory.scratch + thread * memory.thread_floats;
      const auto part = [&](int64_t size, int64_t grain, int of) {
        return smaller(size, (size + grain - 1) / grain * of / ctx.threads * grain);
      };
      const int64_t c0 = part(C, PANEL, thread), c1 = part(C, PANEL, thread + 1), v0 = part(n, MR, thread),
                    v1 = part(n, MR, thread + 1);
      if (dh && c0 < c1)
        with_numbers(head.weight, [&]<class T>(const T* weight) {
          product_columns(Product<T>{count, C, n, {memory.gradient, memory.stride, 1}, {weight + from * C, C, 1},
                              nullptr, memory.dh, C, from > 0, nullptr, memory.gradient_left},
              c0, c1, 0, count, scratch);
        });
      if (dweight && v0 < v1)
        product_columns(Product<float>{n, C, count, {memory.gradient, 1, memory.stride}, {memory.gathered, C, 1},
                            memory.right, dweight.data + from * C, C, true},
            0, C, v0, v1, scratch);
    });
  }
  if (dh)
    ctx.split(C, LANES, 16384 / (count + 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < count; i++) {
        float* to = dh.row(head.rows[m0 + i]);
        each_vector(
            begin, end, [&](int64_t c, int n) { store(to + c, load(to + c, n) + load(memory.dh + i * C + c, n), n); });
      }
    });
}

RLHF_INLINE void zero_rows(Context& ctx, View<float> x) {
  if (!x) return;
  ctx.split(x.dim[0] * x.dim[1], 1024, 65536,
      [&](int64_t begin, int64_t end) { std::memset(x.data + begin, 0, size_t(end - begin) * sizeof(float)); });
}

}  // namespace
}  // namespace rlhf::RLHF_ISA
