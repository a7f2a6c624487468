// The products of linear.cu, as it and the heads launch them.
#pragma once
#include "kernels/cuda/gemm.h"

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
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && extent % PIECE == 0 && stride % PIECE == 0;
}

template <class T>
Operand<T> operand(const T* data, int64_t rows, int64_t extent, int64_t stride) {
  return {
      global<const T>(data, rows ? (rows - 1) * stride + extent : 0), Global<const int32_t>(), rows, rows, extent, stride, is_aligned<T>(data, extent, stride)};
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

template <class P, class T>
void launch_product_of(Context& ctx, const char* kernel, const ProductParams<T>& product, const P& p, int64_t more_shared = 0) {
  const int64_t tiles = Block<T>::tiles(product);
  if (tiles > 0) launch(ctx, kernel, {tiles}, Block<T>::THREADS, Block<T>::SHARED + more_shared, p);
}
template <class P>
void launch_product(Context& ctx, const char* kernel, const P& p, int64_t more_shared = 0) {
  launch_product_of(ctx, kernel, p.product, p, more_shared);
}

}  // namespace
#endif

}  // namespace rlhf::cuda
