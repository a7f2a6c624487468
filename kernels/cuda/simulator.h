// simt.h simulated: one fibre per thread of a block, on the host. What the hardware would let pass
// is a fault here:
//
//   global memory      an index outside the array, a misaligned vector, a null array
//   shared memory      outside what was taken; read before it was written; read or written after another
//                      thread's access with no barrier between (of the block, or of the warp for threads
//                      of one warp)
//   cp.async           read before the wait that brings it
//   warp operations    a lane that is elsewhere, or has returned
//
// Warps, lanes and blocks run in an order drawn from RLHF_SIMT_SEED and the ordinal that was
// opened. What depends on the order shows.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "native/simt/language.h"

#define RLHF_FIRST(x, ...) x
#define KERNEL(name, Params, ...)                                                                 \
  static void name(const Params& p);                                                              \
  static const rlhf::simt::Kernel kernel_##name(#name, RLHF_FIRST(__VA_ARGS__, ), sizeof(Params), \
      [](const void* params) { name(*static_cast<const Params*>(params)); });                     \
  static void name([[maybe_unused]] const Params& p)

namespace rlhf::cuda {

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};

template <class T>
struct Global {
  T* data = nullptr;
  T* first = nullptr;  // of the array
  int64_t size = 0;
  Global() = default;
  Global(T* data, T* first, int64_t size) : data(data), first(first), size(size) {}
  template <class U>
  Global(Global<U> other) : data(other.data), first(other.first), size(other.size) {}
  T* at(int64_t i, int64_t count, size_t alignment) const {
    simt::count_access();
    const int64_t index = data - first + i;
    if (!data) simt::fault("element %lld of an array that is not there", (long long)i);
    if (index < 0 || index + count > size)
      simt::fault(
          "element %lld of an array of %lld", (long long)(index < 0 ? index : index + count - 1), (long long)size);
    if (reinterpret_cast<uintptr_t>(data + i) % alignment)
      simt::fault("element %lld is not aligned to %zu bytes", (long long)index, alignment);
    return data + i;
  }
  T& operator[](int64_t i) const { return *at(i, 1, alignof(T)); }
  Global operator+(int64_t i) const { return {data ? data + i : nullptr, first, size}; }
  explicit operator bool() const { return data != nullptr; }
};
template <class T>
Global<T> global(T* data, int64_t elements) {
  return {data, data, elements};
}

template <class T>
struct Shared {
  using Value = std::remove_const_t<T>;
  int offset, begin, end;  // in bytes

  template <class U>
  int at(int i) const {
    const int from = offset + i * int(sizeof(T));
    if (from < begin || from + int(sizeof(U)) > end)
      simt::fault(
          "shared element %d of an array of %d", (from - begin) / int(sizeof(T)), (end - begin) / int(sizeof(T)));
    if (from % int(alignof(U))) simt::fault("shared byte %d is not aligned to %zu", from, alignof(U));
    return from;
  }
  template <class U>
  U read(int i) const {
    const int from = at<U>(i);
    simt::touch(from, sizeof(U), false);
    U value;
    std::memcpy(&value, simt::shared_memory() + from, sizeof value);
    return value;
  }
  template <class U>
  void write(int i, const U& value) const {
    const int to = at<U>(i);
    simt::touch(to, sizeof(U), true);
    std::memcpy(simt::shared_memory() + to, &value, sizeof value);
  }
  struct Element {
    Shared of;
    int i;
    operator Value() const { return of.template read<Value>(i); }
    const Element& operator=(const Value& x) const { return of.template write<Value>(i, x), *this; }
    const Element& operator=(const Element& other) const { return *this = Value(other); }
    const Element& operator+=(const Value& x) const { return *this = Value(*this) + x; }
  };
  Element operator[](int i) const { return {*this, i}; }
  Shared operator+(int i) const { return {offset + i * int(sizeof(T)), begin, end}; }
  operator Shared<const Value>() const { return {offset, begin, end}; }
};

template <class U, class T>
U load_as(Global<T> x, int64_t i) {
  U value;
  std::memcpy(&value, x.at(i, sizeof(U) / sizeof(T), alignof(U)), sizeof value);
  return value;
}
template <class U, class T>
void store_as(Global<T> y, int64_t i, U value) {
  std::memcpy(y.at(i, sizeof(U) / sizeof(T), alignof(U)), &value, sizeof value);
}
template <class U, class T>
U load_as(Shared<T> x, int i) {
  return x.template read<U>(i);
}
template <class U, class T>
void store_as(Shared<T> y, int i, U value) {
  y.template write<U>(i, value);
}

struct SharedMemory {
  int used = 0;
  template <class T>
  Shared<T> take(int n) {
    const int at = simt::take_shared(&used, n * int(sizeof(T)));
    return {at, at, at + n * int(sizeof(T))};
  }
};

inline int thread() { return simt::place().thread; }
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
inline int block_x() { return simt::place().block[0]; }
inline int block_y() { return simt::place().block[1]; }
inline int block_z() { return simt::place().block[2]; }
inline int grid_x() { return simt::place().grid[0]; }
inline void sync_threads() { simt::sync_block(); }
inline void sync_warp() { simt::sync_warp(); }

template <class T>
struct Exchange {
  T value;
  int from;
  T got;
};
template <class T>
T exchange(T value, int from) {
  Exchange<T> mine{value, from, value};
  simt::meet(&mine, [](void** all) {
    for (int i = 0; i < 32; i++) {
      auto* one = static_cast<Exchange<T>*>(all[i]);
      if (one->from >= 0 && one->from < 32) one->got = static_cast<Exchange<T>*>(all[one->from])->value;
    }
  });
  return mine.got;
}
template <class T>
T shuffle_xor(T x, int mask) {
  return exchange(x, lane() ^ mask);
}
template <class T>
T shuffle(T x, int from) {
  return exchange(x, from & 31);
}
template <class T>
T shuffle_up(T x, int n) {
  return exchange(x, lane() - n);
}
template <class T>
T shuffle_down(T x, int n) {
  return exchange(x, lane() + n);
}
inline uint32_t ballot(bool x) {
  std::pair<bool, uint32_t> mine{x, 0};
  simt::meet(&mine, [](void** all) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++) votes |= uint32_t(static_cast<std::pair<bool, uint32_t>*>(all[i])->first) << i;
    for (int i = 0; i < 32; i++) static_cast<std::pair<bool, uint32_t>*>(all[i])->second = votes;
  });
  return mine.second;
}
inline bool any(bool x) { return ballot(x) != 0; }

inline float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low).bits | uint32_t(to_bf16(high).bits) << 16; }

template <class T, class F>
void copy_async16(Shared<T> to, Global<F> from, bool valid) {
  const int offset = to.template at<int4>(0);
  simt::copy_async(offset, valid ? from.at(0, 16 / sizeof(F), 16) : nullptr);
}
inline void copy_async_commit() { simt::copy_async_commit(); }
template <int n>
void copy_async_wait() {
  simt::copy_async_wait(n);
}

struct Matrices {
  uint16_t row[8];  // that the lane's address names
  uint32_t r[4];
};
template <class T>
Matrices matrix_row(Shared<T> row) {
  struct alignas(16) Row {
    uint16_t x[8];
  };
  const Row x = row.template read<Row>(0);
  Matrices mine;
  std::memcpy(mine.row, x.x, sizeof mine.row);
  return mine;
}
template <class T>
void load_matrix_x4(uint32_t (&r)[4], Shared<T> row) {
  Matrices mine = matrix_row(row);
  simt::meet(&mine, [](void** all) {
    for (int lane = 0; lane < 32; lane++)
      for (int m = 0; m < 4; m++) {
        const uint16_t* x = static_cast<Matrices*>(all[8 * m + lane / 4])->row + lane % 4 * 2;
        static_cast<Matrices*>(all[lane])->r[m] = x[0] | uint32_t(x[1]) << 16;
      }
  });
  std::memcpy(r, mine.r, sizeof r);
}
template <class T>
void load_matrix_x4_transposed(uint32_t (&r)[4], Shared<T> row) {
  Matrices mine = matrix_row(row);
  simt::meet(&mine, [](void** all) {
    for (int lane = 0; lane < 32; lane++)
      for (int m = 0; m < 4; m++) {
        const auto element = [&](int i) { return static_cast<Matrices*>(all[8 * m + i])->row[lane / 4]; };
        static_cast<Matrices*>(all[lane])->r[m] = element(lane % 4 * 2) | uint32_t(element(lane % 4 * 2 + 1)) << 16;
      }
  });
  std::memcpy(r, mine.r, sizeof r);
}

struct Fragments {
  float (*c)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};
// The tensor core adds exact products with more digits than f32, in an order of its own; here in f64, rounded once.
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments mine{&c, &a, &b};
  simt::meet(&mine, [](void** all) {
    float A[16][16], B[16][8];
    for (int lane = 0; lane < 32; lane++) {
      const auto& one = *static_cast<Fragments*>(all[lane]);
      const int g = lane / 4, t = lane % 4 * 2;
      for (int e = 0; e < 2; e++) {
        const auto half = [&](uint32_t x) { return to_float(bf16{uint16_t(x >> (16 * e))}); };
        A[g][t + e] = half((*one.a)[0]), A[g + 8][t + e] = half((*one.a)[1]), A[g][t + 8 + e] = half((*one.a)[2]),
                 A[g + 8][t + 8 + e] = half((*one.a)[3]);
        B[t + e][g] = half((*one.b)[0]), B[t + 8 + e][g] = half((*one.b)[1]);
      }
    }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        float& sum = (*static_cast<Fragments*>(all[lane])->c)[i];
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double exact = sum;
        for (int k = 0; k < 16; k++) exact += double(A[row][k]) * double(B[k][column]);
        sum = float(exact);
      }
  });
}

inline float fma(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return std::fma(a, b, c); }
inline float exp(float x) { return std::exp(x); }
inline double exp(double x) { return std::exp(x); }
inline float exp2(float x) { return std::exp2(x); }
inline float log(float x) { return std::log(x); }
inline double log(double x) { return std::log(x); }
inline float expm1(float x) { return std::expm1(x); }
inline double expm1(double x) { return std::expm1(x); }
inline float log1p(float x) { return std::log1p(x); }
inline double log1p(double x) { return std::log1p(x); }
inline float sqrt(float x) { return std::sqrt(x); }
inline double sqrt(double x) { return std::sqrt(x); }

inline void atomic_add(Global<int32_t> x, int64_t i, int32_t n) { x[i] += n; }
inline void atomic_max(Global<int32_t> x, int64_t i, int32_t n) { x[i] = x[i] > n ? x[i] : n; }

inline void latch(Global<int32_t> error, Reason reason) {
  if (error[0] == 0) error[0] = reason;
}

}  // namespace rlhf::cuda
