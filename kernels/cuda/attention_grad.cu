// The backward of causal attention, from lse: nothing of the N x N matrix is kept (Dao,
// FlashAttention-2).
//
//   p_ij = exp(s_ij - lse_i),  delta_i = sum over D of do_i o_i,  ds_ij = p_ij (do_i v_j - delta_i)
//   dq_i = scale sum over j of ds_ij k_j,  dk_j = scale sum over i of ds_ij q_i,  dv_j = sum over i of p_ij do_i
//   d_o, q, o, dq [N,H,D]  k, v, dk, dv [N,G,D]  lse [N,H]
//
// Plan: delta first. Then dk and dv: one block per (tile of keys, key/value head) walks the queries
// of every head of the group and of every sequence that sees the keys. Then dq: one block per (tile
// of queries, head) walks the keys. Blocks share nothing, so every sum has one order and there are
// no atomics. The price: scores and d_o v are computed twice, 7 products where one pass with
// atomics has 5. A warp owns 16 M rows of the result and of the scores (transposed for keys), so p
// and ds go from registers into the second product. Walked tiles are double buffered: one barrier a
// tile.
//
// Budget, bf16, 128 threads, at most 255 registers:
//          dk, dv                             dq
//   D 64   128 keys x 16 queries    41 KiB    128 queries x 32 keys   48 KiB
//   D 128   64 keys x 32 queries    65 KiB    128 queries x 16 keys   80 KiB
//   D 256   64 keys x 32 queries   129 KiB     64 queries x 32 keys  128 KiB    dk, dv in two halves of D
// Weak: with few key/value heads and few tokens (G N / 64 below the processors), dk and dv leave
// processors idle.
// Expected, not yet measured: tensor cores bind at D 64, shared memory at D 128. History:
// kernels/notes/attention.md.
#include <initializer_list>

#include "kernels/cuda/attention_grad_hopper.h"

namespace rlhf::cuda {

// Shapes of the tiles: X(policy, type, D, warps; for dk and dv: M, queries, parts of D; for dq: M, keys)
#define ATTENTION_GRAD_VARIANTS(X)       \
  X(Bf16, bf16, 32, 4, 2, 32, 1, 2, 64)  \
  X(Bf16, bf16, 64, 4, 2, 16, 1, 2, 32)  \
  X(Bf16, bf16, 128, 4, 1, 32, 1, 2, 16) \
  X(Bf16, bf16, 256, 4, 1, 32, 2, 1, 32) \
  X(F32, f32, 32, 4, 2, 16, 1, 2, 32)    \
  X(F32, f32, 64, 4, 1, 16, 1, 2, 32)    \
  X(F32, f32, 128, 4, 1, 16, 2, 1, 32)   \
  X(F32, f32, 256, 2, 1, 16, 4, 1, 8)

#if RLHF_DEVICE_CODE

template <class Mma, int WARPS>
DEVICE void query_rows(const AttentionGradParams<typename Mma::Element>& p) {
  if (p.queries.header[1]) return;
  const Work work(p.queries, block_x(), p.H);
  if (work.sequence < 0) return;
  const Sequences sequences{p.offsets, p.prefix};
  const int64_t token = p.offsets[work.sequence], at = work.head * p.row_stride + row_of(sequences, work.sequence);
  const int32_t end = min(work.start + p.queries.size, sequences.length(work.sequence));
  for (int32_t i = work.start + warp(); i < end; i += WARPS) {
    const auto d_o = p.d_o + ((token + i) * p.d_o_stride + int64_t(work.head) * p.D),
               o = p.o + ((token + i) * p.H + work.head) * p.D;
    float delta = 0;
    for (int d = lane(); d < p.D; d += 32) delta = fma(to_float(d_o[d]), to_float(o[d]), delta);
    for (int n = 16; n > 0; n /= 2) delta += shuffle_xor(delta, n);
    if (lane() == 0)
      store_as<float2>(
          p.rows, 2 * (at + i), float2{Exponential<Mma>::exponent(p.lse[(token + i) * p.H + work.head]), delta});
  }
}

// Exponent and delta of n queries.
template <int QUERIES, int THREADS>
DEVICE void fetch_rows(Shared<float> to, Global<const float> from, int n) {
  for (int i = thread(); i < QUERIES / 2; i += THREADS) copy_async16(to + 4 * i, from + 4 * i, 2 * i < n);
}

template <class Mma, int D, int WARPS, int M, int QUERIES, int PARTS>
DEVICE void key_gradients(const AttentionGradParams<typename Mma::Element>& p) {
  using T = typename Mma::Element;
  constexpr int THREADS = 32 * WARPS, ROWS = 16 * M, KEYS = ROWS * WARPS, N = QUERIES / 8, W = D / 8 / PARTS;
  if (p.keys.header[1]) {
    poison(p.dk, p.N * p.G * p.D, grid_x(), THREADS);
    return poison(p.dv, p.N * p.G * p.D, grid_x(), THREADS);
  }
  const Work work(p.keys, block_x(), p.G);
  if (work.sequence < 0) return;

  SharedMemory memory;
  const Tile<T, D> k{memory.take<T>(KEYS * D)}, v{memory.take<T>(KEYS * D)};
  const Tile<T, D> all_q{memory.take<T>(2 * QUERIES * D)}, all_d_o{memory.take<T>(2 * QUERIES * D)};
  const Shared<float> all_rows = memory.take<float>(2 * QUERIES * 2);

  const Sequences sequences{p.offsets, p.prefix};
  const int32_t length = sequences.length(work.sequence), kv_head = work.head * p.D;
  const int own = work.start + warp() * ROWS;  // first key of the warp
  const int first_column = PARTS == 1 ? 0 : int(block_y()) * (D / PARTS);
  const float factor = Exponential<Mma>::factor(p.scale);

  QueryTiles queries(sequences, p.keys, QUERIES, p.heads, work);
  const auto fetch = [&](int stage) {
    const Tile<T, D> q{all_q.data + stage * QUERIES * D}, d_o{all_d_o.data + stage * QUERIES * D};
    const int64_t row = queries.row();
    const int32_t column = queries.head * p.D, n = queries.count();
    q.template fetch<QUERIES, THREADS>(p.q + (row * p.q_stride + column), p.q_stride, n, p.D, p.aligned);
    d_o.template fetch<QUERIES, THREADS>(p.d_o + (row * p.d_o_stride + column), p.d_o_stride, n, p.D, p.aligned);
    fetch_rows<QUERIES, THREADS>(all_rows + stage * QUERIES * 2,
        p.rows + 2 * (queries.head * p.row_stride + row_of(sequences, queries.sequence) + queries.start), n);
  };
  const int64_t token = int64_t(p.offsets[work.sequence]) + work.start;
  k.template fetch<KEYS, THREADS>(
      p.k + (token * p.k_stride + kv_head), p.k_stride, length - work.start, p.D, p.aligned);
  v.template fetch<KEYS, THREADS>(
      p.v + (token * p.v_stride + kv_head), p.v_stride, length - work.start, p.D, p.aligned);
  fetch(0);
  copy_async_commit();

  float dk[M][W][4], dv[M][W][4];
  clear(dk), clear(dv);
  for (int stage = 0; queries; stage ^= 1) {
    const int first =
        queries.sequence == work.sequence ? own - queries.start : -ROWS;  // query that sees the warp's first key
    const int n = queries.count();
    queries.next();
    copy_async_wait<0>();
    sync_threads();
    if (queries) fetch(stage ^ 1);
    copy_async_commit();
    if (own >= length || first >= QUERIES) continue;  // nothing that the warp's keys could be seen by

    const Tile<T, D> q{all_q.data + stage * QUERIES * D}, d_o{all_d_o.data + stage * QUERIES * D};
    const Shared<float> rows = all_rows + stage * QUERIES * 2;
    float s[M][N][4], ds[M][N][4];
    clear(s), clear(ds);
    Mma::dot(s, k, warp() * ROWS, q, 0);
    Mma::dot(ds, v, warp() * ROWS, d_o, 0);
    const bool edge = n < QUERIES || first + ROWS > 1;
    each_pair<M, N>([&](int m, int j, int r, int row, int column) {
      const float4 x = load_as<float4>(rows, 2 * column);  // exponent and delta of two queries
      UNROLL for (int e = 0; e < 2; e++) {
        float &y = s[m][j][2 * r + e], &dy = ds[m][j][2 * r + e];
        y = Exponential<Mma>::raise(fma(y, factor, -(e ? x.z : x.x)));
        dy = y * (dy - (e ? x.w : x.y));
        if (edge && (column + e >= n || column + e < first + row)) y = dy = 0;
      }
    });
    Mma::product(dv, s, d_o, first_column);
    Mma::product(dk, ds, q, first_column);
  }
  const int64_t stride = int64_t(p.G) * p.D,
                out = (p.offsets[work.sequence] + int64_t(own)) * stride + kv_head + first_column;
  store(dk, p.dk + out, stride, length - own, p.D - first_column, p.aligned, [&](int, int) { return p.scale; });
  store(dv, p.dv + out, stride, length - own, p.D - first_column, p.aligned, [&](int, int) { return 1.0f; });
}

template <class Mma, int D, int WARPS, int M, int KEYS>
DEVICE void query_gradients(const AttentionGradParams<typename Mma::Element>& p) {
  using T = typename Mma::Element;
  constexpr int THREADS = 32 * WARPS, ROWS = 16 * M, QUERIES = ROWS * WARPS, N = KEYS / 8, W = D / 8;
  if (p.queries.header[1]) return poison(p.dq, p.N * p.H * p.D, grid_x(), THREADS);
  const Work work(p.queries, block_x(), p.H);
  if (work.sequence < 0) return;

  SharedMemory memory;
  const Tile<T, D> q{memory.take<T>(QUERIES * D)}, d_o{memory.take<T>(QUERIES * D)};
  const Tile<T, D> all_k{memory.take<T>(2 * KEYS * D)}, all_v{memory.take<T>(2 * KEYS * D)};
  const Shared<float> rows = memory.take<float>(QUERIES * 2);

  const Sequences sequences{p.offsets, p.prefix};
  const int32_t end = min(work.start + QUERIES, sequences.length(work.sequence)), count = end - work.start;
  const int64_t token = int64_t(p.offsets[work.sequence]) + work.start;
  const int32_t head = work.head * p.D;
  const int32_t kv_head = work.head / p.heads * p.D;
  const int own = work.start + warp() * ROWS;  // first query of the warp
  const float factor = Exponential<Mma>::factor(p.scale);

  KeyTiles keys(sequences, KEYS, work.sequence, end);
  const auto fetch = [&](int stage) {
    const Tile<T, D> k{all_k.data + stage * KEYS * D}, v{all_v.data + stage * KEYS * D};
    k.template fetch<KEYS, THREADS>(
        p.k + (keys.row() * p.k_stride + kv_head), p.k_stride, keys.count(), p.D, p.aligned);
    v.template fetch<KEYS, THREADS>(
        p.v + (keys.row() * p.v_stride + kv_head), p.v_stride, keys.count(), p.D, p.aligned);
  };
  q.template fetch<QUERIES, THREADS>(p.q + (token * p.q_stride + head), p.q_stride, count, p.D, p.aligned);
  d_o.template fetch<QUERIES, THREADS>(p.d_o + (token * p.d_o_stride + head), p.d_o_stride, count, p.D, p.aligned);
  fetch_rows<QUERIES, THREADS>(
      rows, p.rows + 2 * (work.head * p.row_stride + row_of(sequences, work.sequence) + work.start), count);
  fetch(0);
  copy_async_commit();

  float dq[M][W][4];
  clear(dq);
  for (int stage = 0; keys; stage ^= 1) {
    const int n = keys.count(),
              last = keys.sequence == work.sequence ? own - keys.start : n;  // key that the warp's first query sees
    keys.next();
    copy_async_wait<0>();
    sync_threads();
    if (keys) fetch(stage ^ 1);
    copy_async_commit();
    if (own >= end || last <= -ROWS) continue;  // nothing that the warp's queries see

    const Tile<T, D> k{all_k.data + stage * KEYS * D}, v{all_v.data + stage * KEYS * D};
    float s[M][N][4], ds[M][N][4];
    clear(s), clear(ds);
    Mma::dot(s, q, warp() * ROWS, k, 0);
    Mma::dot(ds, d_o, warp() * ROWS, v, 0);
    const bool edge = last < KEYS - 1 || n < KEYS;
    each_pair<M, N>([&](int m, int j, int r, int row, int column) {
      const float2 x = load_as<float2>(rows, 2 * (warp() * ROWS + row));  // exponent and delta
      UNROLL for (int e = 0; e < 2; e++) {
        float& dy = ds[m][j][2 * r + e];
        dy = Exponential<Mma>::raise(fma(s[m][j][2 * r + e], factor, -x.x)) * (dy - x.y);
        if (edge && (column + e > last + row || column + e >= n)) dy = 0;
      }
    });
    Mma::product(dq, ds, k, 0);
  }
  const int64_t stride = int64_t(p.H) * p.D;
  store(dq, p.dq + ((p.offsets[work.sequence] + int64_t(own)) * stride + head), stride, end - own, p.D, p.aligned,
      [&](int, int) { return p.scale; });
}

KERNEL(attention_grad_rows_bf16, AttentionGradParams<bf16>, 128) { query_rows<Bf16, 4>(p); }
KERNEL(attention_grad_rows_f32, AttentionGradParams<float>, 128) { query_rows<F32, 4>(p); }

#define VARIANT(Mma, type, D, WARPS, M, QUERIES, PARTS, M_Q, KEYS)                                 \
  KERNEL(attention_grad_keys_##type##_d##D, AttentionGradParams<Mma::Element>, 32 * WARPS, 2) {    \
    key_gradients<Mma, D, WARPS, M, QUERIES, PARTS>(p);                                            \
  }                                                                                                \
  KERNEL(attention_grad_queries_##type##_d##D, AttentionGradParams<Mma::Element>, 32 * WARPS, 2) { \
    query_gradients<Mma, D, WARPS, M_Q, KEYS>(p);                                                  \
  }
ATTENTION_GRAD_VARIANTS(VARIANT)
#undef VARIANT
#if RLHF_HOPPER_CODE
KERNEL(attention_grad_keys_bf16_d64_hopper, AttentionGradMaps, 384, 1) { gradients_hopper<true, 64>(p); }
KERNEL(attention_grad_keys_bf16_d128_hopper, AttentionGradMaps, 384, 1) { gradients_hopper<true, 128>(p); }
KERNEL(attention_grad_queries_bf16_d64_hopper, AttentionGradMaps, 384, 1) { gradients_hopper<false, 64>(p); }
KERNEL(attention_grad_queries_bf16_d128_hopper, AttentionGradMaps, 384, 1) { gradients_hopper<false, 128>(p); }
#endif
#endif

#if RLHF_HOST_CODE
namespace {

struct Variant {
  const char *of_keys, *of_queries;
  int bytes, D, threads, keys, parts, queries;  // keys, queries: of a block of dk and dv, of dq
  int64_t keys_shared, queries_shared;
};
using f32 = float;
#define VARIANT(Mma, type, D, WARPS, M, QUERIES, PARTS, M_Q, KEYS)                                                  \
  {"attention_grad_keys_" #type "_d" #D, "attention_grad_queries_" #type "_d" #D, int(sizeof(type)), D, 32 * WARPS, \
      16 * M * WARPS, PARTS, 16 * M_Q * WARPS,                                                                      \
      (int64_t(32 * M * WARPS) + 4 * QUERIES) * D * int64_t(sizeof(type)) + 16 * QUERIES,                           \
      (int64_t(32 * M_Q * WARPS) + 4 * KEYS) * D * int64_t(sizeof(type)) + 8 * 16 * M_Q * WARPS},
const Variant variants[] = {ATTENTION_GRAD_VARIANTS(VARIANT)};
#undef VARIANT

template <class T>
void attention_grad_of(Context& ctx, const attention_grad_args& a) {
  const int64_t N = a.q.dim[0], H = a.q.dim[1], D = a.q.dim[2], G = a.k.dim[1], B = a.cu_seqlens.dim[0] - 1;
  const Variant& variant = variant_of(variants, sizeof(T), D);
  const int64_t row_stride = (N + B + 3) / 2 * 2;
  TileList queries, keys;
  Global<float> rows;
  const auto plan_memory = [&](char* memory) {
    Workspace places{memory};
    queries = tile_list(places, N, B, variant.queries), keys = tile_list(places, N, B, variant.keys);
    rows = places.take<float>(2 * H * row_stride + 2 * HOPPER_OWN);
    return places.used;
  };
  char* memory = static_cast<char*>(ctx.scratch(plan_memory(nullptr)));
  if (!memory || !accepts(ctx, N, B, H, G, D)) return;
  plan_memory(memory);
  bool whole = true;
  for (const View<const float>& x : {a.d_o, a.q, a.k, a.v, a.o}) whole = whole && aligned(x, D, sizeof(T));
  for (const View<float>& x : {a.dq, a.dk, a.dv}) whole = whole && aligned(x, D, sizeof(T));
  AttentionGradParams<T> p{global_as<const T>(a.d_o), global_as<const T>(a.q), global_as<const T>(a.k),
      global_as<const T>(a.v), global_as<const T>(a.o), global(a.lse), global(a.cu_seqlens), global(a.prefix),
      global_as<T>(a.dq), global_as<T>(a.dk), global_as<T>(a.dv), rows, queries, keys, N, row_stride, a.d_o.stride,
      a.q.stride, a.k.stride, a.v.stride, int32_t(H), int32_t(G), int32_t(G ? H / G : 1), int32_t(D), float(a.scale),
      whole};
  bool hopper = false;
  if constexpr (sizeof(T) == 2) hopper = takes_hopper(ctx, p);
  if (hopper) p.keys.size = p.queries.size = HOPPER_OWN;  // no less than the variant's: the lists have room
  const PlanParams plan{
      global(a.cu_seqlens), global(a.prefix), int32_t(N), int32_t(B), {p.queries, p.keys}, latch_of(ctx)};
  launch(ctx, "attention_plan", {2}, PLANNERS, PLAN_SHARED, plan);
  const int64_t query_blocks = most_tiles(N, B, p.queries.size) * H, key_blocks = most_tiles(N, B, p.keys.size) * G;
  launch(ctx, sizeof(T) == 2 ? "attention_grad_rows_bf16" : "attention_grad_rows_f32", {query_blocks}, 128, 0, p);
  if constexpr (sizeof(T) == 2)
    if (hopper) return launch_hopper(ctx, a, p, key_blocks, query_blocks);
  launch(ctx, variant.of_keys, {key_blocks, variant.parts}, variant.threads, variant.keys_shared, p);
  launch(ctx, variant.of_queries, {query_blocks}, variant.threads, variant.queries_shared, p);
}

}  // namespace

void attention_grad(Context& ctx, const attention_grad_args& a) {
  a.q.dtype == RLHF_BF16 ? attention_grad_of<bf16>(ctx, a) : attention_grad_of<float>(ctx, a);
}
#endif

}  // namespace rlhf::cuda
