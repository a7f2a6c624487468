// The backward of causal attention, from lse: nothing of the N x N matrix is kept (Dao et al.,
// FlashAttention).
//
//   p_ij = exp(s_ij - lse_i),  delta_i = sum over D of do_i o_i,  ds_ij = p_ij (do_i v_j - delta_i) scale
//   dq_i = sum over j of ds_ij k_j,  dk_j = sum over i of ds_ij q_i,  dv_j = sum over i of p_ij do_i
//   d_o, q, o, dq [N,H,D]  k, v, dk, dv [N,G,D]  lse [N,H]
//
// Plan: an item of work is a key/value head and a tree of sequences that share prefixes. So s and
// do v are computed once. All tiles of the tree are packed: keys and values as panels, keys as rows
// too. Then for each query head of the group, each sequence, each block of BLOCK queries and each
// tile of 64 keys: s, do v, p, ds and ds k by register groups, then p^T do and ds^T q over the
// block, into sums by token row. Five products, about half of the square.
//
// Law: s as in attention. p = exp(s - lse), ds = (p (dp - delta)) scale, dp one chain over D, delta
// by law 2. dq is one chain over keys ascending. dk and dv are one chain over query heads, then
// sequences of the tree in batch order (a prefix comes before what continues it), then queries
// ascending. Pairs that do not see each other enter with 0 or not at all. A final + 0 makes the two
// the same.
// Figures: 25 to 83 % of the peak, rising with T. History: kernels/notes/attention.md.
#include "kernels/cpu/chains.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t BLOCK = 16 * GROUP;

// What the trees of a batch need.
struct Trees {
  int64_t count = 0, tiles = 0, longest = 0;  // tiles and rows of the longest one, from its first sequence to its last
  RLHF_INLINE explicit Trees(const attention_grad_args& a) {
    for (int64_t b = 0; b + 1 < a.cu_seqlens.dim[0]; b++) {
      int64_t first = b;
      for (int64_t at = b; at >= 0; at = earlier(a.prefix, at)) first = at;
      const int64_t rows = a.cu_seqlens[b + 1] - a.cu_seqlens[first];
      count += first == b, tiles = most(tiles, rows / TILE + 2 * (b - first + 1)), longest = most(longest, rows);
    }
  }
};

// Of each sequence; last: the last sequence of the tree that begins with it
struct Tables {
  int64_t *base, *first_tile, *root, *last;
  RLHF_INLINE Tables(Places& p, int64_t B)
      : base(p.take<int64_t>(B)), first_tile(p.take<int64_t>(B)), root(p.take<int64_t>(B)), last(p.take<int64_t>(B)) {}
};

// Everything packed of one tree under one head, from the region's begin, so that what belongs to short sequences stays
// in a cache.
struct Region {
  float *keys, *values, *rows;  // per tile: k and v as [D][64], k as [64][width(D)]
  float *dk, *dv;  // [rows][width(D)] by token row, from the tree's first
  RLHF_INLINE Region(Places& p, const Trees& trees, int64_t D)
      : keys(p.take<float>(trees.tiles * TILE * D)),
        values(p.take<float>(trees.tiles * TILE * D)),
        rows(p.take<float>(trees.tiles * TILE * width(D))),
        dk(p.take<float>(trees.longest * width(D))),
        dv(p.take<float>(trees.longest * width(D))) {}
};

// What a thread works on: a block of queries of one head.
struct Block {
  float *q, *d_o;  // [BLOCK][width(D)]
  float* dq;  // [BLOCK][width(D)]
  float *p, *ds;  // [BLOCK][64]
  float *lse, *delta;
  RLHF_INLINE Block(Places& places, int64_t D)
      : q(places.take<float>(BLOCK * width(D))),
        d_o(places.take<float>(BLOCK * width(D))),
        dq(places.take<float>(BLOCK * width(D))),
        p(places.take<float>(BLOCK * TILE)),
        ds(places.take<float>(BLOCK * TILE)),
        lse(places.take<float>(BLOCK)),
        delta(places.take<float>(BLOCK)) {}
};

// p and ds of R rows against one tile; row i sees its first seen[i] keys.
template <int R>
__attribute__((noinline)) void probabilities(
    int64_t D, float scale, const Block& x, int64_t row, const float* keys, const float* values, const int64_t* seen) {
  const int64_t columns = (seen[R - 1] + LANES - 1) / LANES, W = width(D);
  float *p = x.p + row * TILE, *ds = x.ds + row * TILE;
  product<R>(columns, D, {x.q + row * W, W}, {keys, TILE}, {p, TILE}, Start::zero);
  product<R>(columns, D, {x.d_o + row * W, W}, {values, TILE}, {ds, TILE}, Start::zero);
  const V factor = set(scale);
  for (int i = 0; i < R; i++, p += TILE, ds += TILE) {
    const V lse = set(x.lse[row + i]), delta = set(x.delta[row + i]);
    V y[4], z[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      y[j] = z[j] = zero();
      if (j >= columns) continue;
      y[j] = exp_score(min(set(87.0f), load(p + LANES * j) * factor - lse));  // above 0 only where lse is of other rows
      z[j] = (y[j] * (load(ds + LANES * j) - delta)) * factor;
    }
    if (seen[i] < TILE)
      for (int j = 0; j < 4; j++) {
        const B there = first(int(most(0, least(LANES, seen[i] - LANES * j))));
        y[j] = select(there, y[j], zero()), z[j] = select(there, z[j], zero());
      }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) store(p + LANES * j, y[j]), store(ds + LANES * j, z[j]);
  }
}

// Law 2 over D.
RLHF_INLINE float dot(const float* a, const float* b, int64_t D) {
  V s = zero();
  each_vector(0, D, [&](int64_t d, int n) { s = fma(load(a + d, n), load(b + d, n), s); });
  return sum(s);
}

// The gradients of one tree under the key/value head g, by one thread.
struct Tree {
  const attention_grad_args& a;
  const Chains& chains;
  const Tables& tables;
  const Region& r;
  const Block& x;
  int64_t g, first;  // its first sequence
  int64_t D = a.q.dim[2], W = width(D), columns = W / LANES, H = a.q.dim[1], G = a.k.dim[1];
  int64_t first_row = chains.offsets[first], before = tables.first_tile[first];  // packed tiles of other trees
  float scale = float(a.scale);

  template <class F>
  RLHF_INLINE void each_sequence(F&& f) const {
    for (int64_t b = first; b <= tables.last[first]; b++)
      if (tables.root[b] == first && chains.length(b) > 0) f(b);
  }

  void pack(int64_t b) const {
    int64_t tile = chains.first_tile(b), i = tables.first_tile[b] - before;
    for (const int64_t end = i + chains.tiles(b); i < end; i++, tile++)
      chains.runs(b, tile, [&](int64_t at, int64_t row, int64_t n) {
        pack_keys(a.k.row(row) + g * D, a.k.stride, n, D, r.keys + i * TILE * D, at);
        pack_keys(a.v.row(row) + g * D, a.v.stride, n, D, r.values + i * TILE * D, at);
        pack_rows(a.k.row(row) + g * D, a.k.stride, n, D, r.rows + (i * TILE + at) * W);
        for (int64_t j = row; j < row + n && g + 1 < G; j++)
          fetch(a.k.row(j) + (g + 1) * D, D), fetch(a.v.row(j) + (g + 1) * D, D);
      });
    memset(r.dk + (chains.offsets[b] - first_row) * W, 0, size_t(chains.length(b) * W) * sizeof(float));
    memset(r.dv + (chains.offsets[b] - first_row) * W, 0, size_t(chains.length(b) * W) * sizeof(float));
  }

  // Rows of the head h, from a token on
  void load_block(int64_t h, int64_t token, int64_t rows) const {
    pack_rows(a.q.row(token) + h * D, a.q.stride, rows, D, x.q);
    pack_rows(a.d_o.row(token) + h * D, a.d_o.stride, rows, D, x.d_o);
    memset(x.dq, 0, size_t(rows * W) * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
      x.lse[i] = a.lse[(token + i) * H + h];
      x.delta[i] = dot(a.d_o.row(token + i) + h * D, a.o.row(token + i) + h * D, D);
      if (h + 1 == H) continue;
      fetch(a.q.row(token + i) + (h + 1) * D, D), fetch(a.d_o.row(token + i) + (h + 1) * D, D),
          fetch(a.o.row(token + i) + (h + 1) * D, D);
    }
  }

  // p, ds and the tile's part of dq for rows whose first one is at `position`; `at`: the tile among those packed
  void queries(int64_t position, int64_t rows, int64_t tile, int64_t at) const {
    for (int64_t i = 0; i < rows; i += GROUP) {
      const int64_t stop = least(rows, i + GROUP);
      int64_t from = most(i, tile * TILE - position), seen[GROUP];
      if (from >= stop) continue;
      for (int64_t row = from; row < stop; row++) seen[row - from] = least(TILE, position + row - tile * TILE + 1);
      with_rows(stop - from, [&]<int R>() {
        probabilities<R>(D, scale, x, from, r.keys + at * TILE * D, r.values + at * TILE * D, seen);
        product<R>(columns, seen[R - 1], {x.ds + from * TILE, TILE}, {r.rows + at * TILE * W, W}, {x.dq + from * W, W},
            Start::resume);
      });
    }
  }

  // What the block's rows add to dk and dv of the tile
  void keys(int64_t b, int64_t position, int64_t rows, int64_t tile) const {
    chains.runs(b, tile, [&](int64_t key, int64_t row, int64_t n) {
      for (int64_t j = 0; j < n; j += GROUP) {
        const int64_t from = most(0, tile * TILE + key + j - position);  // the first query that sees key j
        if (from >= rows) break;
        const float *p = x.p + from * TILE + key + j, *ds = x.ds + from * TILE + key + j;
        with_rows(least(GROUP, n - j), [&]<int R>() {
          product<R, true>(columns, rows - from, {p, TILE}, {x.d_o + from * W, W},
              {r.dv + (row - first_row + j) * W, W}, Start::resume);
          product<R, true>(columns, rows - from, {ds, TILE}, {x.q + from * W, W}, {r.dk + (row - first_row + j) * W, W},
              Start::resume);
        });
      }
    });
  }

  void block(int64_t h, int64_t b, int64_t query, int64_t rows) const {
    const int64_t token = chains.offsets[b] + query, position = chains.base[b] + query;
    load_block(h, token, rows);
    for (int64_t tile = 0; tile * TILE < position + rows; tile++) {
      int64_t owner = b;
      while (tile < chains.first_tile(owner)) owner = chains.before(owner);
      queries(position, rows, tile, tables.first_tile[owner] - before + tile - chains.first_tile(owner));
      keys(b, position, rows, tile);
    }
    for (int64_t i = 0; i < rows; i++) finish(x.dq + i * W, D, a.dq.row(token + i) + h * D);
  }

  void run() const {
    const int64_t heads = H / G;
    each_sequence([&](int64_t b) { pack(b); });
    for (int64_t h = g * heads; h < (g + 1) * heads; h++)
      each_sequence([&](int64_t b) {
        for (int64_t query = 0; query < chains.length(b); query += BLOCK)
          block(h, b, query, least(BLOCK, chains.length(b) - query));
      });
    each_sequence([&](int64_t b) {
      for (int64_t i = chains.offsets[b]; i < chains.offsets[b + 1]; i++) {
        finish(r.dk + (i - first_row) * W, D, a.dk.row(i) + g * D);
        finish(r.dv + (i - first_row) * W, D, a.dv.row(i) + g * D);
      }
    });
  }
};

}  // namespace

void attention_grad(Context& ctx, const attention_grad_args& a) {
  const int64_t H = a.q.dim[1], D = a.q.dim[2], G = a.k.dim[1], B = a.cu_seqlens.dim[0] - 1;
  // A region for each thread, or for each piece of work where those are fewer
  const Trees trees(a);
  const int64_t regions = least(ctx.threads, G * trees.count);
  Places one_region{nullptr}, one_block{nullptr}, of_tables{nullptr};
  Region(one_region, trees, D), Block(one_block, D), Tables(of_tables, B);
  const int64_t blocks_at = of_tables.bytes, regions_at = blocks_at + ctx.threads * one_block.bytes;
  char* memory = static_cast<char*>(ctx.scratch(regions_at + regions * one_region.bytes));
  if (!memory) return;
  if (G == 0 ? H != 0 : H % G != 0) return ctx.fail("the heads of q must be a multiple of those of k and v");
  Places placed{memory};
  const Tables tables(placed, B);
  Chains chains;
  if (!chain(ctx, a.cu_seqlens, a.prefix, tables.base, chains)) return;
  if (G == 0) return;

  int64_t total = 0, tile_count = 0;
  const auto cost = [&](int64_t b) {
    return chains.length(b) * (chains.base[b] + chains.end(b) + 1) * (D + 8) * (H / G);
  };
  for (int64_t b = 0; b < B; b++) {
    tables.root[b] = chains.before(b) < 0 ? b : tables.root[chains.before(b)];
    tables.last[tables.root[b]] = b;
    tables.first_tile[b] = tile_count, tile_count += chains.tiles(b);
    total += cost(b);
  }

  share(ctx, total * G, [&](int thread, int64_t begin, int64_t end) {
    Places own{memory + blocks_at + thread * one_block.bytes};
    const Block x(own, D);
    int64_t at = 0, item = 0;
    for (int64_t b = 0; b < B; b++) {
      if (tables.root[b] != b) continue;
      int64_t all = 0;
      for (int64_t c = b; c <= tables.last[b]; c++)
        if (tables.root[c] == b) all += cost(c);
      for (int64_t g = 0; g < G; g++, at += all, item++) {
        if (at < begin || at >= end) continue;
        Places there{memory + regions_at + (regions < ctx.threads ? item : thread) * one_region.bytes};
        const Region region(there, trees, D);
        Tree{a, chains, tables, region, x, g, b}.run();
      }
    }
  });
}

}  // namespace rlhf::RLHF_ISA
