// The simulated Hopper: each fault in its barriers, copies and products is planted and seen, for several orders of the
// threads; a sound pipeline passes with the right numbers, and another stride, turn or order of arrival than the
// hardware's gives wrong ones.
#include <cmath>
#include <memory>

#include "kernels/cuda/hopper.h"
#include "native/cuda/gpu.h"
#include "test/native/check.h"

namespace rlhf::cuda {

constexpr int THREADS = 160, STAGES = 2, TILE = 64 * 64,
              STEPS = 5;  // a warpgroup that multiplies and a warp that brings

struct Params {
  TensorMap a, b;  // along: [64][K]; across: [K][64]; b: [64][K], [K][128]
  Global<const float> line;  // [STEPS][64]
  Global<float> y;  // [64][64 or 128]
};

enum class Fault {
  none,
  reads_before_the_wait,
  waits_for_the_wrong_phase,
  expects_nothing,
  expects_too_much,
  brings_without_waiting,
  arrives_before_the_products_end,
  arrives_once_too_often,
  reads_sums_too_early,
  writes_sums_too_early,
  does_not_begin,
  does_not_publish,
  has_no_barrier,
  writes_a_tile,
  reads_a_barrier,
  another_stride,
  another_turn,
  another_major,
  another_major_of_b,
  beside_1024,
  beside_16,
  writes_registers_too_early,
  half_a_warpgroup,
  other_tiles,
  leaves_a_box
};

// y = a b + line over STEPS tiles of k; b of 64 columns along, 128 across
template <Fault FAULT, bool ALONG = true, bool REGISTERS = false>
DEVICE void pipeline(const Params& p) {
  constexpr auto is = [](Fault fault) { return FAULT == fault; };
  constexpr int N = ALONG ? 64 : 128, B = N * 64;
  SharedMemory memory;
  if (is(Fault::beside_1024)) memory.take<float>(128);
  const Shared<bf16> a = memory.take<bf16>(STAGES * TILE), b = memory.take<bf16>(STAGES * B);
  const Shared<float> line = memory.take<float>(STAGES * 64 + 1);
  const Shared<uint64_t> full = memory.take<uint64_t>(STAGES), empty = memory.take<uint64_t>(STAGES);
  if (thread() == 0) {
    for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, 4);
    if (!is(Fault::does_not_publish)) barrier_publish();
  }
  if (!is(Fault::has_no_barrier)) sync_threads();
  if (warp() == 4) {
    for (int step = 0; lane() == 0 && step < STEPS + is(Fault::leaves_a_box); step++) {
      const int stage = step % STAGES, round = step / STAGES % 2;
      if (!is(Fault::brings_without_waiting)) barrier_wait(empty + stage, round ^ 1);
      if (is(Fault::expects_nothing)) barrier_arrive(full + stage);
      else barrier_arrive_expect(full + stage, 2 * (TILE + B) + 256 + (is(Fault::expects_too_much) ? 128 : 0));
      copy_line(line + (stage * 64 + is(Fault::beside_16)), p.line + (is(Fault::leaves_a_box) ? 0 : 64 * step), 64,
          full + stage);
      copy_box(a + stage * TILE, p.a, ALONG ? 0 : 64 * step, ALONG ? 64 * step : 0, full + stage);
      for (int i = 0; i < N; i += 64)
        copy_box(b + (stage * B + i * 64), p.b, ALONG ? 0 : 64 * step, ALONG ? 64 * step : i, full + stage);
    }
    return;
  }
  float c[N / 8][4] = {}, add[2] = {};
  uint32_t x[4][4];
  const int row = warp() * 16 + lane() / 4;
  for (int step = 0; step < STEPS; step++) {
    const int stage = step % STAGES, round = step / STAGES % 2;
    if (!is(Fault::reads_before_the_wait)) barrier_wait(full + stage, round ^ is(Fault::waits_for_the_wrong_phase));
    if (is(Fault::writes_a_tile) && thread() == 0) a[stage * TILE] = bf16{0};
    if (is(Fault::reads_a_barrier) && full[0] == 7) return;
    if (is(Fault::half_a_warpgroup) && warp() > 1 && step > 0) return;
    const uint64_t left = tile_descriptor(a + stage * TILE),
                   right = tile_descriptor(b + stage * B, is(Fault::another_stride) ? 4096 : 8192);
    for (int k = 0; REGISTERS && k < 4; k++)
      for (int e = 0; e < 4; e++) {
        const int i = row + e % 2 * 8, piece = 2 * k + e / 2;
        x[k][e] = load_as<uint32_t>(a, stage * TILE + i * 64 + (piece ^ i % 8) * 8 + lane() % 4 * 2);
      }
    if (!is(Fault::does_not_begin)) multiply_begin();
    for (int k = 0; k < 4; k++) {
      const int bytes = k * (ALONG ? 32 : 2048);
      constexpr bool B_ACROSS = ALONG == is(Fault::another_major_of_b);
      if constexpr (REGISTERS) multiply<B_ACROSS>(c, x[k], tile_descriptor_at(right, bytes), true);
      else
        multiply<ALONG == is(Fault::another_major), B_ACROSS>(c,
            tile_descriptor_at(left, is(Fault::another_turn)                 ? 64
                                     : is(Fault::other_tiles) && warp() == 2 ? 0
                                                                             : bytes),
            tile_descriptor_at(right, bytes), true);
    }
    for (int r = 0; r < 2; r++) add[r] += line[stage * 64 + row + 8 * r];
    multiply_commit();
    if (is(Fault::writes_registers_too_early)) x[3][lane() % 4] ^= 1;
    if (is(Fault::reads_sums_too_early)) p.y[thread()] = c[0][0];
    if (is(Fault::writes_sums_too_early)) c[0][0] = 1;
    if (is(Fault::arrives_before_the_products_end) && lane() == 0) barrier_arrive(empty + stage);
    multiply_wait<0>(c, x);
    if (!is(Fault::arrives_before_the_products_end) && (lane() == 0 || is(Fault::arrives_once_too_often)))
      barrier_arrive(empty + stage);
  }
  if (is(Fault::reads_sums_too_early)) return;
  for (int n = 0; n < N / 8; n++)
    for (int e = 0; e < 4; e++) p.y[(row + e / 2 * 8) * N + 8 * n + lane() % 4 * 2 + e % 2] = c[n][e] + add[e / 2];
}

#define PLANTED(name) \
  KERNEL(name, Params, THREADS) { pipeline<Fault::name>(p); }
KERNEL(sound_along, Params, THREADS) { pipeline<Fault::none>(p); }
KERNEL(sound_across, Params, THREADS) { pipeline<Fault::none, false>(p); }
KERNEL(sound_registers, Params, THREADS) { pipeline<Fault::none, true, true>(p); }
KERNEL(writes_registers_too_early, Params, THREADS) { pipeline<Fault::writes_registers_too_early, true, true>(p); }
KERNEL(another_stride, Params, THREADS) { pipeline<Fault::another_stride, false>(p); }
PLANTED(reads_before_the_wait)
PLANTED(waits_for_the_wrong_phase)
PLANTED(expects_nothing)
PLANTED(expects_too_much)
PLANTED(brings_without_waiting)
PLANTED(arrives_before_the_products_end)
PLANTED(arrives_once_too_often)
PLANTED(reads_sums_too_early)
PLANTED(writes_sums_too_early)
PLANTED(does_not_begin)
PLANTED(does_not_publish)
PLANTED(has_no_barrier)
PLANTED(writes_a_tile)
PLANTED(reads_a_barrier)
PLANTED(another_turn)
PLANTED(another_major)
PLANTED(another_major_of_b)
PLANTED(beside_1024)
PLANTED(beside_16)
PLANTED(half_a_warpgroup)
PLANTED(other_tiles)
PLANTED(leaves_a_box)

}  // namespace rlhf::cuda

using namespace rlhf;
using namespace rlhf::cuda;

namespace {

constexpr int SEEDS = 8, K = 64 * STEPS - 24;  // the last tile ends in zeros

struct Memory {
  std::vector<bf16> a, b;
  std::vector<float> line, y;
  int N;
  bool along;

  Memory(bool along, check::Random& random) : y(64 * 128, -7), N(along ? 64 : 128), along(along) {
    for (int i = 0; i < 64 * K; i++) a.push_back(to_bf16(float(random.normal())));
    for (int i = 0; i < N * K; i++) b.push_back(to_bf16(float(random.normal())));
    for (int i = 0; i < 64 * STEPS; i++) line.push_back(float(random.normal()));
  }
  bool run(GpuDevice& gpu, const char* kernel) {
    alignas(16) bf16 left[64 * K], right[128 * K];
    alignas(16) float lines[64 * STEPS];
    std::copy(a.begin(), a.end(), left), std::copy(b.begin(), b.end(), right),
        std::copy(line.begin(), line.end(), lines);
    Params p{{}, {}, global<const float>(lines, 64 * STEPS), global<float>(y.data(), 64 * N)};
    const auto map = [&](TensorMap& to, const bf16* x, int n) {
      return gpu.tensor_map(to.words, x, along ? n : K, along ? K : n, along ? K : n, 64);
    };
    check::expect(map(p.a, left, 64) && map(p.b, right, N), "maps: %s", gpu.failure);
    const int64_t grid[3] = {1, 1, 1};
    return gpu.launch(kernel, grid, THREADS, 2 * (STAGES * (TILE + 64 * 128)) + 2048, &p, sizeof p);
  }
  std::vector<double> wanted() const {
    const auto at = [&](const std::vector<bf16>& x, int n, int i, int k) {
      return double(to_float(x[size_t(along ? i * K + k : k * n + i)]));
    };
    std::vector<double> sums;
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int step = 0; step < STEPS; step++) sum += double(line[size_t(64 * step + i)]);
        for (int k = 0; k < K; k++) sum += at(a, 64, i, k) * at(b, N, j, k);
        sums.push_back(sum);
      }
    return sums;
  }
};

std::unique_ptr<GpuDevice> open(int seed) {
  setenv("RLHF_SIMT_SEED", std::to_string(seed).c_str(), 1);
  std::string why;
  auto gpu = open_gpu(90 + seed, nullptr, why);
  check::expect(gpu && gpu->architecture == 90, "a Hopper opens: %s", why.c_str());
  return gpu;
}

void expect_fault(const char* kernel, const char* what) {
  check::Random random(1);
  for (int seed = 0; seed < SEEDS; seed++) {
    Memory memory(true, random);
    const auto gpu = open(seed);
    const bool passed = memory.run(*gpu, kernel);
    check::expect(!passed && std::strstr(gpu->failure, what) && std::strstr(gpu->failure, kernel),
        "%s with seed %d: %s, wanted \"%s\"", kernel, seed, passed ? "passed" : gpu->failure, what);
    check::expect(memory.run(*gpu, "sound_along"), "the GPU after %s: %s", kernel, gpu->failure);
  }
}

void expect_wrong(const char* kernel, bool along) {
  check::Random random(2);
  for (int seed = 0; seed < SEEDS; seed++) {
    Memory memory(along, random);
    const auto gpu = open(seed);
    const bool passed = memory.run(*gpu, kernel);
    check::expect(passed, "%s: %s", kernel, gpu->failure);
    const auto wanted = memory.wanted();
    int wrong = 0;
    for (size_t i = 0; i < wanted.size(); i++) wrong += !(std::abs(double(memory.y[i]) - wanted[i]) < 1e-3);
    check::expect(wrong > 100, "%s: %d of %zu numbers are wrong", kernel, wrong, wanted.size());
  }
}

}  // namespace

int main() {
  for (const char* kernel : {"sound_along", "sound_across", "sound_registers"}) {
    check::Random random(3);
    Memory memory(std::strcmp(kernel, "sound_across") != 0, random);
    std::vector<float> first;
    for (int seed = 0; seed < SEEDS; seed++) {
      const auto gpu = open(seed);
      const bool passed = memory.run(*gpu, kernel);
      check::expect(passed, "%s with seed %d: %s", kernel, seed, gpu->failure);
      memory.y.resize(size_t(64 * memory.N));
      if (seed == 0) first = memory.y;
      check::expect(check::same_bits(memory.y, first), "%s with seed %d has other bits", kernel, seed);
      check::expect_near(memory.y, memory.wanted(), 1e-5, 1e-5, kernel);
      memory.y.assign(memory.y.size(), -7);
    }
  }
  expect_fault("reads_before_the_wait", "multiplied before");
  expect_fault("waits_for_the_wrong_phase", "");
  expect_fault("expects_nothing", "is multiplied before");
  expect_fault("expects_too_much", "for ever: 0 arrivals and 128 bytes are to come");
  expect_fault("brings_without_waiting", "");  // over a tile that is read, or into a phase that is not over
  expect_fault("arrives_before_the_products_end", "is brought while a product of warp");
  expect_fault("arrives_once_too_often", "");  // at once, or the next phase is over too soon
  expect_fault("writes_sums_too_early", "the sums of a product were written");
  expect_fault("does_not_begin", "no multiply_begin");
  expect_fault("does_not_publish", "was not published");
  expect_fault("has_no_barrier", "barrier");
  expect_fault("writes_a_tile", "with no fence or no barrier between");
  expect_fault("reads_a_barrier", "is a barrier's");
  expect_fault("beside_1024", "no multiple of 1024");
  expect_fault("beside_16", "multiples of 16");
  expect_fault("writes_registers_too_early", "the registers of a product were written");
  expect_fault("half_a_warpgroup", "");
  expect_fault("other_tiles", "multiply different tiles");
  expect_fault("leaves_a_box", "nobody waited for a box");
  expect_wrong("reads_sums_too_early", true);
  expect_wrong("another_turn", true);
  expect_wrong("another_major", true);
  expect_wrong("another_major_of_b", true);
  expect_wrong("another_stride", false);
  return check::report();
}
