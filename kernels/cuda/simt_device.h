// simt.h on a GPU: thin names over CUDA and a few PTX instructions.
#pragma once
#define KERNEL(name, Params, ...) \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Params p)

namespace rlhf::cuda {

template <class T>
struct Global {
  T* data;
  Global() = default;
  DEVICE explicit Global(T* p) : data(p) {}
  template <class U>
  DEVICE Global(Global<U> other) : data(other.data) {}
  DEVICE T& operator[](int64_t i) const { return data[i]; }
  DEVICE Global operator+(int64_t i) const { return Global(data + i); }
  DEVICE explicit operator bool() const { return data != nullptr; }
};
template <class T>
struct Shared {
  T* data;
  template <class U = T>
  DEVICE operator Shared<const U>() const {
    return {data};
  }
  DEVICE T& operator[](int i) const { return data[i]; }
  DEVICE Shared operator+(int i) const { return {data + i}; }
};

// U of several elements, aligned to its size
template <class U, class T>
DEVICE U load_as(Global<T> x, int64_t i) {
  return *reinterpret_cast<const U*>(x.data + i);
}
template <class U, class T>
DEVICE void store_as(Global<T> y, int64_t i, U value) {
  *reinterpret_cast<U*>(y.data + i) = value;
}
template <class U, class T>
DEVICE U load_as(Shared<T> x, int i) {
  return *reinterpret_cast<const U*>(x.data + i);
}
template <class U, class T>
DEVICE void store_as(Shared<T> y, int i, U value) {
  *reinterpret_cast<U*>(y.data + i) = value;
}

extern __shared__ __align__(1024) char dynamic_shared[];
struct SharedMemory {
  int used = 0;
  template <class T>
  DEVICE Shared<T> take(int n) {
    T* at = reinterpret_cast<T*>(dynamic_shared + used);
    used += (n * int(sizeof(T)) + 15) / 16 * 16;
    return {at};
  }
};

DEVICE int thread() { return int(threadIdx.x); }
DEVICE int lane() { return int(threadIdx.x) % 32; }
DEVICE int warp() { return int(threadIdx.x) / 32; }
DEVICE int block_x() { return int(blockIdx.x); }
DEVICE int block_y() { return int(blockIdx.y); }
DEVICE int block_z() { return int(blockIdx.z); }
DEVICE int grid_x() { return int(gridDim.x); }
DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
template <class T>
DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T>
DEVICE T shuffle(T x, int from) {
  return __shfl_sync(0xffffffffu, x, from);
}
template <class T>
DEVICE T shuffle_up(T x, int n) {
  return __shfl_up_sync(0xffffffffu, x, unsigned(n));
}
template <class T>
DEVICE T shuffle_down(T x, int n) {
  return __shfl_down_sync(0xffffffffu, x, unsigned(n));
}
DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
DEVICE bool any(bool x) { return __any_sync(0xffffffffu, x); }

DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
DEVICE bf16 to_bf16(float x) { return {uint16_t(pack_bf16(x, 0))}; }

DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
// 16 bytes that arrive at copy_async_wait; zeros where not valid
template <class T, class F>
DEVICE void copy_async16(Shared<T> to, Global<F> from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to.data)), "l"(from.data),
               "r"(valid ? 16 : 0)
               : "memory");
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// four 8 x 8 matrices of bf16; lane i gives the address of row i % 8 of matrix i / 8
template <class T>
DEVICE void load_matrix_x4(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row.data))
               : "memory");
}
template <class T>
DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row.data))
               : "memory");
}
// c[16,8] += a[16,16] b[16,8]
DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE float exp(float x) { return ::expf(x); }
DEVICE double exp(double x) { return ::exp(x); }
DEVICE float exp2(float x) { return ::exp2f(x); }
DEVICE float log(float x) { return ::logf(x); }
DEVICE double log(double x) { return ::log(x); }
DEVICE float expm1(float x) { return ::expm1f(x); }
DEVICE double expm1(double x) { return ::expm1(x); }
DEVICE float log1p(float x) { return ::log1pf(x); }
DEVICE double log1p(double x) { return ::log1p(x); }
DEVICE float sqrt(float x) { return ::sqrtf(x); }
DEVICE double sqrt(double x) { return ::sqrt(x); }
// Whole numbers alone: their sums and maxima do not depend on the order.
DEVICE void atomic_add(Global<int32_t> x, int64_t i, int32_t n) { atomicAdd(x.data + i, n); }
DEVICE void atomic_max(Global<int32_t> x, int64_t i, int32_t n) { atomicMax(x.data + i, n); }

// Sets the error word of the op, if nothing has yet.
DEVICE void latch(Global<int32_t> error, Reason reason) { atomicCAS(error.data, 0, int32_t(reason)); }

}  // namespace rlhf::cuda
