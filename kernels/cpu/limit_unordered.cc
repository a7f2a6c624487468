// What the law of arithmetic costs: a product and an attention that may add in any order, for the
// benchmarks alone.
//
//   limit_linear      y = x W^T by gemm.h's blocks and tiles. Each block of k is summed from zero and added to y.
//                     Up to 16 rows are the ordered product.
//   limit_attention   o = softmax(scale q k^T) v, causal, no prefix, by attention.h's tiles. One maximum and one
//                     scaling of o per 256 keys; denominators stay in 16 lanes to the end.
//
// History: kernels/notes/limit.md.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/gemm.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t WIDE = 4, KEYS = WIDE * TILE;  // tiles of keys that share a maximum
constexpr int64_t BLOCK = FORWARD_ROWS;

// Keys and values of one sequence and head, and a block of its queries
struct Memory {
  float *keys, *values, *q, *o, *s, *l, *m, *fall;
  RLHF_INLINE Memory(Places& p, int64_t tiles, int64_t D, int64_t W) {
    keys = p.take<float>(tiles * TILE * D), values = p.take<float>(tiles * TILE * W), q = p.take<float>(BLOCK * D),
    o = p.take<float>(BLOCK * W);
    s = p.take<float>(BLOCK * KEYS), l = p.take<float>(BLOCK * LANES), m = p.take<float>(BLOCK),
    fall = p.take<float>(BLOCK);
  }
};

// Rows of a block against KEYS keys from `key` on. Row i is at position first + i, and those before `from` see no key.
struct WideTile {
  const Memory& x;
  int64_t D, W, first, rows, key, from;
  V scale;

  RLHF_INLINE int64_t seen(int64_t i) const { return least(KEYS, first + i + 1 - key); }

  RLHF_INLINE void scores() const {
    for (int64_t i = from; i < rows; i += GROUP)
      with_rows(least(GROUP, rows - i), [&]<int R>() {
        for (int64_t at = 0, keys = seen(i + R - 1); at < keys; at += TILE)
          product<R>((least(TILE, keys - at) + LANES - 1) / LANES, D, {x.q + i * D, D}, {x.keys + (key + at) * D, TILE},
              {x.s + i * KEYS + at, KEYS}, Start::zero);
      });
  }

  // The maxima, and by what factor each row's sums fall
  RLHF_INLINE void maxima() const {
    for (int64_t i = from; i < rows; i++) {
      float* s = x.s + i * KEYS;
      const int64_t n = seen(i), whole = n / LANES * LANES;
      V top = set(-__builtin_inff());
      for (int64_t j = 0; j < whole; j += LANES) top = max(load(s + j), top);
      if (whole < n)
        store(s + whole, select(first_of(n - whole, 0), load(s + whole), set(-__builtin_inff()))),
            top = max(load(s + whole), top);
      const float here = max(top * scale), m = x.m[i] > here ? x.m[i] : here;
      x.fall[i] = x.m[i] - m;
      x.m[i] = m;
    }
    for (int64_t i = from; i < rows; i += LANES) {
      const int n = int(least(LANES, rows - i));
      store(x.fall + i, exp(load(x.fall + i, n)), n);
    }
  }

  RLHF_INLINE void probabilities() const {
    for (int64_t i = from; i < rows; i++) {
      float* s = x.s + i * KEYS;
      // the products of a group read as far as its last row sees
      const int64_t n = round_up(seen(i), LANES), stop = round_up(seen(least(rows - 1, i + GROUP - 1)), LANES);
      const V m = set(-x.m[i]);
      V l = load(x.l + i * LANES) * set(x.fall[i]);
      for (int64_t j = 0; j < n; j += LANES) {
        const V p = exp_score(fma(load(s + j), scale, m));
        store(s + j, p);
        l = l + p;
      }
      for (int64_t j = n; j < stop; j += LANES) store(s + j, zero());
      store(x.l + i * LANES, l);
    }
  }

  RLHF_INLINE void values() const {
    for (int64_t i = from; i < rows; i += GROUP)
      with_rows(least(GROUP, rows - i), [&]<int R>() {
        product<R>(W / LANES, seen(i + R - 1), {x.s + i * KEYS, KEYS}, {x.values + key * W, W}, {x.o + i * W, W},
            Start::scaled, x.fall + i);
      });
  }
};

}  // namespace

void limit_linear(Context& ctx, const limit_linear_args& a) {
  const int64_t N = a.x.dim[0], I = a.x.dim[1], O = a.weight.dim[0];
  float* scratch =
      static_cast<float*>(ctx.scratch(parallel_scratch(ctx.threads, N, O, I, false) * int64_t(sizeof(float)) + 64));
  if (!scratch) return;
  product<float, true>(ctx, {N, O, I, {a.x.data, a.x.stride, 1}, {a.weight.data, 1, I}, nullptr, a.y.data, O}, scratch);
}

void limit_attention(Context& ctx, const limit_attention_args& a) {
  const int64_t N = a.q.dim[0], H = a.q.dim[1], D = a.q.dim[2], G = a.k.dim[1], B = a.cu_seqlens.dim[0] - 1,
                W = width(D);
  const int64_t tiles = (N + KEYS - 1) / KEYS * WIDE;
  Places places{nullptr};
  Memory(places, tiles, D, W);
  const int64_t each = places.bytes;
  char* memory = static_cast<char*>(ctx.scratch(ctx.threads * each));
  if (!memory) return;
  if (G == 0 || H % G != 0) return ctx.fail("the heads of q must be a multiple of those of k and v");
  const auto length = [&](int64_t b) { return int64_t(a.cu_seqlens[b + 1] - a.cu_seqlens[b]); };
  const auto cost = [&](int64_t row, int64_t rows) { return rows * (row + rows) * D; };
  int64_t total = 0;
  for (int64_t b = 0; b < B; b++)
    for (int64_t row = 0; row < length(b); row += BLOCK) total += cost(row, least(BLOCK, length(b) - row));

  share(ctx, total * H, [&](int thread, int64_t begin, int64_t end) {
    Places own{memory + thread * each};
    const Memory x(own, tiles, D, W);
    const V scale = set(float(a.scale));
    int64_t packed_b = -1, packed_g = -1, filled = 0;

    const auto block = [&](int64_t h, int64_t b, int64_t first, int64_t rows) {
      const int64_t g = h / (H / G), start = a.cu_seqlens[b], T = length(b);
      if (b != packed_b || g != packed_g) packed_b = b, packed_g = g, filled = 0;
      for (; filled * TILE < first + rows; filled++) {
        const int64_t n = least(TILE, T - filled * TILE), token = start + filled * TILE;
        pack_keys(a.k.row(token) + g * D, a.k.stride, n, D, x.keys + filled * TILE * D, 0);
        pack_rows(a.v.row(token) + g * D, a.v.stride, n, D, x.values + filled * TILE * W);
      }
      for (int64_t i = 0; i < rows; i++) {
        memcpy(x.q + i * D, a.q.row(start + first + i) + h * D, size_t(D) * sizeof(float));
        x.m[i] = -__builtin_inff();
        store(x.l + i * LANES, zero());
      }
      memset(x.o, 0, size_t(rows * W) * sizeof(float));
      for (int64_t key = 0; key < first + rows; key += KEYS) {
        const WideTile tile{x, D, W, first, rows, key, most(0, key - first), scale};
        tile.scores(), tile.maxima(), tile.probabilities(), tile.values();
      }
      for (int64_t i = 0; i < rows; i++)
        finish(x.o + i * W, sum(load(x.l + i * LANES)), D, a.o.data + ((start + first + i) * H + h) * D);
    };

    int64_t at = 0;
    for (int64_t h = 0; h < H && at < end; h++)
      for (int64_t b = 0; b < B && at < end; b++)
        for (int64_t row = 0; row < length(b) && at < end; row += BLOCK) {
          const int64_t n = least(BLOCK, length(b) - row);
          if (at >= begin) block(h, b, row, n);
          at += cost(row, n);
        }
  });
}

}  // namespace rlhf::RLHF_ISA
