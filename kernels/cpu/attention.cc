// Causal attention over packed sequences, grouped-query, without the N x N matrix (Dao et al., FlashAttention; the
// online softmax is Milakov and Gimelshein's).
//
//   s_ij = (sum over D of q_i k_j) scale,  o_i = sum over j <= i of softmax_j(s_ij) v_j,  lse_i = log sum_j exp(s_ij)
//   q [N,H,D]  k, v [N,G,D]  o [N,H,D]  lse [N,H];  query heads g H/G .. (g+1) H/G - 1 read key/value head g
//
// Plan: work is (sequences that share a prefix, key/value head, sequence, block of BLOCK query rows), where a row is
// one query of one head of the group, queries ascending. A thread packs the sequence's keys and values once per head,
// tile by tile as its blocks reach them, keeps what the next sequence shares with it through `prefix`, and asks for the
// next head's rows meanwhile (T 128: 10 % faster). Within a block: for each tile of 64 keys, for each register group of
// 6 rows: q k^T, softmax, p v. Nothing above the diagonal is computed but the corner of a group.
//
// Law: per element q.k is one chain over D, then times scale; per tile m' = max(m, tile max), a = exp(m - m'),
// l = l a + (law 2 over the tile's keys), o = o a continued by one chain over the tile's keys; at the end o / l and
// lse = m + log(l). A later key of the sequence may enter with p = 0, which changes no bit.
//
// Measured on one core of a Xeon (Sapphire Rapids), D 64, T 1024, share of the FMA peak: AVX-512 65 %, AVX2 69 %; T 256
// 50 %. The register tiles run at 97 %; the softmax takes a fifth, the divisions by l 2 % (10 % at T 128).
// Two cores of an AMD EPYC (Zen 4, AVX-512), D 64: T 128 44 %, T 512 65 %, T 1024 71 %, T 2048 76 %; D 128 79 %. At T
// 128 the register tiles take 55 % of the time, rows in and out 26 %, the softmax 10 %, packing keys 9 %. Tried and
// lost: softmax per register group (latency of the row maxima shows), blocks of 24 and 72 rows (no difference). Zen 3,
// AVX2, 2 cores, two threads, D 64, alone: T 128 46 %, T 512 60 to 65 %, T 1024 63 to 69 %, T 2048 69 to 73 %, T 4096
// 72 %; D 128 76 %; beside strangers T 128 34 %, T 512 51 %, T 1024 55 %, T 2048 58 %; 1.2 to 2.2 times torch. One
// thread at T 512 reaches 63 % when the core is its own and 49 when a stranger works on the core's other thread
// (gemm.h), every part a fifth slower. Of its time the register tiles take 66 % (T 1024: 72), at 97 % of the peak in
// the first state and 75 to 85 in the second; the softmax 15, rows in and out 11, packing
// 4. With all keys and values in one tile's place, sums wrong, it would win 1 to 4 %: it is not the caches. Eight steps
// a turn won 1 to 7 %. Lost there: blocks of 96, 144 and 192 rows (nothing to 2 %); the tile's loop in assembly (2 %),
// or with 3 rows by 32 lanes and a sixth fewer instructions (3 % at the second state, 3 to 5 lost at the first); the
// rows of the next tile asked for in place of the next head's, and o's before they are written (3 % at T 512, nothing
// elsewhere); no second scheduling (nothing) or that of znver3 (4 % lost). Zen 5, AVX-512, 2 cores, two threads, D 64:
// T 128 39 %, T 512 62 to 68 %, T 1024 67 to 70 %, T 2048 69 to 74 %, T 4096 76 %; D 128 81 %; 2.4 to 4.6 times torch.
// Intel Xeon (Sapphire Rapids or later, L2 of 2 MB), AVX-512, 2 cores, two threads: T 128 33 %, T 512 52, T 1024 56, T
// 2048 59, T 4096 62; D 128 66; 1.25 to 2.3 times torch. Register tiles take 73 to 75 % of the time, at 79 % of the
// peak, the softmax 16, rows in and out 4 (T 1024: 8). Blocks of 24 rows lost 1 to 3 %, of 96, as they are with AVX-512
// now, won as much (Zen 5: 1, Zen 4: nothing); not asking for the next head's rows: nothing.
#include "kernels/cpu/chains.h"

namespace rlhf::RLHF_ISA {
namespace {

constexpr int64_t BLOCK = FORWARD_ROWS;

// Packed keys and values of one chain under one head, filled up to `filled` tiles.
struct Packed {
  float* keys;  // [tiles][D][64]
  float* values;  // [tiles][64][width(D)]
  int64_t g = -1, b = -1, filled = 0;

  RLHF_INLINE void go(const Chains& chains, int64_t g_, int64_t b_) {
    if (g != g_) filled = 0;
    else if (b != b_) filled = least(filled, chains.common(b, b_) / TILE);
    g = g_, b = b_;
  }
  RLHF_INLINE void fill(const Chains& chains, int64_t tiles, View<const float> k, View<const float> v, int64_t D) {
    for (; filled < tiles; filled++)
      chains.runs(b, filled, [&](int64_t at, int64_t row, int64_t n) {
        pack_keys(k.row(row) + g * D, k.stride, n, D, keys + filled * TILE * D, at);
        pack_rows(v.row(row) + g * D, v.stride, n, D, values + (filled * TILE + at) * width(D));
        for (int64_t i = row; i < row + n && g + 1 < v.dim[1]; i++)
          fetch(k.row(i) + (g + 1) * D, D), fetch(v.row(i) + (g + 1) * D, D);
      });
  }
};

}  // namespace

void attention(Context& ctx, const attention_args& a) {
  const int64_t H = a.q.dim[1], D = a.q.dim[2], G = a.k.dim[1], B = a.cu_seqlens.dim[0] - 1;
  int64_t longest = 0;  // chain
  for (int64_t b = 0; b < B; b++) {
    int64_t end = 0;
    for (int64_t at = b; at >= 0; at = earlier(a.prefix, at)) end += a.cu_seqlens[at + 1] - a.cu_seqlens[at];
    longest = most(longest, end);
  }
  const int64_t W = width(D), tiles = (longest + TILE - 1) / TILE;

  Places places{nullptr};
  const auto lay = [&](Places& p, Packed& packed, float*& q, Rows& x) {
    packed.keys = p.take<float>(tiles * TILE * D), packed.values = p.take<float>(tiles * TILE * W);
    x.q = q = p.take<float>(BLOCK * D), x.o = p.take<float>(BLOCK * W), x.s = p.take<float>(BLOCK * TILE);
    x.m = p.take<float>(BLOCK), x.l = p.take<float>(BLOCK), x.fall = p.take<float>(BLOCK);
  };
  Packed none;
  Rows nothing;
  float* no_q;
  lay(places, none, no_q, nothing);
  const int64_t each = places.bytes, bases = (B * 8 + 63) / 64 * 64;
  char* memory = static_cast<char*>(ctx.scratch(bases + ctx.threads * each));
  if (!memory) return;
  if (G == 0 ? H != 0 : H % G != 0) return ctx.fail("the heads of q must be a multiple of those of k and v");
  Chains chains;
  if (!chain(ctx, a.cu_seqlens, a.prefix, reinterpret_cast<int64_t*>(memory), chains)) return;
  if (G == 0) return;
  const int64_t heads = H / G;
  const float scale = float(a.scale);

  // Cost of a block: its rows times the keys that its last row sees.
  const auto cost = [&](int64_t b, int64_t row, int64_t rows) {
    return rows * (chains.base[b] + (row + rows - 1) / heads + 1) * (D + 16);
  };
  int64_t total = 0;
  for (int64_t b = 0; b < B; b++)
    for (int64_t row = 0, end = chains.length(b) * heads; row < end; row += BLOCK)
      total += cost(b, row, least(BLOCK, end - row));

  share(ctx, total * G, [&](int thread, int64_t begin, int64_t end) {
    Places own{memory + bases + thread * each};
    Packed packed;
    Rows x;
    float* q;
    lay(own, packed, q, x);

    const auto block = [&](int64_t g, int64_t b, int64_t first, int64_t rows) {
      int64_t position[BLOCK], place[BLOCK];  // place: of the row in [N,H]
      for (int64_t r = 0, query = first / heads, head = first % heads; r < rows; r++) {
        position[r] = chains.base[b] + query, place[r] = (chains.offsets[b] + query) * H + g * heads + head;
        if (++head == heads) query++, head = 0;
      }
      const int64_t reach = position[rows - 1] / TILE + 1;
      packed.go(chains, g, b);
      packed.fill(chains, reach, a.k, a.v, D);
      for (int64_t r = 0; r < rows; r++) {
        const float* from = a.q.row(place[r] / H) + place[r] % H * D;
        memcpy(q + r * D, from, size_t(D) * sizeof(float));
        if (g + 1 < G) fetch(from + heads * D, D);
        x.m[r] = -__builtin_inff(), x.l[r] = 0;
      }
      memset(x.o, 0, size_t(rows * W) * sizeof(float));
      for (int64_t tile = 0, from = 0; tile < reach; tile++) {
        while (position[from] < tile * TILE) from++;
        int64_t seen[BLOCK];
        for (int64_t r = from; r < rows; r++) seen[r] = least(TILE, position[r] - tile * TILE + 1);
        attend(D, scale, x, from, rows, packed.keys + tile * TILE * D, packed.values + tile * TILE * W, seen);
      }
      for (int64_t r = 0; r < rows; r++) finish(x.o + r * W, x.l[r], D, a.o.data + place[r] * D);
      for (int64_t r = 0; r < rows; r += LANES) {
        alignas(64) float lse[LANES];
        const int n = int(least(LANES, rows - r));
        store(lse, load(x.m + r, n) + log(load(x.l + r, n)));
        for (int i = 0; i < n; i++) a.lse[place[r + i]] = lse[i];
      }
    };

    int64_t at = 0;
    for (int64_t first = 0, last; first < B && at < end;
         first = last) {  // the sequences that begin with the same tokens
      for (last = first + 1; last < B && chains.before(last) >= 0;) last++;
      for (int64_t g = 0; g < G && at < end; g++)
        for (int64_t b = first; b < last && at < end; b++)
          for (int64_t row = 0, rows = chains.length(b) * heads; row < rows && at < end; row += BLOCK) {
            const int64_t n = least(BLOCK, rows - row);
            if (at >= begin) block(g, b, row, n);
            at += cost(b, row, n);
          }
    }
  });
}

}  // namespace rlhf::RLHF_ISA
