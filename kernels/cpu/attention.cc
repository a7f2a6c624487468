// Causal attention over packed sequences, grouped-query, without the N x N matrix (Dao et al.,
// FlashAttention). The online softmax is Milakov and Gimelshein's.
//
//   s_ij = (sum over D of q_i k_j) scale,  o_i = sum over j <= i of softmax_j(s_ij) v_j,  lse_i = log sum_j exp(s_ij)
//   q [N,H,D]  k, v [N,G,D]  o [N,H,D]  lse [N,H];  query heads g H/G .. (g+1) H/G - 1 read key/value head g
//
// Plan: an item of work is a block of BLOCK query rows of one sequence and key/value head. A row is
// one query of one head of the group, queries ascending. Sequences that share a prefix follow each
// other. A thread packs a sequence's keys and values once per head, tile by tile as its blocks
// reach them. It keeps what the next sequence shares through `prefix`, and asks for the next head's
// rows meanwhile. For each tile of 64 keys and each group of 6 rows: q k^T, softmax, p v. Above the
// diagonal only the corner of a group is computed.
//
// Law: q.k is one chain over D, then times scale. Per tile m' = max(m, tile max), a = exp(m - m'),
// l = l a + (law 2 over the tile's keys), o = o a continued by one chain over the tile's keys. At
// the end o / l and lse = m + log(l). A later key of the sequence may enter with p = 0, which
// changes no bit.
// Figures: 33 to 81 % of the peak, rising with T. History: kernels/notes/attention.md.
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
