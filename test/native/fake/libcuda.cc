// A driver of a GPU whose memory is the host's, for native/cuda/driver.cc: it knows check_offsets and the names of a
// few kernels more, writes down what it is asked, and refuses what a real one would refuse: calls outside the context,
// memory that is not its own, shared memory that was not allowed.
#include "libcuda.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

fake::Record record{};
std::map<uintptr_t, size_t> live;
std::vector<void*> contexts;
struct Function {
  char name[64];
  int64_t shared = 48 << 10;
};
char the_context, the_pool;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500 };

bool current() { return !contexts.empty() && contexts.back() == &the_context; }
bool within(unsigned long long at, size_t bytes) {
  auto after = live.upper_bound(uintptr_t(at));
  if (after == live.begin()) return false;
  --after;
  return at + bytes <= after->first + after->second;
}

}  // namespace

#define CALL __attribute__((visibility("default"))) int
extern "C" {

__attribute__((visibility("default"))) fake::Record* fake_record() { return &record; }

CALL cuInit(unsigned) { return OK; }
CALL cuGetErrorName(int error, const char** name) {
  return *name = error == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE", OK;
}
CALL cuGetErrorString(int, const char** text) { return *text = "as the fake says", OK; }
CALL cuDeviceGetCount(int* count) { return *count = 1, OK; }
CALL cuDeviceGet(int* device, int ordinal) { return *device = 7, ordinal == 0 ? OK : INVALID; }
CALL cuDeviceGetName(char* name, int size, int device) {
  return std::snprintf(name, size_t(size), "Fake GPU"), device == 7 ? OK : INVALID;
}
CALL cuDeviceGetAttribute(int* value, int attribute, int) {
  return *value = attribute == 16    ? 132
                  : attribute == 75  ? 9
                  : attribute == 97  ? 227 << 10
                  : attribute == 115 ? 1
                                     : 0,
         OK;
}
CALL cuDevicePrimaryCtxRetain(void** context, int device) {
  return record.contexts++, *context = &the_context, device == 7 ? OK : INVALID;
}
CALL cuDevicePrimaryCtxRelease_v2(int) { return record.contexts--, OK; }
CALL cuCtxPushCurrent_v2(void* context) { return contexts.push_back(context), OK; }
CALL cuCtxPopCurrent_v2(void** context) {
  if (contexts.empty()) return NO_CONTEXT;
  *context = contexts.back(), contexts.pop_back();
  return OK;
}
CALL cuStreamCreate(void** stream, unsigned flags) {
  if (!current() || flags != 1) return INVALID;
  return record.streams++, *stream = std::malloc(1), OK;
}
CALL cuStreamDestroy_v2(void* stream) { return record.streams--, std::free(stream), OK; }
CALL cuStreamSynchronize(void* stream) { return record.waits++, record.stream = stream, current() ? OK : NO_CONTEXT; }
CALL cuMemPoolCreate(void** pool, const int* properties) {  // pinned, of this process, on the device
  if (!current() || properties[0] != 1 || properties[1] || properties[2] != 1 || properties[3] != 7) return INVALID;
  for (int i = 4; i < 22; i++)
    if (properties[i]) return INVALID;
  return record.pools++, *pool = &the_pool, OK;
}
CALL cuMemPoolDestroy(void* pool) { return pool == &the_pool ? (record.pools--, OK) : INVALID; }
CALL cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
  return pool == &the_pool && attribute == 4 && *static_cast<uint64_t*>(value) == UINT64_MAX ? OK : INVALID;
}
CALL cuMemAllocFromPoolAsync(unsigned long long* at, size_t bytes, void* pool, void*) {
  if (!current() || pool != &the_pool) return NO_CONTEXT;
  if (bytes > (size_t(1) << 30)) return NO_MEMORY;
  void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(p, 0xff, bytes);
  live[uintptr_t(p)] = bytes;
  return record.allocations++, *at = uintptr_t(p), OK;
}
CALL cuMemFreeAsync(unsigned long long at, void*) {
  if (!current() || !live.erase(uintptr_t(at))) return INVALID;
  return record.allocations--, std::free(reinterpret_cast<void*>(at)), OK;
}
CALL cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void*) {
  return current() && within(to, bytes) ? (std::memcpy(reinterpret_cast<void*>(to), from, bytes), OK) : INVALID;
}
CALL cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void*) {
  return current() && within(from, bytes) ? (std::memcpy(to, reinterpret_cast<void*>(from), bytes), OK) : INVALID;
}
CALL cuMemsetD8Async(unsigned long long to, unsigned char byte, size_t bytes, void*) {
  return current() && within(to, bytes) ? (std::memset(reinterpret_cast<void*>(to), byte, bytes), OK) : INVALID;
}
CALL cuPointerGetAttribute(void*, int, unsigned long long) { return INVALID; }  // pageable memory
CALL cuModuleLoadData(void** module, const void* image) {
  if (!current()) return NO_CONTEXT;
  if (std::strcmp(static_cast<const char*>(image), "image")) return NO_BINARY;
  return record.modules++, *module = std::malloc(1), OK;
}
CALL cuModuleUnload(void* module) { return record.modules--, std::free(module), OK; }
CALL cuModuleGetFunction(void** function, void*, const char* name) {
  if (std::strcmp(name, "check_offsets") && std::strcmp(name, "gae") && std::strncmp(name, "linear_bf16", 11))
    return NOT_FOUND;
  static std::map<std::string, Function> functions;
  Function& f = functions[name];
  std::snprintf(f.name, sizeof f.name, "%s", name);
  return record.lookups++, *function = &f, OK;
}
CALL cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8 || value > 227 << 10) return INVALID;
  return static_cast<Function*>(function)->shared = value, OK;
}
CALL cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* data, const uint64_t* sizes,
    const uint64_t* strides, const unsigned* box, const unsigned* steps, int interleaved, int swizzle, int, int fill) {
  if (!current()) return NO_CONTEXT;
  if (uintptr_t(map) % 64 || type != 9 || rank != 2 || uintptr_t(data) % 16 || strides[0] % 16 ||
      sizes[0] * 2 > strides[0])
    return INVALID;
  if (box[0] * 2 != 128 || box[1] > 256 || steps[0] != 1 || steps[1] != 1 || interleaved || swizzle != 3 || fill)
    return INVALID;
  record.maps++;
  return OK;
}
CALL cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
    unsigned shared, void* stream, void** arguments, void**) {
  const auto* f = static_cast<Function*>(function);
  if (!current() || int64_t(shared) > f->shared) return INVALID;
  std::snprintf(record.kernel, sizeof record.kernel, "%s", f->name);
  record.grid[0] = x, record.grid[1] = y, record.grid[2] = z, record.threads = threads, record.shared = shared,
  record.stream = stream;
  if (std::strcmp(f->name, "check_offsets") == 0) {  // as kernels/cuda/offsets.cu
    const auto* p = static_cast<const fake::Offsets*>(arguments[0]);
    for (int64_t b = 0; b <= p->B; b++)
      if (b == 0 ? p->offsets[0] != 0 : p->offsets[b] < p->offsets[b - 1] || (b == p->B && p->offsets[b] != p->N))
        *p->error = 3;
  }
  return OK;
}

}  // extern "C"
