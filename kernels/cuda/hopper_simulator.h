// hopper.h simulated (native/simt/hopper.cc). What is a fault here, beside those of simulator.h:
//
//   barriers     used before they are made and published; a wait that nothing will end; read or written as memory
//   the copies   arrive late and in any order: a tile read before its phase was waited for, or brought
//                over what somebody may still read; a tile that does not lie at 1024 bytes; more bytes
//                than the phase was told of never end a wait
//   products     a tile that a thread wrote with no fence and barrier since; a tile or a register
//                written while one reads it; sums touched before the wait (they are NaN until then)
//
// Layouts are the hardware's: the copy turns a piece's place and the descriptor turns it back.
// Another stride or turn than the tile's gives other numbers.
#pragma once

namespace rlhf::cuda {

inline void barrier_init(Shared<uint64_t> b, int arrivals) { simt::barrier_init(b.at<uint64_t>(0), arrivals); }
inline void barrier_publish() { simt::barrier_publish(); }
inline void barrier_arrive(Shared<uint64_t> b) { simt::barrier_arrive(b.at<uint64_t>(0), 0); }
inline void barrier_arrive_expect(Shared<uint64_t> b, int bytes) { simt::barrier_arrive(b.at<uint64_t>(0), bytes); }
inline void barrier_wait(Shared<uint64_t> b, int parity) { simt::barrier_wait(b.at<uint64_t>(0), parity); }
inline void copy_box(Shared<bf16> to, const TensorMap& map, int64_t row, int64_t column, Shared<uint64_t> b) {
  simt::copy_box(to.at<bf16>(0), to.end - to.offset, map.words, row, column, b.at<uint64_t>(0));
}
template <class T>
void copy_line(Shared<T> to, Global<const T> from, int n, Shared<uint64_t> b) {
  simt::copy_line(to.template at<T>(0), to.end - to.offset, from.at(0, n, 16), n * int(sizeof(T)), b.at<uint64_t>(0));
}

inline uint64_t tile_descriptor(Shared<bf16> tile, int next = 16) {
  return uint64_t(tile.at<bf16>(0)) >> 4 | uint64_t(next >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
inline uint64_t tile_descriptor_at(uint64_t descriptor, int bytes) { return descriptor + uint64_t(bytes >> 4); }

inline void multiply_begin() { simt::multiply_begin(); }
inline void multiply_commit() { simt::multiply_commit(); }
template <int n, class... T>
void multiply_wait(T&...) {
  simt::multiply_wait(n);
}
template <bool A_ACROSS, bool B_ACROSS, int N>
void multiply(float (&c)[N][4], uint64_t a, uint64_t b, bool add) {
  simt::multiply({c[0], 8 * N, a, b, A_ACROSS, B_ACROSS, add, nullptr});
}
template <bool B_ACROSS, int N>
void multiply(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  simt::multiply({c[0], 8 * N, 0, b, false, B_ACROSS, add, a});
}
inline void fence_async() { simt::fence_async(); }
template <int n>
void registers_fewer() {}
template <int n>
void registers_more() {}

}  // namespace rlhf::cuda
