// Attention of bf16 heads of 64 and 128 on a Hopper (Shah et al., FlashAttention-3, 2024), with the
// masks and the order of attention.cu.
//
// Plan: a block has 128 queries of a head. A warp brings them, then tiles of 128 keys and of their
// values, two of each ahead. Two warpgroups have 64 queries each. While a warpgroup's softmax of
// one tile runs, the tensor cores have its p v of the tile before and the other warpgroup's
// products:
//
//   s = q k_0^T, softmax, p = bf16(s)
//   for each further tile:  start s = q k_i^T and o += p v_{i-1}; wait for s; softmax; wait for o; lower o; p = bf16(s)
//   o += p v_last
//
// A tile of values that reaches past its sequence is brought whole. Its other rows may hold NaN, so
// the warp that brings it writes zeros over them before the others may read.
//
//   D    shared memory   registers of a thread: s, o, p
//   64   80 KiB          64 + 32 + 32, of 232
//   128  160 KiB         64 + 64 + 32
// Expected, not yet measured: 570 TFLOP/s at D 128. History: kernels/notes/attention.md.
#pragma once
#include "kernels/cuda/attention_forward.h"
#include "kernels/cuda/hopper.h"

namespace rlhf::cuda {

struct AttentionMaps {
  TensorMap q, k, v;
  AttentionParams<bf16> p;
};

constexpr int HOPPER_QUERIES = 128, HOPPER_KEYS = 128, HOPPER_STAGES = 2;
constexpr int HOPPER_READERS = 256;  // threads that compute; a warpgroup more brings their tiles
constexpr int64_t hopper_shared(int64_t D) {
  return (HOPPER_QUERIES + 2 * HOPPER_STAGES * HOPPER_KEYS) * D * 2 + (4 * HOPPER_STAGES + 2) * 16;
}

#if RLHF_HOPPER_CODE

// A tile of ROWS rows: D columns, 64 of all rows after the other
template <int ROWS, int D>
DEVICE void bring_rows(Shared<bf16> to, const TensorMap& map, int64_t row, int64_t column, Shared<uint64_t> b) {
  for (int d = 0; d < D; d += BOX)
    for (int i = 0; i < ROWS; i += BOX) copy_box(to + (ROWS * d + i * BOX), map, row + i, column + d, b);
}

// Zeros to the tile's rows from n on, by a warp.
template <int ROWS, int D>
DEVICE void clear_rows(Shared<bf16> tile, int n) {
  for (int d = 0; d < D; d += BOX)
    for (int at = n * BOX + 8 * lane(); at < ROWS * BOX; at += 8 * 32)
      store_as<int4>(tile, ROWS * d + at, int4{0, 0, 0, 0});
}

// A warp's scores, rounded, as the left operand of a product.
template <int N>
DEVICE void narrow(uint32_t (&x)[N / 2][4], const float (&s)[N][4]) {
  UNROLL for (int i = 0; i < N / 2; i++) {
    const auto &a = s[2 * i], &b = s[2 * i + 1];
    x[i][0] = pack_bf16(a[0], a[1]), x[i][1] = pack_bf16(a[2], a[3]), x[i][2] = pack_bf16(b[0], b[1]),
    x[i][3] = pack_bf16(b[2], b[3]);
  }
}

// What a block keeps in shared memory, and its barriers, which the constructor makes
template <int D>
struct AttentionMemory {
  Shared<bf16> q, k, v;
  Shared<uint64_t> full_q, landed;  // landed: the values of a short tile, which are not yet cleared
  Shared<uint64_t> full_k, empty_k, full_v, empty_v;  // of each stage
  DEVICE AttentionMemory() {
    constexpr int STAGES = HOPPER_STAGES;
    SharedMemory memory;
    q = memory.take<bf16>(HOPPER_QUERIES * D), k = memory.take<bf16>(STAGES * HOPPER_KEYS * D),
    v = memory.take<bf16>(STAGES * HOPPER_KEYS * D);
    full_q = memory.take<uint64_t>(1), landed = memory.take<uint64_t>(1);
    full_k = memory.take<uint64_t>(STAGES), empty_k = memory.take<uint64_t>(STAGES),
    full_v = memory.take<uint64_t>(STAGES), empty_v = memory.take<uint64_t>(STAGES);
    if (thread() == 0) {
      barrier_init(full_q, 1), barrier_init(landed, 1);
      for (int i = 0; i < STAGES; i++) {
        barrier_init(full_k + i, 1), barrier_init(full_v + i, 1);
        barrier_init(empty_k + i, HOPPER_READERS / 32), barrier_init(empty_v + i, HOPPER_READERS / 32);
      }
      barrier_publish();
    }
    sync_threads();
  }
};

// The warp that brings the queries, then the tiles of keys and values
template <int D>
DEVICE void bring_attention(
    const AttentionMaps& maps, const Work& work, const AttentionMemory<D>& memory, KeyTiles& keys) {
  constexpr int KEYS = HOPPER_KEYS, STAGES = HOPPER_STAGES, TILE = KEYS * D;
  const AttentionParams<bf16>& p = maps.p;
  const int64_t token = int64_t(p.offsets[work.sequence]) + work.start, head = int64_t(work.head) * D,
                kv_head = int64_t(work.head / p.heads) * D;
  const auto bring = [&](Shared<bf16> to, const TensorMap& map, int64_t row, int64_t column, Shared<uint64_t> b) {
    if (lane() > 0) return;
    barrier_arrive_expect(b, 128 * D * 2);
    bring_rows<128, D>(to, map, row, column, b);
  };
  bring(memory.q, maps.q, token, head, memory.full_q);
  UNROLL_BY(1) for (int i = 0, short_tiles = 0; keys; i++, keys.next()) {
    const int stage = i % STAGES, round = i / STAGES & 1, n = keys.count();
    const Shared<bf16> values = memory.v + stage * TILE;
    barrier_wait(memory.empty_k + stage, round ^ 1);
    bring(memory.k + stage * TILE, maps.k, keys.row(), kv_head, memory.full_k + stage);
    barrier_wait(memory.empty_v + stage, round ^ 1);
    sync_warp();
    bring(values, maps.v, keys.row(), kv_head, n < KEYS ? memory.landed : memory.full_v + stage);
    if (n == KEYS) continue;
    barrier_wait(memory.landed, short_tiles++ & 1);
    clear_rows<KEYS, D>(values, n);
    fence_async();
    sync_warp();
    if (lane() == 0) barrier_arrive(memory.full_v + stage);
  }
}

template <int D>
DEVICE void attend_hopper(const AttentionMaps& maps) {
  constexpr int QUERIES = HOPPER_QUERIES, KEYS = HOPPER_KEYS, STAGES = HOPPER_STAGES, N = KEYS / 8, W = D / 8,
                TILE = KEYS * D;
  constexpr int BLOCK = 128 * BOX * 2;  // bytes of 64 columns of a tile
  const AttentionParams<bf16>& p = maps.p;
  if (p.queries.header[1]) {
    poison(p.o, p.N * p.H * p.D, grid_x(), HOPPER_READERS + 128);
    return poison(p.lse, p.N * p.H, grid_x(), HOPPER_READERS + 128);
  }
  const Work work(p.queries, block_x(), p.H);
  if (work.sequence < 0) return;
  const AttentionMemory<D> memory;
  const Shared<uint64_t> full_k = memory.full_k, empty_k = memory.empty_k, full_v = memory.full_v,
                         empty_v = memory.empty_v;
  const Sequences sequences{p.offsets, p.prefix};
  const int32_t length = sequences.length(work.sequence), end = min(work.start + QUERIES, length);
  KeyTiles keys(sequences, KEYS, work.sequence, end);
  if (thread() >= HOPPER_READERS) {
    registers_fewer<40>();
    if (warp() == HOPPER_READERS / 32) bring_attention<D>(maps, work, memory, keys);
    return;
  }

  registers_more<232>();
  const int own = work.start + warp() * 16;  // first query of the warp
  const uint64_t queries = tile_descriptor(memory.q + warp() / 4 * 64 * BOX);
  const float scale = Exponential<Bf16>::factor(p.scale), factor = scale > 0 ? scale : 1;
  float s[1][N][4], o[1][W][4], top[1][2] = {{-INFINITE, -INFINITE}}, sum[1][2] = {}, fall[2];
  uint32_t x[KEYS / 16][4];  // p
  const auto scores = [&](int stage) {
    const uint64_t tile = tile_descriptor(memory.k + stage * TILE);
    multiply_begin();
    UNROLL for (int d = 0; d < D; d += 16) {
      const int at = d / BOX * BLOCK + d % BOX * 2;
      multiply<false, false>(s[0], tile_descriptor_at(queries, at), tile_descriptor_at(tile, at), d > 0);
    }
    multiply_commit();
  };
  const auto values = [&](int stage, bool first) {
    const uint64_t tile = tile_descriptor(memory.v + stage * TILE, BLOCK);
    multiply_begin();
    UNROLL for (int i = 0; i < KEYS / 16; i++)
        multiply<true>(o[0], x[i], tile_descriptor_at(tile, i * 16 * BOX * 2), !first || i > 0);
    multiply_commit();
  };
  const auto probabilities = [&] {
    const int n = keys.count();
    mask(s, scale, keys.sequence == work.sequence ? own - keys.start : n, n);
    softmax<Bf16>(s, top, sum, factor, [&](int, int r, float x) { fall[r] = x; });
  };
  const auto release = [&](Shared<uint64_t> empty) {
    if (lane() == 0) barrier_arrive(empty);
  };

  barrier_wait(memory.full_q, 0), barrier_wait(full_k, 0);
  scores(0);
  multiply_wait<0>(s[0]);
  release(empty_k);
  probabilities();
  narrow(x, s[0]);
  keys.next();
  int i = 1;
  UNROLL_BY(1) for (; keys; i++, keys.next()) {
    const int stage = i % STAGES, before = (i - 1) % STAGES;
    barrier_wait(full_k + stage, i / STAGES & 1);
    scores(stage);
    barrier_wait(full_v + before, (i - 1) / STAGES & 1);
    values(before, i == 1);
    multiply_wait<1>(s[0]);
    release(empty_k + stage);
    probabilities();
    multiply_wait<0>(o[0], x);
    release(empty_v + before);
    UNROLL for (int r = 0; r < 2; r++) lower(o, 0, r, fall[r]);
    narrow(x, s[0]);
  }
  const int last = (i - 1) % STAGES;
  barrier_wait(full_v + last, (i - 1) / STAGES & 1);
  values(last, i == 1);
  multiply_wait<0>(o[0]);
  end_rows<Bf16>(p, work, work.head * D, own, end, o, top, sum);
}

#endif
#if RLHF_HOST_CODE

template <class P>
bool takes_hopper(const Context& ctx, const P& p) {
  return ctx.gpu->architecture == 90 && p.aligned && p.N > 0 && p.H > 0 && (p.D == 64 || p.D == 128);
}
// of q, k, v and what is shaped like them: [N,heads,D]
inline TensorMap heads_map(Context& ctx, const View<const float>& x) {
  const int64_t columns = x.dim[1] * x.dim[2];
  return tensor_map(ctx, x.data, x.dim[0], columns, x.dim[0] > 1 ? x.stride : columns, BOX);
}
inline void launch_hopper(Context& ctx, Grid blocks, const attention_args& a, const AttentionParams<bf16>& p) {
  const AttentionMaps maps{heads_map(ctx, a.q), heads_map(ctx, a.k), heads_map(ctx, a.v), p};
  launch(ctx, p.D == 64 ? "attention_bf16_d64_hopper" : "attention_bf16_d128_hopper", blocks, 384, hopper_shared(p.D),
      maps);
}

#endif

}  // namespace rlhf::cuda
