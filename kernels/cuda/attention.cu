// Causal attention over packed sequences, grouped-query, without the N x N matrix (Dao,
// FlashAttention-2).
//
//   s_ij = (sum over D of q_i k_j) scale,  o_i = sum over j of softmax_j(s_ij) v_j,  lse_i = log sum_j exp(s_ij)
//   q [N,H,D]  k, v [N,G,D]  o [N,H,D]  lse [N,H];  query heads g H/G .. (g+1) H/G - 1 read key/value head g;
//   j: the tokens of the sequence up to i, and those of the sequences that it continues
//
// Plan: `attention_plan` (one block) checks offsets and prefixes and lists the tiles of queries,
// longest first. Then one block per (tile of queries, head) walks the tiles of keys that the tile
// sees. A warp owns 16 M queries. Scores, softmax and p stay in its registers; q, k and v lie in
// shared memory. While q k^T runs, v is on its way; during softmax and p v, the next k. So a tile
// has two barriers. Keys are walked from the diagonal back: only the first tiles are masked.
//
// Budget, bf16, 128 threads, at most 255 registers and so two blocks a processor:
//   D 64   128 queries x 64 keys   32 KiB of shared memory
//   D 128  128 queries x 32 keys   48 KiB
//   D 256   64 queries x 64 keys   96 KiB
// Expected, not yet measured: the tensor cores bind an A100, shared memory too on an H100, where
// bf16 heads of 64 and 128 have attention_hopper.h. History: kernels/notes/attention.md.
#include "kernels/cuda/attention_hopper.h"

namespace rlhf::cuda {

constexpr int WARPS = 4;

// Shapes of the tiles: X(policy, type, D, M, keys)
#define ATTENTION_VARIANTS(X) \
  X(Bf16, bf16, 32, 2, 64)    \
  X(Bf16, bf16, 64, 2, 64)    \
  X(Bf16, bf16, 128, 2, 32)   \
  X(Bf16, bf16, 256, 1, 64)   \
  X(F32, f32, 32, 2, 32)      \
  X(F32, f32, 64, 2, 32)      \
  X(F32, f32, 128, 1, 32)     \
  X(F32, f32, 256, 1, 16)

#if RLHF_DEVICE_CODE

template <class Mma, int D, int M, int KEYS>
DEVICE void attend(const AttentionParams<typename Mma::Element>& p) {
  using T = typename Mma::Element;
  constexpr int THREADS = 32 * WARPS, ROWS = 16 * M, QUERIES = ROWS * WARPS, N = KEYS / 8, W = D / 8;
  if (p.queries.header[1]) {
    poison(p.o, p.N * p.H * p.D, grid_x(), THREADS);
    return poison(p.lse, p.N * p.H, grid_x(), THREADS);
  }
  const Work work(p.queries, block_x(), p.H);
  if (work.sequence < 0) return;

  SharedMemory memory;
  const Tile<T, D> q{memory.take<T>(QUERIES * D)}, k{memory.take<T>(KEYS * D)}, v{memory.take<T>(KEYS * D)};
  const Sequences sequences{p.offsets, p.prefix};
  const int32_t length = sequences.length(work.sequence), end = min(work.start + QUERIES, length);
  const int64_t token = int64_t(p.offsets[work.sequence]) + work.start;
  const int32_t head = work.head * p.D, kv_head = work.head / p.heads * p.D;
  const int own = work.start + warp() * ROWS;  // first query of the warp

  KeyTiles keys(sequences, KEYS, work.sequence, end);
  q.template fetch<QUERIES, THREADS>(p.q + (token * p.q_stride + head), p.q_stride, end - work.start, p.D, p.aligned);
  k.template fetch<KEYS, THREADS>(p.k + (keys.row() * p.k_stride + kv_head), p.k_stride, keys.count(), p.D, p.aligned);
  copy_async_commit();

  float o[M][W][4], top[M][2], sum[M][2];
  clear(o);
  UNROLL for (int m = 0; m < M; m++) UNROLL for (int r = 0; r < 2; r++) top[m][r] = -INFINITE, sum[m][r] = 0;
  // a scale that does not grow with the score goes into the scores, so that the highest score has the highest exponent
  const float scale = Exponential<Mma>::factor(p.scale), factor = scale > 0 ? scale : 1;

  while (keys) {
    const int n = keys.count(),
              last = keys.sequence == work.sequence ? own - keys.start : n;  // key that the warp's first query sees
    const bool seen = last > -ROWS;  // any key, by any of the warp's queries
    float s[M][N][4];
    copy_async_wait<0>();
    sync_threads();
    v.template fetch<KEYS, THREADS>(
        p.v + (keys.row() * p.v_stride + kv_head), p.v_stride, keys.count(), p.D, p.aligned);
    copy_async_commit();
    if (seen) {
      clear(s);
      Mma::dot(s, q, warp() * ROWS, k, 0);
    }
    copy_async_wait<0>();
    sync_threads();
    keys.next();
    if (keys)
      k.template fetch<KEYS, THREADS>(
          p.k + (keys.row() * p.k_stride + kv_head), p.k_stride, keys.count(), p.D, p.aligned);
    copy_async_commit();
    if (!seen) continue;
    mask(s, scale, last, n);
    softmax<Mma>(s, top, sum, factor, [&](int m, int r, float fall) { lower(o, m, r, fall); });
    Mma::product(o, s, v, 0);
  }

  end_rows<Mma>(p, work, head, own, end, o, top, sum);
}

// Sum of x over the threads before this one, in `total` that over all.
DEVICE int32_t scan(int32_t x, Shared<int32_t> sums, int32_t& total) {
  int32_t before = x;
  for (int n = 1; n < 32; n *= 2) {
    const int32_t y = shuffle_up(before, n);
    if (lane() >= n) before += y;
  }
  if (lane() == 31) sums[warp()] = before;
  sync_threads();
  int32_t all = 0, mine = 0;
  for (int w = 0; w < PLANNERS / 32; w++) {
    if (w == warp()) mine = all;
    all += sums[w];
  }
  sync_threads();
  total = all;
  return mine + before - x;
}

// Block l makes list l: its tiles, sorted by work in 32 classes, the most first. What decides the order of the sums
// (which tiles a tile meets, and in which order) is not decided here, so the order of the list changes no bit.
KERNEL(attention_plan, PlanParams, PLANNERS) {
  const TileList& list = p.list[block_x()];
  const bool of_keys = block_x() == 1;
  const Sequences sequences{p.offsets, p.prefix};
  SharedMemory memory;
  const Shared<int32_t> sums = memory.take<int32_t>(PLANNERS / 32), counts = memory.take<int32_t>(CLASSES * PLANNERS);
  const int t = thread();

  int32_t bad = 0;
  for (int32_t b = t; b <= p.B; b += PLANNERS) {
    if (b == 0 ? p.offsets[0] != 0 : p.offsets[b] < p.offsets[b - 1]) bad = 1;
    if (b == p.B && p.offsets[b] != p.N) bad = 1;
    if (b < p.B && (sequences.before(b) < -1 || sequences.before(b) >= b)) bad = 1;
  }
  int32_t all_bad;
  scan(bad, sums, all_bad);
  if (t == 0) list.header[1] = all_bad > 0;
  if (all_bad) {
    if (t == 0) list.header[0] = 0, latch(p.error, BAD_OFFSETS);
    return;
  }

  for (int32_t b = t; b < p.B; b += PLANNERS) {
    list.kin[b] = 0;
    if (of_keys) list.last[b] = b;
  }
  sync_threads();
  for (int32_t b = t; b < p.B; b += PLANNERS)
    for (int32_t a = sequences.before(b); a >= 0; a = sequences.before(a)) {
      if (of_keys) atomic_add(list.kin, a, sequences.length(b)), atomic_max(list.last, a, b);
      else list.kin[b] += sequences.length(a);
    }
  sync_threads();

  // each thread has a run of sequences, then a run of tiles
  const int32_t run = (p.B + PLANNERS - 1) / PLANNERS, begin = min(t * run, p.B), end = min(begin + run, p.B);
  int32_t tiles = 0, number, unused, most = 0;
  for (int32_t b = begin; b < end; b++) tiles += (sequences.length(b) + list.size - 1) / list.size;
  int32_t at = scan(tiles, sums, number);
  for (int32_t b = begin; b < end; b++)
    list.first_tile[b] = at, at += (sequences.length(b) + list.size - 1) / list.size;
  if (t == 0) list.first_tile[p.B] = number, list.header[0] = number;
  for (int32_t b = t; b < p.B; b += PLANNERS) most = max(most, sequences.length(b) + list.kin[b]);
  for (int n = 1; n < 32; n *= 2) most = max(most, shuffle_xor(most, n));
  if (lane() == 0) sums[warp()] = most;
  sync_threads();
  for (int w = 0; w < PLANNERS / 32; w++) most = max(most, sums[w]);

  const int32_t stretch = (number + PLANNERS - 1) / PLANNERS, from = min(t * stretch, number),
                to = min(from + stretch, number);
  const auto each_tile = [&](auto&& f) {  // f(class, sequence, start)
    int32_t low = 0, high = p.B;  // first_tile[low] <= from < first_tile[high]
    while (high - low > 1) (list.first_tile[(low + high) / 2] <= from ? low : high) = (low + high) / 2;
    for (int32_t tile = from, b = low; tile < to; tile++) {
      while (tile >= list.first_tile[b + 1]) b++;
      const int32_t start = (tile - list.first_tile[b]) * list.size, length = sequences.length(b);
      const int64_t sees = int64_t(of_keys ? length - start : min(start + list.size, length)) + list.kin[b];
      f(CLASSES - 1 - int(sees * (CLASSES - 1) / most), b, start);
    }
  };
  for (int c = 0; c < CLASSES; c++) counts[c * PLANNERS + t] = 0;
  each_tile([&](int c, int32_t, int32_t) { counts[c * PLANNERS + t] += 1; });
  sync_threads();
  int32_t in_run = 0;
  for (int i = 0; i < CLASSES; i++) in_run += counts[t * CLASSES + i];
  int32_t place = scan(in_run, sums, unused);
  for (int i = 0; i < CLASSES; i++) {
    const int32_t n = counts[t * CLASSES + i];
    counts[t * CLASSES + i] = place, place += n;
  }
  sync_threads();
  each_tile([&](int c, int32_t b, int32_t start) {
    const int32_t i = counts[c * PLANNERS + t];
    counts[c * PLANNERS + t] = i + 1;
    list.tiles[2 * i] = b, list.tiles[2 * i + 1] = start;
  });
}

#define VARIANT(Mma, type, D, M, KEYS) \
  KERNEL(attention_##type##_d##D, AttentionParams<Mma::Element>, 32 * WARPS, 2) { attend<Mma, D, M, KEYS>(p); }
ATTENTION_VARIANTS(VARIANT)
#undef VARIANT
#if RLHF_HOPPER_CODE
KERNEL(attention_bf16_d64_hopper, AttentionMaps, 384, 1) { attend_hopper<64>(p); }
KERNEL(attention_bf16_d128_hopper, AttentionMaps, 384, 1) { attend_hopper<128>(p); }
#endif
#endif

#if RLHF_HOST_CODE
namespace {

struct Variant {
  const char* kernel;
  int bytes, D, queries;
  int64_t shared;
};
using f32 = float;
#define VARIANT(Mma, type, D, M, KEYS)                               \
  {"attention_" #type "_d" #D, int(sizeof(type)), D, 16 * M * WARPS, \
      int64_t(16 * M * WARPS + 2 * KEYS) * D * int64_t(sizeof(type))},
const Variant variants[] = {ATTENTION_VARIANTS(VARIANT)};
#undef VARIANT

template <class T>
void attention_of(Context& ctx, const attention_args& a) {
  const int64_t N = a.q.dim[0], H = a.q.dim[1], D = a.q.dim[2], G = a.k.dim[1], B = a.cu_seqlens.dim[0] - 1;
  const Variant& variant = variant_of(variants, sizeof(T), D);
  Workspace places{nullptr};
  tile_list(places, N, B, variant.queries);
  char* memory = static_cast<char*>(ctx.scratch(places.used));
  if (!memory || !accepts(ctx, N, B, H, G, D)) return;
  places = {memory};
  const TileList queries = tile_list(places, N, B, variant.queries);
  const PlanParams plan{
      global(a.cu_seqlens), global(a.prefix), int32_t(N), int32_t(B), {queries, queries}, latch_of(ctx)};
  launch(ctx, "attention_plan", {1}, PLANNERS, PLAN_SHARED, plan);
  const AttentionParams<T> p{global_as<const T>(a.q), global_as<const T>(a.k), global_as<const T>(a.v),
      global(a.cu_seqlens), global(a.prefix), global_as<T>(a.o), global(a.lse), queries, N, a.q.stride, a.k.stride,
      a.v.stride, int32_t(H), int32_t(G ? H / G : 1), int32_t(D), float(a.scale),
      aligned(a.q, D, sizeof(T)) && aligned(a.k, D, sizeof(T)) && aligned(a.v, D, sizeof(T)) &&
          aligned(a.o, D, sizeof(T))};
  const Grid blocks{most_tiles(N, B, variant.queries) * H};
  if constexpr (sizeof(T) == 2)
    if (takes_hopper(ctx, p)) return launch_hopper(ctx, blocks, a, p);
  launch(ctx, variant.kernel, blocks, 32 * WARPS, variant.shared, p);
}

}  // namespace

void attention(Context& ctx, const attention_args& a) {
  a.q.dtype == RLHF_BF16 ? attention_of<bf16>(ctx, a) : attention_of<float>(ctx, a);
}
#endif

}  // namespace rlhf::cuda
