// The simulated GPU itself: each fault that it promises to see is planted and seen, for several orders of the threads;
// sound kernels pass, with the results that the hardware's fragments, votes and copies have.
#include <algorithm>
#include <memory>

#include "kernels/cuda/simt.h"
#include "native/cuda/gpu.h"
#include "test/native/check.h"

namespace rlhf::cuda {

constexpr int THREADS = 64, WORDS = 1024;  // of shared memory

struct Params {
  Global<const float> x;  // [64]
  Global<float> y;  // [64]
  Global<const float> absent;
  Global<const bf16> a, b;  // [16][16]
};

// ---- faults

KERNEL(two_writers, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(1);
  if (lane() == 0) tile[0] = p.x[warp()];
}
KERNEL(no_block_barrier, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(THREADS);
  tile[thread()] = p.x[thread()];
  sync_warp();
  p.y[thread()] = tile[THREADS - 1 - thread()];
}
KERNEL(no_warp_barrier, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(THREADS);
  tile[thread()] = p.x[thread()];
  p.y[thread()] = tile[thread() ^ 1];
}
KERNEL(stale, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(THREADS);
  tile[thread()] = 0.0f;
  sync_threads();
  tile[thread()] = p.x[thread()];
  p.y[thread()] = tile[THREADS - 1 - thread()];
}
KERNEL(write_after_read, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(THREADS);
  tile[thread()] = p.x[thread()];
  sync_threads();
  p.y[thread()] = tile[THREADS - 1 - thread()];
  tile[thread()] = 0.0f;
}
KERNEL(write_after_lanes_read, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(2);
  if (lane() == 0) tile[warp()] = p.x[0];
  sync_warp();
  p.y[thread()] = tile[warp()];
  if (lane() == 0) tile[warp()] = 1.0f;
}
KERNEL(unwritten, Params, THREADS) {
  SharedMemory memory;
  p.y[thread()] = memory.take<float>(THREADS)[thread()];
}
KERNEL(past_shared_array, Params, THREADS) {
  SharedMemory memory;
  memory.take<float>(THREADS)[thread() + 1] = 0.0f;
}
KERNEL(past_shared_memory, Params, THREADS) {
  SharedMemory memory;
  memory.take<float>(WORDS + 4);
}
KERNEL(past_the_end, Params, THREADS) { p.y[thread()] = p.x[thread() + 1]; }
KERNEL(before_the_start, Params, THREADS) { p.y[thread() - 1] = p.x[0]; }
KERNEL(vector_past_the_end, Params, THREADS) { store_as<float4>(p.y, 4 * thread(), float4{0, 0, 0, 0}); }
KERNEL(misaligned, Params, THREADS) { p.y[thread()] = load_as<float4>(p.x, 2).x; }
KERNEL(absent_array, Params, THREADS) { p.y[thread()] = p.absent[0]; }
KERNEL(before_the_wait, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(4 * THREADS);
  copy_async16(tile + 4 * thread(), p.x + thread() % 16 * 4, true);
  copy_async_commit();
  p.y[thread()] = tile[4 * thread()];
}
KERNEL(waits_for_too_few, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(4 * THREADS);
  copy_async16(tile + 4 * thread(), p.x + thread() % 16 * 4, true);
  copy_async_commit();
  copy_async_wait<1>();
  p.y[thread()] = tile[4 * thread()];
}
KERNEL(waits_for_its_own, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(4 * THREADS);
  copy_async16(tile + 4 * thread(), p.x + thread() % 16 * 4, true);
  copy_async_commit();
  copy_async_wait<0>();
  p.y[thread()] = tile[4 * (thread() ^ 1)];
}
KERNEL(half_a_shuffle, Params, THREADS) {
  if (lane() < 16) p.y[thread()] = shuffle_xor(p.x[thread()], 1);
}
KERNEL(two_meetings, Params, THREADS) {
  p.y[thread()] = lane() < 16 ? shuffle_xor(p.x[thread()], 1) : float(ballot(true));
}
KERNEL(shuffle_at_a_barrier, Params, THREADS) {
  if (lane() < 16) sync_threads();
  p.y[thread()] = shuffle_xor(p.x[thread()], 1);
}

// ---- sound

KERNEL(round_by_round, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> one = memory.take<float>(2);
  for (int round = 0; round < 3; round++) {  // read by all, then written by one
    if (lane() == 0) one[warp()] = p.x[round];
    sync_warp();
    p.y[thread()] = one[warp()];
    sync_warp();
  }
}
KERNEL(through_shared, Params, THREADS) {
  SharedMemory memory;
  const Shared<float> tile = memory.take<float>(2 * THREADS);
  if (thread() < 32) copy_async16(tile + 4 * thread(), p.x + thread() % 16 * 4, thread() < 16);
  copy_async_commit();
  copy_async_wait<0>();
  sync_threads();
  const float reversed = tile[THREADS - 1 - thread()], nothing = tile[THREADS + thread()];
  sync_threads();
  tile[thread()] = reversed;
  sync_threads();
  p.y[thread()] = tile[thread()] + nothing;
}
KERNEL(sums_of_lanes, Params, THREADS) {
  float sum = p.x[thread()];
  for (int n = 1; n < 32; n *= 2) {
    const float before = shuffle_up(sum, n);
    if (lane() >= n) sum += before;
  }
  const uint32_t odd = ballot(lane() % 2 != 0);
  p.y[thread()] =
      odd == 0xaaaaaaaau && !any(false) ? sum - shuffle(sum, 0) + shuffle_down(p.x[thread()], 40 - lane()) : -1.0f;
}
// y[m, n] of 8 columns, from a [16,16] and b [n,k] (plain) or b [k,n] (transposed)
template <bool TRANSPOSED>
void product(const Params& p) {
  SharedMemory memory;
  const Shared<bf16> a = memory.take<bf16>(256), b = memory.take<bf16>(256);
  for (int i = thread(); i < 256; i += THREADS) a[i] = p.a[i], b[i] = p.b[i];
  sync_threads();
  if (warp() > 0) return;
  const int i = lane();
  uint32_t left[4], right[4];
  load_matrix_x4(left, a + (i % 16 * 16 + i / 16 * 8));
  if (TRANSPOSED) load_matrix_x4_transposed(right, b + (i % 16 * 16 + i / 16 * 8));
  else load_matrix_x4(right, b + ((i / 16 * 8 + i % 8) * 16 + i / 8 % 2 * 8));
  for (int half = 0; half < 2; half++) {
    const uint32_t pair[2] = {right[2 * half], right[2 * half + 1]};
    float c[4] = {1, 1, 1, 1};
    mma_bf16(c, left, pair);
    for (int k = 0; k < 4; k++) p.y[(i / 4 + k / 2 * 8) * 16 + half * 8 + i % 4 * 2 + k % 2] = c[k];
  }
}
KERNEL(plain_product, Params, THREADS) { product<false>(p); }
KERNEL(transposed_product, Params, THREADS) { product<true>(p); }
KERNEL(last_writer, Params, THREADS) { p.y[0] = float(64 * block_x() + thread()); }

}  // namespace rlhf::cuda

using namespace rlhf;
using namespace rlhf::cuda;

namespace {

struct Memory {
  std::vector<float> x = std::vector<float>(64), y = std::vector<float>(256, -7);
  std::vector<bf16> a, b;
  Params params(int64_t outputs = 64) {
    return {global<const float>(x.data(), 64), global<float>(y.data(), outputs), {}, global<const bf16>(a.data(), 256),
        global<const bf16>(b.data(), 256)};
  }
  explicit Memory(check::Random& random) {
    for (auto& value : x) value = float(random.below(100));
    for (int i = 0; i < 256; i++)
      a.push_back(to_bf16(float(random.normal()))), b.push_back(to_bf16(float(random.normal())));
  }
};

std::unique_ptr<GpuDevice> open(int seed) {
  setenv("RLHF_SIMT_SEED", std::to_string(seed).c_str(), 1);
  std::string why;
  return open_gpu(seed, nullptr, why);
}

bool run(GpuDevice& gpu, const char* kernel, const Params& params, int64_t blocks = 1, int threads = THREADS) {
  const int64_t grid[3] = {blocks, 1, 1};
  return gpu.launch(kernel, grid, threads, 4 * WORDS, &params, sizeof params);
}

void expect_fault(const char* kernel, const char* what) {
  check::Random random(1);
  for (int seed = 0; seed < 8; seed++) {
    Memory memory(random);
    const auto gpu = open(seed);
    const bool passed = run(*gpu, kernel, memory.params());
    check::expect(!passed && std::strstr(gpu->failure, what) && std::strstr(gpu->failure, kernel),
        "%s with seed %d: %s, wanted \"%s\"", kernel, seed, passed ? "passed" : gpu->failure, what);
    const bool goes_on = run(*gpu, "through_shared", memory.params());
    check::expect(goes_on, "the GPU after %s: %s", kernel, gpu->failure);
  }
}

std::vector<float> sound(const char* kernel, Memory& memory, int64_t outputs = 64) {
  std::vector<float> first;
  for (int seed = 0; seed < 8; seed++) {
    const auto gpu = open(seed);
    const bool passed = run(*gpu, kernel, memory.params(outputs));
    check::expect(passed, "%s with seed %d: %s", kernel, seed, gpu->failure);
    if (seed == 0) first = memory.y;
    check::expect(check::same_bits(memory.y, first), "%s with seed %d has other bits", kernel, seed);
    memory.y.assign(memory.y.size(), -7);
  }
  return first;
}

}  // namespace

int main() {
  expect_fault("two_writers", "with no barrier between");
  expect_fault("no_block_barrier", "is read ");
  expect_fault("no_warp_barrier", "is read ");
  expect_fault("stale", "with no barrier between");
  expect_fault("write_after_read", "with no barrier between");
  expect_fault("write_after_lanes_read", "with no barrier between");
  expect_fault("unwritten", "before anything was written");
  expect_fault("past_shared_array", "shared element 64 of an array of 64");
  expect_fault("past_shared_memory", "of shared memory");
  expect_fault("past_the_end", "element 64 of an array of 64");
  expect_fault("before_the_start", "element -1 of an array of 64");
  expect_fault("vector_past_the_end", "of an array of 64");
  expect_fault("misaligned", "not aligned to 16 bytes");
  expect_fault("absent_array", "an array that is not there");
  expect_fault("before_the_wait", "before the copy to it was waited for");
  expect_fault("waits_for_too_few", "before the copy to it was waited for");
  expect_fault("waits_for_its_own", "is read ");
  expect_fault("half_a_shuffle", "waits for its warp");
  expect_fault("two_meetings", "different operations");
  expect_fault("shuffle_at_a_barrier", "waits for its warp");

  check::Random random(2);
  Memory memory(random);
  const auto reversed = sound("through_shared", memory), rounds = sound("round_by_round", memory),
             lanes = sound("sums_of_lanes", memory);
  for (int i = 0; i < 64; i++) {
    check::expect(
        reversed[size_t(i)] == memory.x[size_t(63 - i)], "reversed[%d] is %g", i, double(reversed[size_t(i)]));
    check::expect(rounds[size_t(i)] == memory.x[2], "rounds[%d] is %g", i, double(rounds[size_t(i)]));
    const int first = i / 32 * 32,
              from = i % 32 + (40 - i % 32) < 32 ? first + 40 - first : i;  // past the warp: its own
    float sum = memory.x[size_t(from)] - memory.x[size_t(first)];
    for (int k = first; k <= i; k++) sum += memory.x[size_t(k)];
    check::expect(lanes[size_t(i)] == sum, "lanes[%d] is %g, wanted %g", i, double(lanes[size_t(i)]), double(sum));
  }
  for (const bool transposed : {false, true}) {
    const auto c = sound(transposed ? "transposed_product" : "plain_product", memory, 256);
    std::vector<double> wanted;
    for (int m = 0; m < 16; m++)
      for (int n = 0; n < 16; n++) {
        double sum = 1;
        for (int k = 0; k < 16; k++)
          sum += double(to_float(memory.a[size_t(16 * m + k)])) *
                 double(to_float(memory.b[size_t(transposed ? 16 * k + n : 16 * n + k)]));
        wanted.push_back(sum);
      }
    check::expect_near(c, wanted, 1e-6, 1e-6, transposed ? "a b" : "a b^T");
  }

  std::vector<float> last;
  for (int seed = 0; seed < 8; seed++) {
    const auto gpu = open(seed);
    const bool passed = run(*gpu, "last_writer", memory.params(), 4);
    check::expect(passed, "last_writer: %s", gpu->failure);
    last.push_back(memory.y[0]);
  }
  check::expect(
      std::count(last.begin(), last.end(), last[0]) < 8, "blocks and threads run in one order, whatever the seed");

  const auto gpu = open(0);
  check::expect(!run(*gpu, "no_such_kernel", memory.params()), "a kernel that is not there was launched");
  check::expect(
      !run(*gpu, "through_shared", memory.params(), 1, 32), "a kernel was launched with other threads than it states");
  return check::report();
}
