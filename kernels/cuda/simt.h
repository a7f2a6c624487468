// The language of the GPU kernels. Under nvcc it is CUDA. Under a host compiler with RLHF_SIMT it
// is the simulator (simulator.h), which runs the same source with a fibre per thread and checks
// every access. Otherwise it is only what the host side needs to launch.
//
//   RLHF_DEVICE_CODE   the kernels themselves are compiled     RLHF_HOST_CODE   the functions that launch them are
//
// A file holds its parameters (a struct passed by value), then KERNEL(name, Params, threads[,
// blocks a multiprocessor]) { ... p ... }, then namespace rlhf::cuda { void op(Context&, const
// op_args&) }. A kernel is known by its name. The numbers are its budget: 65,536 registers over
// threads and blocks. The compile gate holds it to that without spills.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define RLHF_DEVICE_CODE 1
#define RLHF_HOST_CODE 0
#elif RLHF_SIMT
#define RLHF_DEVICE_CODE 1
#define RLHF_HOST_CODE 1
#else
#define RLHF_DEVICE_CODE 0
#define RLHF_HOST_CODE 1
#endif

#define RLHF_PRAGMA(x) _Pragma(#x)
#if defined(__CUDACC__)
#define DEVICE __device__ __forceinline__
#define ANYWHERE __host__ __device__ __forceinline__
#define UNROLL RLHF_PRAGMA(unroll)
#define UNROLL_BY(n) RLHF_PRAGMA(unroll n)
#else
#define DEVICE inline
#define ANYWHERE inline
#define UNROLL
#define UNROLL_BY(n)
#endif

namespace rlhf::cuda {

// Why a call left NaN behind: the word of its op in the stream's errors.
enum Reason : int32_t {
  BAD_ID = 2,
  BAD_OFFSETS = 3,
  NOT_FINITE = 1 | 1 << 8,
  TOO_FEW = 1 | 2 << 8
};  // the low byte is an rlhf_status

constexpr float INFINITE = __builtin_huge_valf();
constexpr float NOT_A_NUMBER = __builtin_nanf("");

struct alignas(2) bf16 {
  uint16_t bits;
};
ANYWHERE float to_float(float x) { return x; }

}  // namespace rlhf::cuda

#if defined(__CUDACC__)
#include "kernels/cuda/simt_device.h"
#elif RLHF_SIMT
#include "kernels/cuda/simulator.h"
#else
namespace rlhf::cuda {
// Only passed on: the host side never looks.
template <class T>
struct Global {
  T* data = nullptr;
  Global() = default;
  explicit Global(T* p) : data(p) {}
  template <class U>
  Global(Global<U> other) : data(other.data) {}
  Global operator+(int64_t i) const { return Global(data ? data + i : nullptr); }
  explicit operator bool() const { return data != nullptr; }
};
template <class T>
Global<T> global(T* data, int64_t) {
  return Global<T>(data);
}
}  // namespace rlhf::cuda
#endif

#if RLHF_DEVICE_CODE
namespace rlhf::cuda {
// No templates: an element of shared memory may stand for its value.
#define EXTREMES(T)                                \
  DEVICE T min(T a, T b) { return a < b ? a : b; } \
  DEVICE T max(T a, T b) { return a > b ? a : b; }
EXTREMES(int32_t)
EXTREMES(int64_t)
EXTREMES(uint32_t)
EXTREMES(float)
EXTREMES(double)
#undef EXTREMES

template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}
}  // namespace rlhf::cuda
#endif

#if RLHF_HOST_CODE
#include <algorithm>
#include <utility>

#include "native/list/kernel.h"
#include "native/list/types.h"

namespace rlhf::cuda {

template <class T>
Global<T> global(View<T> x) {
  if (!x) return Global<T>();
  const int64_t rows = x.dim[0], row = x.dim[1] * x.dim[2] * x.dim[3];
  return global<T>(x.data, rows == 0 ? 0 : (rows - 1) * (rows > 1 ? x.stride : 0) + row);
}
// of the bf16 elements that a View's dtype tells of
template <class T, class F>
Global<T> global_as(View<F> x) {
  if (!x) return Global<T>();
  View<T> y{reinterpret_cast<T*>(x.data), {x.dim[0], x.dim[1], x.dim[2], x.dim[3]}, x.stride, x.layout, x.dtype};
  return global<T>(y);
}

inline bool at_16_bytes(const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; }

using Latch = Global<int32_t>;
inline Latch latch_of(Context& ctx) { return global<int32_t>(ctx.gpu->errors + ctx.op, 1); }

struct Grid {
  int64_t x, y = 1, z = 1;
};
// Nothing is launched while the workspace is being measured.
template <class P>
void launch(Context& ctx, const char* kernel, Grid grid, int threads, int64_t shared, const P& params) {
  if (ctx.failure || ctx.measuring || grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return;
  const int64_t sizes[3] = {grid.x, grid.y, grid.z};
  if (!ctx.gpu->launch(kernel, sizes, threads, shared, &params, int64_t(sizeof params))) ctx.fail(ctx.gpu->failure);
}

// Workspace in pieces of 256 bytes; without memory it only counts.
struct Workspace {
  char* base;
  int64_t used = 0;
  template <class T>
  Global<T> take(int64_t n) {
    T* at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (n * int64_t(sizeof(T)) + 255) / 256 * 256;
    return base ? global<T>(at, n) : Global<T>();
  }
};

}  // namespace rlhf::cuda
#else
namespace rlhf::cuda {
using Latch = Global<int32_t>;
}
#endif
