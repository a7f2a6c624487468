// The bf16 products of gemm.h on a Hopper: the same blocks and epilogues, on wgmma.
//
// Plan: a block of threads is a warpgroup that brings tiles (one thread of it, by the copy engine)
// and two that multiply, 64 of the 128 rows each. There are as many blocks as multiprocessors. Each
// goes from tile to tile of C, so that the next tile's first stages come during an epilogue.
//
//   block        k   stages  shared   threads  sums of a thread
//   128 x 256    64  4       192 KiB  384      64 x 256 a warpgroup: m64n256k16, 128 of 232 registers
//
// Barriers of a stage: `full` counts one arrival and the bytes of its boxes. `empty` counts an
// arrival of each of the eight warps that read it. They arrive when the products of the next stage
// have been started, so two groups of products are always under way.
//
// Order: as gemm.h's, from k = 0 up, 16 at a time. Rows and columns outside an operand are zeros
// from the copy engine.
// Expected, not yet measured: 600 to 660 TFLOP/s, as others report. History:
// kernels/notes/linear.md.
#pragma once
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/hopper.h"

namespace rlhf::cuda {

template <class P>
struct WithMaps {
  TensorMap a, b;
  P p;  // whose `product` has the sizes
};

struct HopperBlock {
  static constexpr int M = Block<bf16>::M, N = Block<bf16>::N, K = BOX, STAGES = 4, READERS = 256,
                       THREADS = READERS + 128;
  static constexpr int64_t SHARED = STAGES * ((M + N) * K * 2 + 2 * 8);
};

#if RLHF_HOPPER_CODE

template <bool A_ALONG, bool B_ALONG>
struct Wgmma : HopperBlock {
  using Element = bf16;
  static constexpr bool a_along = A_ALONG, b_along = B_ALONG;
  static constexpr int ROWS = 2, COLUMNS = 64, RUN = 2, SHARERS = 4, PARTS = 1;
  float c[32][4];

  DEVICE static int part() { return 0; }
  DEVICE static int row(int i) { return warp() * 16 + i * 8 + lane() / 4; }
  DEVICE static int column(int j) { return j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  DEVICE float& at(int i, int j) { return c[j / 2][i * 2 + j % 2]; }

  // c += a b of one stage, or = where it is the first. Not awaited.
  DEVICE void step(Shared<bf16> a, Shared<bf16> b, bool first) {
    constexpr int ACROSS = 16 * BOX * 2, ALONG = 16 * 2,
                  BLOCK = BOX * K * 2;  // bytes: 16 steps of k; 64 columns of an operand across
    const int half = warp() / 4 * 64 * BOX;  // 64 rows along are as large as 64 columns across
    const uint64_t left = tile_descriptor(a + half), right = B_ALONG ? tile_descriptor(b) : tile_descriptor(b, BLOCK);
    multiply_begin();
    UNROLL for (int k = 0; k < K / 16; k++)
        multiply<!A_ALONG, !B_ALONG>(c, tile_descriptor_at(left, k * (A_ALONG ? ALONG : ACROSS)),
            tile_descriptor_at(right, k * (B_ALONG ? ALONG : ACROSS)), !first || k > 0);
    multiply_commit();
  }
};

// EXTENT rows from `first` on, at k to k + 64, of an operand; the whole of them counts for `full`
template <int EXTENT, bool ALONG>
DEVICE void bring(Shared<bf16> to, const TensorMap& map, int64_t first, int64_t k, Shared<uint64_t> full) {
  if constexpr (ALONG) copy_box(to, map, first, k, full);
  else { UNROLL for (int i = 0; i < EXTENT; i += BOX) copy_box(to + i * BOX, map, k, first + i, full); }
}

// epilogue(mma, at, p, memory) for each tile of the block, by the warps that multiply
template <class Mma, class P, class F>
DEVICE void multiply_tiles(const WithMaps<P>& maps, F&& epilogue) {
  constexpr int STAGES = Mma::STAGES, A = Mma::M * Mma::K, B = Mma::N * Mma::K;
  SharedMemory memory;
  const Shared<bf16> a = memory.take<bf16>(STAGES * A), b = memory.take<bf16>(STAGES * B);
  const Shared<uint64_t> full = memory.take<uint64_t>(STAGES), empty = memory.take<uint64_t>(STAGES);
  if (thread() == 0) {
    for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, Mma::READERS / 32);
    barrier_publish();
  }
  sync_threads();

  const P& p = maps.p;
  const int64_t tiles = tiles_of<Mma>(p.product);
  const int steps = int((p.product.K + Mma::K - 1) / Mma::K);
  int stage = 0, round = 0;  // round: the parity of the stage's use
  const auto next = [&] {
    if (++stage == STAGES) stage = 0, round ^= 1;
  };
  if (thread() >= Mma::READERS) {
    registers_fewer<40>();
    if (thread() > Mma::READERS) return;
    UNROLL_BY(1) for (int64_t id = block_x(); id < tiles; id += grid_x()) {
      const Place at = Place::of<Mma>(p.product, id);
      UNROLL_BY(1) for (int step = 0; step < steps; step++, next()) {
        barrier_wait(empty + stage, round ^ 1);
        barrier_arrive_expect(full + stage, (A + B) * 2);
        bring<Mma::M, Mma::a_along>(a + stage * A, maps.a, at.m, int64_t(step) * Mma::K, full + stage);
        bring<Mma::N, Mma::b_along>(b + stage * B, maps.b, at.n, int64_t(step) * Mma::K, full + stage);
      }
    }
  } else {
    registers_more<232>();
    UNROLL_BY(1) for (int64_t id = block_x(); id < tiles; id += grid_x()) {
      Mma mma;
      int before = 0;
      UNROLL_BY(1) for (int step = 0; step < steps; step++, next()) {
        barrier_wait(full + stage, round);
        mma.step(a + stage * A, b + stage * B, step == 0);
        multiply_wait<1>(mma.c);
        if (step > 0 && lane() == 0) barrier_arrive(empty + before);
        before = stage;
      }
      multiply_wait<0>(mma.c);
      if (lane() == 0) barrier_arrive(empty + before);
      epilogue(mma, Place::of<Mma>(p.product, id), p, memory);
    }
  }
}

#endif

}  // namespace rlhf::cuda
