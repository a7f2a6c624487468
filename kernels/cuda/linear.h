// The products of linear.cu, as it and the heads launch them.
#pragma once
#include <string>

#include "kernels/cuda/gemm_hopper.h"

namespace rlhf::cuda {

// C = A B, + bias, or added to what C holds
template <class T>
struct LinearParams {
  ProductParams<T> product;
  Global<float> c;  // [M,N]
  Global<const float> bias;  // [N] or null
  int32_t add;
};

#if RLHF_HOST_CODE
namespace {

template <class T>
const char* dtype_name(const char* f32, const char* narrow) {
  return sizeof(T) == 2 ? narrow : f32;
}

// whole pieces of 16 bytes, as cp.async takes them
template <class T>
bool is_aligned(const void* data, int64_t extent, int64_t stride) {
  constexpr int64_t PIECE = 16 / int64_t(sizeof(T));
  return at_16_bytes(data) && extent % PIECE == 0 && stride % PIECE == 0;
}

template <class T>
Operand<T> operand(const T* data, int64_t rows, int64_t extent, int64_t stride) {
  return {global<const T>(data, rows ? (rows - 1) * stride + extent : 0), Global<const int32_t>(), rows, rows, extent,
      stride, is_aligned<T>(data, extent, stride)};
}
// a matrix that an op was given
template <class T>
Operand<T> rows_of(View<const float> x) {
  return operand(reinterpret_cast<const T*>(x.data), x.dim[0], x.dim[1], x.dim[0] > 1 ? x.stride : x.dim[1]);
}
// its rows chosen by index
template <class T>
Operand<T> gathered(Operand<T> x, Global<const int32_t> index, int64_t rows) {
  x.index = index, x.rows = rows;
  return x;
}

// weights on the GPU are never packed
bool row_major(Context& ctx, const View<const float>& weight) {
  if (weight.layout == RLHF_ROW_MAJOR) return true;
  ctx.fail("weight is packed, wanted row-major");
  return false;
}

// as a Hopper brings it: EXTENT rows or columns of it at a time
template <int EXTENT, bool ALONG, class T>
TensorMap map_of(Context& ctx, const Operand<T>& x) {
  return tensor_map(ctx, x.data.data, x.rows, x.extent, x.stride, ALONG ? EXTENT : BOX);
}

// The kernel of this name; on a Hopper, where maps can describe the operands, the one whose name ends in _hopper.
template <bool A_ALONG, bool B_ALONG, template <class> class P, class T>
void launch_product(Context& ctx, const char* kernel, const P<T>& p) {
  const Operand<T>&a = p.product.a, &b = p.product.b;
  const int64_t tiles = tiles_of<Block<T>>(p.product);
  if (tiles == 0) return;
  if (Block<T>::NARROW && ctx.gpu->architecture == 90 && p.product.K > 0 && a.aligned && b.aligned && !a.index &&
      !b.index) {
    const WithMaps<P<T>> maps{map_of<HopperBlock::M, A_ALONG>(ctx, a), map_of<HopperBlock::N, B_ALONG>(ctx, b), p};
    const std::string name = std::string(kernel) + "_hopper";
    return launch(ctx, name.c_str(), {std::min<int64_t>(tiles, ctx.gpu->multiprocessors)}, HopperBlock::THREADS,
        HopperBlock::SHARED, maps);
  }
  launch(ctx, kernel, {tiles}, Block<T>::THREADS, Block<T>::SHARED, p);
}

}  // namespace
#endif

}  // namespace rlhf::cuda
