// What attention and its backward share: the plan of a call, made on the device because the offsets lie there, and the
// walks over the tokens that see each other.
//
//   A sequence b sees itself, causally, and the whole of its prefix, of its prefix's prefix, and so on: its ancestors.
//   Tiles of queries and tiles of keys are counted from the start of a sequence and never span two.
#pragma once
#include "kernels/cuda/mma.h"

namespace rlhf::cuda {

// Tiles of `size` tokens of every sequence, those with most work first: a block takes the tile of its rank.
struct TileList {
  Global<int32_t> tiles;  // [at most N/size + B][2]: sequence, first token counted from its start
  Global<int32_t> header;  // [2]: number of tiles; 1 if the offsets or prefixes are bad, then every result is NaN
  Global<int32_t> kin;  // [B] tokens of the ancestors (for queries) or of the descendants (for keys)
  Global<int32_t> last;  // [B] the last descendant; for keys only
  Global<int32_t> first_tile;  // [B+1]
  int32_t size;
};

struct PlanParams {
  Global<const int32_t> offsets, prefix;  // [B+1], [B] or null
  int32_t N, B;
  TileList list[2];  // of queries, of keys
  Global<int32_t> error;
};

constexpr int PLANNERS = 256;
constexpr int CLASSES = 32;  // of work, in which the tiles are sorted

#if RLHF_DEVICE_CODE

struct Sequences {
  Global<const int32_t> offsets, prefix;
  DEVICE int32_t length(int32_t b) const { return offsets[b + 1] - offsets[b]; }
  DEVICE int32_t before(int32_t b) const { return prefix ? prefix[b] : -1; }
};

// What a block works on: a tile of a list, and a head. Without a tile, `sequence` is -1.
struct Work {
  int32_t sequence = -1, start, head;
  DEVICE Work(const TileList& list, int64_t block, int32_t heads) : head(int32_t(block % heads)) {
    const int64_t rank = block / heads;
    if (rank < list.header[0]) sequence = list.tiles[2 * rank], start = list.tiles[2 * rank + 1];
  }
};

// The tiles of keys that a tile of queries sees: its own sequence's from the diagonal back to 0, then each ancestor's
// from its last back to 0, the nearest first. The order is a function of the chain alone, so no batch changes a bit.
struct KeyTiles {
  Sequences of;
  int32_t size, sequence, start;

  // The queries end before `end`.
  DEVICE KeyTiles(Sequences of, int32_t size, int32_t b, int32_t end)
      : of(of), size(size), sequence(b), start((end - 1) / size * size) {}
  DEVICE explicit operator bool() const { return sequence >= 0; }
  DEVICE void next() {
    start -= size;
    while (start < 0) {
      sequence = of.before(sequence);
      if (sequence < 0) return;
      start = (of.length(sequence) + size - 1) / size * size - size;
    }
  }
  DEVICE int64_t row() const { return int64_t(of.offsets[sequence]) + start; }
  DEVICE int32_t count() const { return min(size, of.length(sequence) - start); }
};

// The tiles of queries that see a tile of keys: for each query head of the group, the sequence's own from the diagonal
// on, then all of each descendant, in batch order.
struct QueryTiles {
  Sequences of;
  const TileList& list;  // of the keys
  int32_t size, heads, b, key, head, sequence, start;

  DEVICE QueryTiles(Sequences of, const TileList& list, int32_t size, int32_t heads, const Work& keys)
      : of(of),
        list(list),
        size(size),
        heads(heads),
        b(keys.sequence),
        key(keys.start),
        head(keys.head * heads),
        sequence(b),
        start(key / size * size) {}
  DEVICE explicit operator bool() const { return head >= 0; }
  DEVICE void next() {
    start += size;
    while (start >= of.length(sequence)) {
      start = 0;
      do sequence++;
      while (sequence <= list.last[b] && !descends(sequence));
      if (sequence <= list.last[b]) continue;
      sequence = b, start = key / size * size;
      if (++head % heads == 0) head = -1;
      return;
    }
  }
  DEVICE bool descends(int32_t c) const {
    while (c > b) c = of.before(c);
    return c == b;
  }
  DEVICE int64_t row() const { return int64_t(of.offsets[sequence]) + start; }
  DEVICE int32_t count() const { return min(size, of.length(sequence) - start); }
};

// NaN to all n elements, by all blocks of the grid.
template <class T>
DEVICE void poison(Global<T> out, int64_t n, int64_t blocks, int threads) {
  for (int64_t i = int64_t(block_x()) * threads + thread(); i < n; i += blocks * threads)
    out[i] = from_float<T>(NOT_A_NUMBER);
}

// 2^x within 2 ulp, 0 below 2^-126: a two-hundredth of the step of the bf16 that the results are rounded to.
DEVICE float power_of_two(float x) {
#if __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2(x);
#endif
}

// The exponential of the softmax. Scores become exponents by one fused multiply-add with `factor(scale)`.
template <class Mma>
struct Exponential;
template <>
struct Exponential<Bf16> {  // base 2
  static constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;
  DEVICE static float factor(float scale) { return scale * LOG2E; }
  DEVICE static float raise(float x) { return power_of_two(x); }
  DEVICE static float lse(float top, float sum) { return fma(top, LN2, log(sum)); }
  DEVICE static float exponent(float lse) { return lse * LOG2E; }
};
template <>
struct Exponential<F32> {  // base e: a factor log2(e) would round scores of some hundred once more than plain code does
  DEVICE static float factor(float scale) { return scale; }
  DEVICE static float raise(float x) { return exp(x); }
  DEVICE static float lse(float top, float sum) { return top + log(sum); }
  DEVICE static float exponent(float lse) { return lse; }
};

DEVICE void store_pair(Global<float> to, int64_t i, float a, float b) { store_as<float2>(to, i, float2{a, b}); }
DEVICE void store_pair(Global<bf16> to, int64_t i, float a, float b) { store_as<uint32_t>(to, i, pack_bf16(a, b)); }

// A warp's rows of a result, of which there are `rows`, each times factor(m, r), to rows of `columns` elements that are
// `stride` apart.
template <int M, int N, class T, class F>
DEVICE void store(
    const float (&c)[M][N][4], Global<T> to, int64_t stride, int rows, int columns, bool aligned, F&& factor) {
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) {
    const int row = 16 * m + 8 * r + lane() / 4, first = lane() % 4 * 2;
    if (row >= rows) continue;
    const auto out = to + row * stride;
    const float x = factor(m, r);
    UNROLL for (int n = 0; n < N; n++) {
      const int column = 8 * n + first;
      const float a = c[m][n][2 * r] * x, b = c[m][n][2 * r + 1] * x;
      if (aligned) {
        if (column < columns) store_pair(out, column, a, b);
      } else {
        if (column < columns) out[column] = from_float<T>(a);
        if (column + 1 < columns) out[column + 1] = from_float<T>(b);
      }
    }
  }
}

#endif
#if RLHF_HOST_CODE

constexpr int64_t PLAN_SHARED = (PLANNERS / 32 + CLASSES * PLANNERS) * 4;

inline int64_t most_tiles(int64_t N, int64_t B, int64_t size) { return N / size + (B < N ? B : N); }

inline TileList tile_list(Workspace& places, int64_t N, int64_t B, int size) {
  TileList list;
  list.tiles = places.take<int32_t>(2 * most_tiles(N, B, size));
  list.header = places.take<int32_t>(2);
  list.kin = places.take<int32_t>(B), list.last = places.take<int32_t>(B),
  list.first_tile = places.take<int32_t>(B + 1);
  list.size = size;
  return list;
}

// The smallest variant of an element size that holds heads of D; the largest where none does.
template <class Variant, int n>
const Variant& variant_of(const Variant (&variants)[n], size_t bytes, int64_t D) {
  const Variant* last = nullptr;
  for (const Variant& variant : variants) {
    if (variant.bytes != int(bytes)) continue;
    last = &variant;
    if (variant.D >= D) break;
  }
  return *last;
}

// Whether every row of a tensor begins at, and a head has, a multiple of 16 bytes.
template <class T>
bool aligned(const View<T>& x, int64_t D, int64_t bytes) {
  return at_16_bytes(x.data) && D * bytes % 16 == 0 && x.stride * bytes % 16 == 0;
}

// What the kernels can take; says why not.
inline bool accepts(Context& ctx, int64_t N, int64_t B, int64_t H, int64_t G, int64_t D) {
  if (G == 0 ? H != 0 : H % G != 0) return ctx.fail("the heads of q must be a multiple of those of k and v"), false;
  if (D > 256) return ctx.fail("heads of more than 256 are not written for CUDA"), false;
  if (N > INT32_MAX || B >= INT32_MAX || most_tiles(N, B, 16) > INT32_MAX / (H > 0 ? H : 1))
    return ctx.fail("more tokens than a launch can take"), false;
  return true;
}

#endif
}  // namespace rlhf::cuda
