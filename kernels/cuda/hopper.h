// What a Hopper adds to the language of simt.h, by one set of names on the GPU and simulated:
// barriers in shared memory that count bytes, tiles that the copy engine brings by a map of the
// tensor (TMA), and products that a warpgroup starts and waits for (wgmma).
//
// A tile in shared memory has rows of 128 bytes: 64 bf16. Piece c (16 bytes) of a row stands at c ^
// (row & 7), as the copy engine writes and the tensor cores read, where the tile begins at a
// multiple of 1024 bytes.
//   along    a row of the tile is a row (or column) of the product, its 64 are k
//   across   a row of the tile is a k, its 64 are rows (or columns); the next 64 lie 64 rows of the tile further on
//
// A group of products is multiply_begin, multiply ..., multiply_commit. From `multiply` until
// `multiply_wait` a warp's sums belong to the tensor cores, and so do the tiles and registers that
// they read. A tile is read after `barrier_wait` of the phase that brought it. It is brought again
// when the readers have waited and then arrived.
//
// Kernels that use it are made for sm_90a alone. They stand between #if RLHF_HOPPER_CODE and
// #endif, and are launched where Gpu::architecture is 90.
#pragma once
#include "kernels/cuda/simt.h"

#if RLHF_SIMT || __CUDA_ARCH_FEAT_SM90_ALL
#define RLHF_HOPPER_CODE 1
#else
#define RLHF_HOPPER_CODE 0
#endif

namespace rlhf::cuda {

// A CUtensorMap, or what the simulator keeps in its place: a matrix of bf16 [rows][columns] in boxes of 64 columns.
// Zeros outside.
struct alignas(64) TensorMap {
  uint64_t words[16];
};
constexpr int BOX = 64;  // columns

}  // namespace rlhf::cuda

#if RLHF_HOPPER_CODE && defined(__CUDACC__)
#include "kernels/cuda/hopper_device.h"
#elif RLHF_HOPPER_CODE
#include "kernels/cuda/hopper_simulator.h"
#endif

#if RLHF_HOST_CODE
namespace rlhf::cuda {

// rows that are `stride` elements apart, box_rows of them in a box
inline TensorMap tensor_map(
    Context& ctx, const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  TensorMap map{};
  if (!ctx.failure && !ctx.measuring && !ctx.gpu->tensor_map(map.words, data, rows, columns, stride, box_rows))
    ctx.fail(ctx.gpu->failure);
  return map;
}

}  // namespace rlhf::cuda
#endif
