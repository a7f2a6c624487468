// The simulator of the GPU, held to what it is for: kernels with one fault each, which must be told with the kernel's name and the thread,
// beside the same kernels without it, which must run.
#include "check.h"
#include "kernels/cuda/simt.h"
#include "native/gpu.h"

using namespace check;

namespace rlhf::cuda {

struct Numbers {
  Global<const float> x;
  Global<float> y;
  int32_t fault;  // 1: the fault is there
};

// y = x reversed, through shared memory
KERNEL(reverse, Numbers, 64) {
  SharedMemory memory;
  Shared<float> tile = memory.take<float>(64);
  tile[thread()] = p.x[thread()];
  if (!p.fault) sync_threads();
  p.y[thread()] = tile[63 - thread()];
}

// y = x of the neighbour within the warp; the warp's barrier orders its lanes alone
KERNEL(neighbour, Numbers, 64) {
  SharedMemory memory;
  Shared<float> tile = memory.take<float>(64);
  tile[thread()] = p.x[thread()];
  sync_warp();
  p.y[thread()] = tile[thread() ^ (p.fault ? 32 : 1)];
}

// every thread leaves its number in one place
KERNEL(one_place, Numbers, 64) {
  SharedMemory memory;
  Shared<float> place = memory.take<float>(1);
  if (p.fault || thread() == 5) place[0] = p.x[thread()];
  sync_threads();
  if (thread() == 0) p.y[0] = place[0];
}

// reads a place, then overwrites it
KERNEL(overwritten, Numbers, 64) {
  SharedMemory memory;
  Shared<float> tile = memory.take<float>(64);
  tile[thread()] = p.x[thread()];
  sync_threads();
  const float x = tile[63 - thread()];
  if (!p.fault) sync_threads();
  tile[thread()] = x + 1;
  sync_threads();
  p.y[thread()] = tile[thread()];
}

KERNEL(out_of_bounds, Numbers, 32) { p.y[thread()] = p.x[thread() + p.fault * 33]; }
KERNEL(written_out_of_bounds, Numbers, 32) { p.y[thread() - p.fault] = 1; }

KERNEL(shared_out_of_bounds, Numbers, 32) {
  SharedMemory memory;
  Shared<float> first = memory.take<float>(32), second = memory.take<float>(32);
  second[thread()] = 1;
  first[thread() + p.fault] = 2;
  p.y[thread()] = first[thread()] + second[thread()];
}

KERNEL(not_written, Numbers, 32) {
  SharedMemory memory;
  Shared<float> tile = memory.take<float>(32);
  if (!p.fault || thread() != 7) tile[thread()] = 1;
  p.y[thread()] = tile[thread()];
}

KERNEL(copied, Numbers, 32) {
  SharedMemory memory;
  Shared<float> tile = memory.take<float>(128);
  copy_async16(tile + 4 * thread(), p.x + 4 * (thread() % 8), thread() < 8);
  copy_async_commit();
  if (!p.fault) copy_async_wait<0>();
  p.y[thread()] = tile[4 * thread()];
}

// two groups under way: the wait that leaves one brings the older
KERNEL(copied_twice, Numbers, 32) {
  SharedMemory memory;
  Shared<float> older = memory.take<float>(128), newer = memory.take<float>(128);
  copy_async16(older + 4 * thread(), p.x, true);
  copy_async_commit();
  copy_async16(newer + 4 * thread(), p.x + 4, true);
  copy_async_commit();
  copy_async_wait<1>();
  p.y[thread()] = p.fault ? newer[4 * thread()] : older[4 * thread()];
}

KERNEL(shuffled, Numbers, 64) {
  float x = p.x[thread()];
  if (!p.fault || thread() != 40) x = shuffle_xor(x, 1);
  p.y[thread()] = x;
}

KERNEL(left_early, Numbers, 64) {
  if (p.fault && thread() == 3) return;
  sync_warp();
  p.y[thread()] = 1;
}

KERNEL(different_meetings, Numbers, 32) {
  float x = p.x[thread()];
  if (p.fault && thread() == 9) x = ballot(x > 0) ? 1 : 0;
  else x = shuffle_xor(x, 1);
  p.y[thread()] = x;
}

KERNEL(misaligned, Numbers, 8 * 4) {
  const float4 x = load_as<float4>(p.x, 4 * (thread() % 8) + p.fault);
  p.y[thread()] = x.x;
}

KERNEL(absent, Numbers, 32) { p.y[thread()] = (p.fault ? Global<const float>() : p.x)[thread()]; }

}  // namespace rlhf::cuda

namespace {

std::unique_ptr<rlhf::GpuDevice> gpu;
alignas(64) float x[64], y[64];

bool launch(const char* kernel, int threads, int shared, int fault) {
  const int64_t grid[3] = {1, 1, 1};
  const rlhf::cuda::Numbers params{rlhf::cuda::global<const float>(x, 64), rlhf::cuda::global(y, 64), fault};
  return gpu->launch(kernel, grid, threads, shared, &params, sizeof params);
}

void catches(const char* kernel, int threads, int shared, const char* wanted) {
  expect(launch(kernel, threads, shared, 0), "%s without its fault: %s", kernel, gpu->failure);
  const bool passed = launch(kernel, threads, shared, 1);
  const std::string told = passed ? "nothing" : gpu->failure;
  expect(!passed && told.find(wanted) != std::string::npos && told.find(kernel) == 0 && told.find("thread ") != std::string::npos, "%s told \"%s\", wanted \"%s\"",
      kernel, told.c_str(), wanted);
}

void refuses(const char* what, bool passed, const char* wanted) {
  expect(!passed && std::strstr(gpu->failure, wanted), "%s: \"%s\", wanted \"%s\"", what, passed ? "passed" : gpu->failure, wanted);
}

}  // namespace

int main() {
  std::string why;
  for (int i = 0; i < 64; i++) x[i] = float(i + 1);
  for (int seed = 0; seed < 20; seed++) {
    gpu = rlhf::open_gpu(seed, nullptr, why);
    catches("reverse", 64, 256, "no barrier between");
    catches("neighbour", 64, 256, "no barrier between");
    catches("one_place", 64, 4, "no barrier between");
    catches("overwritten", 64, 256, "no barrier between");
    catches("out_of_bounds", 32, 0, "of an array of 64");
    catches("written_out_of_bounds", 32, 0, "element -1 of an array of 64");
    catches("shared_out_of_bounds", 32, 256, "shared element 32 of an array of 32");
    catches("not_written", 32, 128, "read before anything was written to it");
    catches("copied", 32, 512, "before the copy to it was waited for");
    catches("copied_twice", 32, 1024, "before the copy to it was waited for");
    catches("shuffled", 64, 0, "waits for its warp");
    catches("left_early", 64, 0, "has returned");
    catches("different_meetings", 32, 0, "meet in different operations");
    catches("misaligned", 32, 0, "is not aligned to 16 bytes");
    catches("absent", 32, 0, "of an array that is not there");
    launch("reverse", 64, 256, 0);
    for (int i = 0; i < 64; i++) expect(y[i] == x[63 - i], "reverse gives y[%d] = %g", i, y[i]);
    launch("copied", 32, 512, 0);
    for (int i = 0; i < 32; i++) expect(y[i] == (i < 8 ? x[4 * i] : 0), "copied gives y[%d] = %g", i, y[i]);
    launch("shuffled", 64, 0, 0);
    for (int i = 0; i < 64; i++) expect(y[i] == x[i ^ 1], "shuffled gives y[%d] = %g", i, y[i]);
    refuses("a kernel that there is not", launch("nothing", 32, 0, 0), "no kernel of this name");
    refuses("the wrong number of threads", launch("reverse", 32, 256, 0), "another number of threads");
    refuses("too little shared memory", launch("reverse", 64, 128, 0), "was launched with 128");
    refuses("more shared memory than there is", launch("reverse", 64, 1 << 20, 0), "more shared memory");
  }
  return report();
}
