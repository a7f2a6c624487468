// hopper.h on a GPU: thin names over PTX.
#pragma once

namespace rlhf::cuda {

DEVICE void barrier_init(Shared<uint64_t> b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b.data)), "r"(arrivals) : "memory");
}
// The copy engine sees the barriers that this thread has made.
DEVICE void barrier_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(Shared<uint64_t> b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b.data)) : "memory");
}
// arrives, and as many bytes are to come in this phase
DEVICE void barrier_arrive_expect(Shared<uint64_t> b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b.data)), "r"(bytes)
               : "memory");
}
// until the phase of this parity is complete; the phase before the first one is, and has parity 1
DEVICE void barrier_wait(Shared<uint64_t> b, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni over;\n"
      "bra.uni again;\n"
      "over:\n}" ::"r"(shared_address(b.data)),
      "r"(parity)
      : "memory");
}

// What this thread has written to shared memory is seen by the tensor cores and the copy engine, after the barrier that
// follows.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A box, from (row, column) on, to `to`; its bytes count for b.
DEVICE void copy_box(Shared<bf16> to, const TensorMap& map, int64_t row, int64_t column, Shared<uint64_t> b) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(to.data)),
      "l"(&map), "r"(int(column)), "r"(int(row)), "r"(shared_address(b.data))
      : "memory");
}
// n elements that lie one after the other, in multiples of 16 bytes; they count for b.
template <class T>
DEVICE void copy_line(Shared<T> to, Global<const T> from, int n, Shared<uint64_t> b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to.data)),
               "l"(from.data), "r"(n * int(sizeof(T))), "r"(shared_address(b.data))
               : "memory");
}

// A tile as wgmma reads it: 1024 bytes from eight rows to the next; across, `next` bytes from 64 columns to the next.
DEVICE uint64_t tile_descriptor(Shared<bf16> tile, int next = 16) {
  return uint64_t(shared_address(tile.data)) >> 4 | uint64_t(next >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
DEVICE uint64_t tile_descriptor_at(uint64_t descriptor, int bytes) { return descriptor + uint64_t(bytes >> 4); }

DEVICE void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void keep(float& x) { asm volatile("" : "+f"(x)::"memory"); }
DEVICE void keep(uint32_t& x) { asm volatile("" : "+r"(x)::"memory"); }
template <class T, int N>
DEVICE void keep(T (&x)[N][4]) {
  UNROLL for (int i = 0; i < N; i++) UNROLL for (int e = 0; e < 4; e++) keep(x[i][e]);
}
// All but the last n groups are done; these, their sums and operands in registers, may be used. Without `keep` the
// compiler would use them before.
template <int n, class... T>
DEVICE void multiply_wait(T&... used) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
  (keep(used), ...);
}

#define TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define FOUR(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 1), FOUR(i + 2), FOUR(i + 3)
#define SIXTYFOUR(i) SIXTEEN(i), SIXTEEN(i + 4), SIXTEEN(i + 8), SIXTEEN(i + 12)
// a warp's part of a[64,16] from its registers, as mma_bf16 takes it
#define WGMMA_REGISTERS(N, A0, A1, A2, A3, B, ADD, B_TURNED, ...)                                                \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N          \
               "k16.f32.bf16.bf16 {" LIST_##N "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B ", add, 1, 1, " B_TURNED \
                                              ";\n}"                                                             \
               : __VA_ARGS__                                                                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(B_ACROSS)))
#define LIST_64 TEN() TEN(1) TEN(2) "%30, %31"
#define LIST_128 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63"
#define LIST_100 TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9)
#define LIST_256 LIST_100 TEN(10) TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA(N, A, B, ADD, A_TURNED, B_TURNED, ...)                                                     \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N  \
               "k16.f32.bf16.bf16 {" LIST_##N "}, " A ", " B ", add, 1, 1" A_TURNED ", " B_TURNED ";\n}" \
               : __VA_ARGS__                                                                             \
               : "l"(a), "l"(b), "r"(int(add)), "n"(int(A_ACROSS)), "n"(int(B_ACROSS)))

// The warpgroup's c[64, 8 N] = or += a[64,16] b[16, 8 N]: a warp has 16 rows, with N fragments of mma_bf16.
template <bool A_ACROSS, bool B_ACROSS, int N>
DEVICE void multiply(float (&c)[N][4], uint64_t a, uint64_t b, bool add) {
  static_assert(N == 8 || N == 16 || N == 32);
  if constexpr (N == 8) WGMMA(64, "%32", "%33", "%34", ", %35", "%36", SIXTEEN(0), SIXTEEN(4));
  else if constexpr (N == 16) WGMMA(128, "%64", "%65", "%66", ", %67", "%68", SIXTYFOUR(0));
  else WGMMA(256, "%128", "%129", "%130", ", %131", "%132", SIXTYFOUR(0), SIXTYFOUR(16));
}

template <bool B_ACROSS, int N>
DEVICE void multiply(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(N == 8 || N == 16);
  if constexpr (N == 8) WGMMA_REGISTERS(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38", SIXTEEN(0), SIXTEEN(4));
  else WGMMA_REGISTERS(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70", SIXTYFOUR(0));
}

#undef TEN
#undef FOUR
#undef SIXTEEN
#undef SIXTYFOUR
#undef LIST_64
#undef LIST_128
#undef LIST_256
#undef WGMMA
#undef WGMMA_REGISTERS

// Registers of each thread of the warpgroup, of the block's share: fewer, or more when others have given theirs.
template <int n>
DEVICE void registers_fewer() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
DEVICE void registers_more() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

}  // namespace rlhf::cuda
