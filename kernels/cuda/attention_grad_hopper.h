// The backward of attention of bf16 heads of 64 and 128 on a Hopper (Shah et al., FlashAttention-3,
// 2024). It has the two passes of attention_grad.cu, and its masks and order of sums, so blocks
// share no sum.
//
// Plan: a block has two tiles of 128 rows of its own and walks pairs of tiles, which a warp brings
// two pairs ahead. Two warpgroups have 64 of the rows each. p and ds stay in their registers, as
// the left operands of the second products.
//
//            own      walked                  s      ds       sums
//   dk, dv   k, v     64 queries: q, d_o      k q^T  v d_o^T  dv += p d_o, dk += ds q
//   dq       q, d_o   128 keys: k, v          q k^T  d_o v^T  dq += ds k
//
// The products of the sums run beside the next tile's first ones, and beside the other warpgroup's
// exponentials: start s; wait for the sums of the tile before, whose place is free then; start ds;
// wait for s; p; wait for ds; ds; start the sums. p d_o cannot start while ds is under way: the
// compiler would make each wait for the one before. A tile that reaches past its sequence is
// brought whole, and the warp that brings it writes zeros over rows that would enter a sum.
//
//            D    shared memory   registers of a thread: s, ds, both in bf16, sums
//   dk, dv   64   66 KiB          32 + 32 + 32 + 64, of 240, and 32 for k and v
//            128  130 KiB         32 + 32 + 32 + 128
//   dq       64   96 KiB          64 + 64 + 32 + 32
//            128  192 KiB         64 + 64 + 32 + 64
// Expected, not yet measured: at most 71 % of the peak. History: kernels/notes/attention.md.
#pragma once
#include "kernels/cuda/attention_backward.h"
#include "kernels/cuda/attention_hopper.h"

namespace rlhf::cuda {

struct AttentionGradMaps {
  TensorMap d_o, q, k, v;
  AttentionGradParams<bf16> p;
};

constexpr int HOPPER_OWN = 128;
ANYWHERE constexpr int hopper_walked(bool of_keys) { return of_keys ? 64 : 128; }
constexpr int64_t hopper_grad_shared(bool of_keys, int64_t D) {
  return 2 * (HOPPER_OWN + HOPPER_STAGES * hopper_walked(of_keys)) * D * 2 +
         (of_keys ? HOPPER_STAGES * hopper_walked(of_keys) * 8 : 0) + (2 * HOPPER_STAGES + 2) * 16;
}

#if RLHF_HOPPER_CODE

// What a block keeps in shared memory, and its barriers, which the constructor makes. a and b: k and v, or q and d_o,
// of its own rows; q and d_o, or k and v, of those that it walks.
template <bool OF_KEYS, int D>
struct GradMemory {
  Shared<bf16> own_a, own_b, all_a, all_b;
  Shared<float> all_rows;  // exponent and delta of the walked queries
  Shared<uint64_t> full_own, landed;  // landed: a short tile, which is not yet cleared
  Shared<uint64_t> full, empty;  // of each stage
  DEVICE GradMemory() {
    constexpr int STAGES = HOPPER_STAGES, WALKED = hopper_walked(OF_KEYS);
    SharedMemory memory;
    own_a = memory.take<bf16>(HOPPER_OWN * D), own_b = memory.take<bf16>(HOPPER_OWN * D);
    all_a = memory.take<bf16>(STAGES * WALKED * D), all_b = memory.take<bf16>(STAGES * WALKED * D);
    all_rows = memory.take<float>(OF_KEYS ? STAGES * WALKED * 2 : 0);
    full_own = memory.take<uint64_t>(1), landed = memory.take<uint64_t>(1);
    full = memory.take<uint64_t>(STAGES), empty = memory.take<uint64_t>(STAGES);
    if (thread() == 0) {
      barrier_init(full_own, 1), barrier_init(landed, 1);
      for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, HOPPER_READERS / 32);
      barrier_publish();
    }
    sync_threads();
  }
};

// The warp that brings the block's own rows, then the tiles that it walks
template <bool OF_KEYS, int D, class Tiles>
DEVICE void bring_grad(const AttentionGradMaps& maps, const Work& work, const Sequences& sequences,
    const GradMemory<OF_KEYS, D>& memory, int64_t token, Tiles& tiles) {
  constexpr int OWN = HOPPER_OWN, WALKED = hopper_walked(OF_KEYS), STAGES = HOPPER_STAGES, TILE = WALKED * D;
  const AttentionGradParams<bf16>& p = maps.p;
  if (lane() == 0) {
    barrier_arrive_expect(memory.full_own, 2 * OWN * D * 2);
    bring_rows<OWN, D>(memory.own_a, OF_KEYS ? maps.k : maps.q, token, int64_t(work.head) * D, memory.full_own);
    bring_rows<OWN, D>(memory.own_b, OF_KEYS ? maps.v : maps.d_o, token, int64_t(work.head) * D, memory.full_own);
  }
  UNROLL_BY(1) for (int i = 0, short_tiles = 0; tiles; i++, tiles.next()) {
    const int stage = i % STAGES, n = tiles.count();
    const Shared<bf16> a = memory.all_a + stage * TILE, b = memory.all_b + stage * TILE;
    const Shared<uint64_t> arrival = n < WALKED ? memory.landed : memory.full + stage;
    barrier_wait(memory.empty + stage, (i / STAGES & 1) ^ 1);
    sync_warp();
    if (lane() == 0) {
      barrier_arrive_expect(arrival, 2 * TILE * 2 + (OF_KEYS ? WALKED * 8 : 0));
      int64_t head = work.head / p.heads;
      if constexpr (OF_KEYS) {
        head = tiles.head;
        copy_line(memory.all_rows + stage * WALKED * 2,
            Global<const float>(p.rows + 2 * (head * p.row_stride + row_of(sequences, tiles.sequence) + tiles.start)),
            WALKED * 2, arrival);
      }
      bring_rows<WALKED, D>(a, OF_KEYS ? maps.q : maps.k, tiles.row(), head * D, arrival);
      bring_rows<WALKED, D>(b, OF_KEYS ? maps.d_o : maps.v, tiles.row(), head * D, arrival);
    }
    if (n == WALKED) continue;
    barrier_wait(memory.landed, short_tiles++ & 1);
    clear_rows<WALKED, D>(a, n);
    if (OF_KEYS) clear_rows<WALKED, D>(b, n);
    fence_async();
    sync_warp();
    if (lane() == 0) barrier_arrive(memory.full + stage);
  }
}

// A tile's rows against the walked ones: c = x y^T, with x in registers or in shared memory.
template <bool KEPT, int WALKED, int D>
DEVICE void start_scores(
    float (&c)[WALKED / 8][4], const uint32_t (&kept)[D / 16][4], uint64_t left, Shared<bf16> walked) {
  constexpr int ROW = BOX * 2;  // bytes
  const uint64_t right = tile_descriptor(walked);
  multiply_begin();
  UNROLL for (int d = 0; d < D; d += 16) {
    const uint64_t b = tile_descriptor_at(right, d / BOX * WALKED * ROW + d % BOX * 2);
    if constexpr (KEPT) multiply<false>(c, kept[d / 16], b, d > 0);
    else multiply<false, false>(c, tile_descriptor_at(left, d / BOX * HOPPER_OWN * ROW + d % BOX * 2), b, d > 0);
  }
  multiply_commit();
}
// c += x y, the walked rows as the sum's; the first product begins with 0.
template <int WALKED, int D>
DEVICE void start_sums(float (&c)[D / 8][4], const uint32_t (&x)[WALKED / 16][4], Shared<bf16> walked, bool first) {
  constexpr int ROW = BOX * 2;  // bytes
  const uint64_t right = tile_descriptor(walked, WALKED * ROW);
  multiply_begin();
  UNROLL for (int k = 0; k < WALKED / 16; k++)
      multiply<true>(c, x[k], tile_descriptor_at(right, k * 16 * ROW), !first || k > 0);
  multiply_commit();
}

// Zeros where a query does not see a key: columns from n on, and those on the wrong side of `edge`.
template <bool OF_KEYS, int N>
DEVICE void mask_walked(float (&c)[N][4], int edge, int n) {
  each_pair<1, N>([&](int, int j, int r, int row, int column) {
    UNROLL for (int e = 0; e < 2; e++) if (column + e >= n || (OF_KEYS ? column + e < edge + row
                                                                       : column + e > edge + row)) c[j][2 * r + e] = 0;
  });
}

// The block's own rows as left operands in registers
template <int D>
DEVICE void keep_rows(uint32_t (&x)[D / 16][4], Tile<bf16, BOX> tile) {
  const int at = tile.at(warp() * 16 + lane() % 16, lane() / 16 * 8);
  UNROLL for (int d = 0; d < D; d += 16) load_matrix_x4(x[d / 16], tile.data + tile.along(at, d));
}

// dk and dv of a tile of keys, or dq of a tile of queries
template <bool OF_KEYS, int D>
DEVICE void gradients_hopper(const AttentionGradMaps& maps) {
  constexpr int OWN = HOPPER_OWN, WALKED = hopper_walked(OF_KEYS), STAGES = HOPPER_STAGES, N = WALKED / 8, W = D / 8,
                TILE = WALKED * D;
  constexpr bool KEPT = OF_KEYS && D == BOX;  // its rows of k and v are in registers, as left operands
  const AttentionGradParams<bf16>& p = maps.p;
  const TileList& list = OF_KEYS ? p.keys : p.queries;
  if (list.header[1]) {
    const auto spoil = [&](auto x, int64_t heads) { poison(x, p.N * heads * p.D, grid_x(), HOPPER_READERS + 128); };
    if (OF_KEYS) spoil(p.dk, p.G), spoil(p.dv, p.G);
    else spoil(p.dq, p.H);
    return;
  }
  const Work work(list, block_x(), OF_KEYS ? p.G : p.H);
  if (work.sequence < 0) return;
  const GradMemory<OF_KEYS, D> memory;
  const Sequences sequences{p.offsets, p.prefix};
  const int32_t length = sequences.length(work.sequence), end = min(work.start + OWN, length);
  const int64_t token = int64_t(p.offsets[work.sequence]) + work.start;
  auto tiles = [&] {
    if constexpr (OF_KEYS) return QueryTiles(sequences, list, WALKED, p.heads, work);
    else return KeyTiles(sequences, WALKED, work.sequence, end);
  }();
  if (thread() >= HOPPER_READERS) {
    registers_fewer<24>();
    if (warp() == HOPPER_READERS / 32) bring_grad<OF_KEYS, D>(maps, work, sequences, memory, token, tiles);
    return;
  }

  registers_more<240>();
  const int own = work.start + warp() * 16;  // first row of the warp
  const float factor = Exponential<Bf16>::factor(p.scale);
  float s[N][4], ds[N][4], dv[1][W][4], sum[1][W][4];  // sum: dk or dq
  uint32_t p_half[N / 2][4], ds_half[N / 2][4];
  float2 query[OF_KEYS ? N : 1][2];  // exponent and delta: of the columns' queries, or of the rows'
  if constexpr (!OF_KEYS) {
    UNROLL for (int r = 0; r < 2; r++) query[0][r] = load_as<float2>(
        p.rows, 2 * (work.head * p.row_stride + row_of(sequences, work.sequence) + own + 8 * r + lane() / 4));
  }

  barrier_wait(memory.full_own, 0);
  const uint64_t left_a = tile_descriptor(memory.own_a + warp() / 4 * 64 * BOX),
                 left_b = tile_descriptor(memory.own_b + warp() / 4 * 64 * BOX);
  uint32_t kept_a[D / 16][4], kept_b[D / 16][4];
  if constexpr (KEPT) keep_rows<D>(kept_a, {memory.own_a}), keep_rows<D>(kept_b, {memory.own_b});

  int i = 0;
  UNROLL_BY(1) for (; tiles; i++, tiles.next()) {
    const int stage = i % STAGES, n = tiles.count();
    const Shared<bf16> a = memory.all_a + stage * TILE, b = memory.all_b + stage * TILE;
    const bool same = tiles.sequence == work.sequence;
    // the first query that sees the warp's first key; or the last key that its first query sees
    const int edge = same ? own - tiles.start : OF_KEYS ? -16 : n;
    const bool masked = n < WALKED || (OF_KEYS ? edge + 15 > 0 : edge < WALKED - 1);
    const auto of = [&](int j, int r, int e) { return OF_KEYS ? query[j][e] : query[0][r]; };

    barrier_wait(memory.full + stage, i / STAGES & 1);
    start_scores<KEPT, WALKED, D>(s, kept_a, left_a, a);
    if constexpr (OF_KEYS) multiply_wait<1>(sum[0], ds_half, dv[0], p_half);
    else multiply_wait<1>(sum[0], ds_half);
    if (i > 0 && lane() == 0) barrier_arrive(memory.empty + (i - 1) % STAGES);
    start_scores<KEPT, WALKED, D>(ds, kept_b, left_b, b);
    multiply_wait<1>(s);
    if constexpr (OF_KEYS) {
      const Shared<float> rows = memory.all_rows + stage * WALKED * 2;
      UNROLL for (int j = 0; j < N; j++) UNROLL for (int e = 0; e < 2; e++) query[j][e] =
          load_as<float2>(rows, 2 * (8 * j + lane() % 4 * 2 + e));
    }
    each_pair<1, N>([&](int, int j, int r, int, int) {
      UNROLL for (int e = 0; e < 2; e++) s[j][2 * r + e] =
          Exponential<Bf16>::raise(fma(s[j][2 * r + e], factor, -of(j, r, e).x));
    });
    if (masked) mask_walked<OF_KEYS>(s, edge, n);
    multiply_wait<0>(ds);
    if constexpr (OF_KEYS) narrow(p_half, s);
    each_pair<1, N>([&](int, int j, int r, int, int) {
      UNROLL for (int e = 0; e < 2; e++) ds[j][2 * r + e] = s[j][2 * r + e] * (ds[j][2 * r + e] - of(j, r, e).y);
    });
    if (masked) mask_walked<OF_KEYS>(ds, edge, n);
    narrow(ds_half, ds);
    if constexpr (OF_KEYS) start_sums<WALKED, D>(dv[0], p_half, b, i == 0);
    start_sums<WALKED, D>(sum[0], ds_half, a, i == 0);
  }

  const int64_t stride = int64_t(OF_KEYS ? p.G : p.H) * D,
                out = (token + warp() * 16) * stride + int64_t(work.head) * D;
  const auto put = [&](float(&c)[1][W][4], Global<bf16> to, float scale) {
    store(c, to + out, stride, end - own, D, true, [&](int, int) { return scale; });
  };
  if constexpr (OF_KEYS) {
    multiply_wait<0>(sum[0], ds_half, dv[0], p_half);
    put(sum, p.dk, p.scale), put(dv, p.dv, 1);
  } else {
    multiply_wait<0>(sum[0], ds_half);
    put(sum, p.dq, p.scale);
  }
}

#endif
#if RLHF_HOST_CODE

inline void launch_hopper(Context& ctx, const attention_grad_args& a, const AttentionGradParams<bf16>& p,
    int64_t key_blocks, int64_t query_blocks) {
  const AttentionGradMaps maps{heads_map(ctx, a.d_o), heads_map(ctx, a.q), heads_map(ctx, a.k), heads_map(ctx, a.v), p};
  const bool wide = p.D == 128;
  launch(ctx, wide ? "attention_grad_keys_bf16_d128_hopper" : "attention_grad_keys_bf16_d64_hopper", {key_blocks}, 384,
      hopper_grad_shared(true, p.D), maps);
  launch(ctx, wide ? "attention_grad_queries_bf16_d128_hopper" : "attention_grad_queries_bf16_d64_hopper",
      {query_blocks}, 384, hopper_grad_shared(false, p.D), maps);
}

#endif

}  // namespace rlhf::cuda
