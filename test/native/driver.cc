// native/cuda/driver.cc against a fake driver: what it opens it closes, in the context of the device, on its stream or
// on a given one; launches carry their sizes and parameters; errors of the driver and of kernels are told.
#include <dlfcn.h>

#include <memory>

#include "fake/libcuda.h"
#include "native/cuda/fatbins.h"
#include "native/cuda/gpu.h"
#include "test/native/check.h"

using namespace check;

// In place of the build's own.
const std::vector<rlhf::Fatbin>& rlhf::fatbins() {
  static const std::vector<Fatbin> all = {{"one.cu", "image"}, {"two.cu", "image"}};
  return all;
}

namespace {

fake::Record* record;

void opens_and_closes() {
  std::string why;
  {
    auto gpu = rlhf::open_gpu(0, nullptr, why);
    expect(gpu != nullptr, "opens: %s", why.c_str());
    if (!gpu) return;
    expect(gpu->name() == "Fake GPU" && gpu->multiprocessors == 132 && gpu->architecture == 90,
        "%s, %d multiprocessors, sm_%d", gpu->name().c_str(), gpu->multiprocessors, gpu->architecture);
    expect(record->contexts == 1 && record->streams == 1 && record->pools == 1 && record->modules == 2 &&
               record->allocations == 1,
        "%d contexts, %d streams, %d modules, %d allocations", record->contexts, record->streams, record->modules,
        record->allocations);
    const int64_t grid[3] = {3, 2, 1}, many[3] = {1, 65536, 1};
    int64_t params[12] = {};
    expect(gpu->launch("gae", grid, 128, 1000, params, sizeof params), "launches: %s", gpu->failure);
    expect(std::string(record->kernel) == "gae" && record->grid[0] == 3 && record->grid[1] == 2 &&
               record->threads == 128 && record->shared == 1000,
        "the launch of %s", record->kernel);
    const int lookups = record->lookups;
    expect(gpu->launch("gae", grid, 128, 200 << 10, params, sizeof params), "launches with much shared memory: %s",
        gpu->failure);
    expect(gpu->launch("gae", grid, 128, 100 << 10, params, sizeof params), "and with less: %s", gpu->failure);
    expect(record->lookups == lookups, "a kernel is looked up once");
    expect(!gpu->launch("gae", grid, 128, 300 << 10, params, sizeof params) &&
               std::strstr(gpu->failure, "gae: it needs 307200 bytes of shared memory, a block of this GPU has 232448"),
        "too much shared memory: %s", gpu->failure);
    expect(!gpu->launch("gae", many, 128, 0, params, sizeof params) && std::strstr(gpu->failure, "more blocks"),
        "too many blocks: %s", gpu->failure);
    expect(!gpu->launch("nothing", grid, 128, 0, params, sizeof params) &&
               std::strstr(gpu->failure, "nothing: there is no kernel"),
        "no kernel: %s", gpu->failure);
    expect(gpu->allocate(size_t(1) << 40) == nullptr, "more memory than there is");
    void* data = gpu->allocate(100);
    expect(gpu->fill(data, 7, 100) && gpu->read(params, data, 24) && params[2] == 0x0707070707070707, "fills: %s",
        gpu->failure);
    expect(
        !gpu->fill(data, 7, 1000) && std::strstr(gpu->failure, "cuMemsetD8Async"), "fills too much: %s", gpu->failure);
    gpu->release(data);
    expect(record->allocations == 1, "released");
  }
  expect(record->contexts == 0 && record->streams == 0 && record->pools == 0 && record->modules == 0 &&
             record->allocations == 0,
      "%d contexts, %d streams, %d modules, %d allocations are left", record->contexts, record->streams,
      record->modules, record->allocations);
}

void uses_a_given_stream() {
  char why[256] = "", theirs;
  rlhf_stream* s = rlhf_cuda_stream_create(0, &theirs, why, sizeof why);
  expect(s != nullptr, "opens on a stream: %s", why);
  if (!s) return;
  expect(rlhf_stream_wait(s) == RLHF_OK && record->stream == &theirs && record->streams == 0,
      "waits for the given stream");
  rlhf_stream_destroy(s);
  expect(record->streams == 0 && record->contexts == 0, "the given stream is left alone");
  expect(
      !rlhf_cuda_stream_create(1, nullptr, why, sizeof why) && std::strstr(why, "ordinal is 1, this machine has 1 GPU"),
      "no second GPU: %s", why);
}

void tells_what_kernels_latch() {
  char why[256] = "";
  rlhf_stream* s = rlhf_cuda_stream_create(0, nullptr, why, sizeof why);
  expect(s && std::string(rlhf_stream_isa(s)) == "Fake GPU", "opens: %s", why);
  if (!s) return;
  const auto tensor = [&](int32_t dtype, int64_t n) {
    rlhf_tensor t{};
    t.data = rlhf_stream_allocate(s, 4 * n), t.dtype = dtype, t.rank = 1, t.dims[0] = n, t.stride = 1;
    return t;
  };
  rlhf_tensor x = tensor(RLHF_F32, 5), y = tensor(RLHF_F32, 5), cu = tensor(RLHF_I32, 3);
  const auto gae = [&](std::vector<int32_t> offsets) {
    expect(rlhf_stream_write(s, cu.data, offsets.data(), 12) == RLHF_OK, "writes: %s", rlhf_message(s));
    expect(rlhf_gae(s, &x, &x, nullptr, &cu, 1, 1, &y, &y, nullptr, 0) == RLHF_OK, "enqueues: %s", rlhf_message(s));
    return rlhf_stream_wait(s);
  };
  expect(gae({0, 2, 5}) == RLHF_OK, "sound offsets: %s", rlhf_message(s));
  expect(gae({0, 6, 5}) == RLHF_BAD_OFFSETS && std::strstr(rlhf_message(s), "gae: offsets"), "bad offsets: %s",
      rlhf_message(s));
  expect(rlhf_stream_wait(s) == RLHF_OK, "told once: %s", rlhf_message(s));
  expect(gae({0, 2, 5}) == RLHF_OK, "sound offsets again: %s", rlhf_message(s));
  x.dims[0] = 4;
  expect(rlhf_gae(s, &x, &x, nullptr, &cu, 1, 1, &y, &y, nullptr, 0) == RLHF_BAD_ARGUMENT,
      "shapes are checked at the call");
  for (const rlhf_tensor* t : {&x, &y, &cu}) rlhf_stream_release(s, t->data);
  rlhf_stream_destroy(s);
  expect(record->allocations == 0 && record->contexts == 0, "%d allocations, %d contexts are left", record->allocations,
      record->contexts);
}

// y = x W^T in bf16 goes to the kernel of a Hopper, which this GPU says it is, where rows begin at 16 bytes.
void takes_the_kernels_of_a_hopper() {
  char why[256] = "";
  rlhf_stream* s = rlhf_cuda_stream_create(0, nullptr, why, sizeof why);
  expect(s != nullptr, "opens: %s", why);
  if (!s) return;
  const auto tensor = [&](int32_t dtype, int64_t rows, int64_t columns) {
    rlhf_tensor t{};
    t.data = rlhf_stream_allocate(s, 4 * rows * columns), t.dtype = dtype, t.rank = 2, t.dims[0] = rows,
    t.dims[1] = t.stride = columns;
    return t;
  };
  for (const int64_t I : {72, 70}) {
    rlhf_tensor x = tensor(RLHF_BF16, 300, I), weight = tensor(RLHF_BF16, 500, I), y = tensor(RLHF_F32, 300, 500);
    const int maps = record->maps;
    expect(rlhf_linear(s, &x, &weight, nullptr, &y, nullptr, 0) == RLHF_OK, "enqueues: %s", rlhf_message(s));
    const bool whole = I % 8 == 0;
    expect(std::string(record->kernel) == (whole ? "linear_bf16_hopper" : "linear_bf16"), "I %d takes %s", int(I),
        record->kernel);
    expect(record->grid[0] == 6 && record->threads == (whole ? 384u : 256u) && record->maps == maps + 2 * whole,
        "%u blocks of %u, %d maps", record->grid[0], record->threads, record->maps - maps);
    for (const rlhf_tensor* t : {&x, &weight, &y}) rlhf_stream_release(s, t->data);
  }
  rlhf_stream_destroy(s);
}

}  // namespace

int main() {
  void* library = dlopen(RLHF_FAKE_CUDA, RTLD_NOW);  // from now on it is what libcuda.so.1 names
  auto* find = library ? reinterpret_cast<fake::Record* (*)()>(dlsym(library, "fake_record")) : nullptr;
  expect(find != nullptr, "the fake driver is found");
  if (!find) return report();
  record = find();
  opens_and_closes();
  uses_a_given_stream();
  tells_what_kernels_latch();
  takes_the_kernels_of_a_hopper();
  return report();
}
