// NVIDIA's driver, found when a GPU is opened, so that one binary runs with and without it. The few prototypes are
// declared here: no CUDA header is needed. The kernels are images of machine code and PTX, one per file of
// kernels/cuda, that the build embeds.
#if !RLHF_SIMT
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "native/cuda/fatbins.h"
#include "native/cuda/gpu.h"
#include "native/package/glibc.h"

namespace rlhf {

namespace {

using Result = int;  // CUresult; 0: success
using Context_ = void*;
using Stream = void*;
using Module = void*;
using Function = void*;
using Address = unsigned long long;  // CUdeviceptr

enum : int {  // of the driver's enumerations
  NON_BLOCKING = 1,
  MULTIPROCESSORS = 16,
  CAPABILITY_MAJOR = 75,
  CAPABILITY_MINOR = 76,
  SHARED_MOST = 97,  // bytes that a block may ask for
  MEMORY_POOLS = 115,
  RELEASE_THRESHOLD = 4,
  MOST_DYNAMIC_SHARED = 8,
  MEMORY_TYPE = 2,
  BFLOAT16 = 9,  // of tensor maps
  NOT_INTERLEAVED = 0,
  SWIZZLE_128 = 3,
  PROMOTION_256 = 3,
  ZEROS = 0
};

struct PoolProperties {  // CUmemPoolProps
  int type = 1, handles = 0;  // pinned, not shared with other processes
  int where = 1, device;  // on this device
  void* reserved[9] = {};
};

// X(member, symbol, parameters)
#define DRIVER(X)                                                                                                   \
  X(init, cuInit, unsigned)                                                                                         \
  X(error_name, cuGetErrorName, Result, const char**)                                                               \
  X(error_text, cuGetErrorString, Result, const char**)                                                             \
  X(device_count, cuDeviceGetCount, int*)                                                                           \
  X(device_get, cuDeviceGet, int*, int)                                                                             \
  X(device_name, cuDeviceGetName, char*, int, int)                                                                  \
  X(device_attribute, cuDeviceGetAttribute, int*, int, int)                                                         \
  X(retain, cuDevicePrimaryCtxRetain, Context_*, int)                                                               \
  X(release, cuDevicePrimaryCtxRelease_v2, int)                                                                     \
  X(push, cuCtxPushCurrent_v2, Context_)                                                                            \
  X(pop, cuCtxPopCurrent_v2, Context_*)                                                                             \
  X(stream_create, cuStreamCreate, Stream*, unsigned)                                                               \
  X(stream_destroy, cuStreamDestroy_v2, Stream)                                                                     \
  X(stream_wait, cuStreamSynchronize, Stream)                                                                       \
  X(pool_create, cuMemPoolCreate, void**, const PoolProperties*)                                                    \
  X(pool_destroy, cuMemPoolDestroy, void*)                                                                          \
  X(pool_set, cuMemPoolSetAttribute, void*, int, void*)                                                             \
  X(allocate, cuMemAllocFromPoolAsync, Address*, size_t, void*, Stream)                                             \
  X(free, cuMemFreeAsync, Address, Stream)                                                                          \
  X(to_device, cuMemcpyHtoDAsync_v2, Address, const void*, size_t, Stream)                                          \
  X(to_host, cuMemcpyDtoHAsync_v2, void*, Address, size_t, Stream)                                                  \
  X(fill, cuMemsetD8Async, Address, unsigned char, size_t, Stream)                                                  \
  X(pointer_attribute, cuPointerGetAttribute, void*, int, Address)                                                  \
  X(module_load, cuModuleLoadData, Module*, const void*)                                                            \
  X(module_unload, cuModuleUnload, Module)                                                                          \
  X(function, cuModuleGetFunction, Function*, Module, const char*)                                                  \
  X(function_set, cuFuncSetAttribute, Function, int, int)                                                           \
  X(launch, cuLaunchKernel, Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, \
      void**, void**)                                                                                               \
  X(tensor_map, cuTensorMapEncodeTiled, void*, int, unsigned, void*, const uint64_t*, const uint64_t*,              \
      const unsigned*, const unsigned*, int, int, int, int)

struct Driver {
#define MEMBER(member, symbol, ...) Result (*member)(__VA_ARGS__) = nullptr;
  DRIVER(MEMBER)
  std::string missing;  // why there is none

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      missing = "libcuda.so.1 was not found; a GPU needs NVIDIA's driver";
      return;
    }
#define LOAD(member, symbol, ...)                                       \
  member = reinterpret_cast<decltype(member)>(dlsym(library, #symbol)); \
  if (!member && missing.empty()) missing = "libcuda.so.1 has no " #symbol "; the driver is older than CUDA 12";
    DRIVER(LOAD)
    if (!missing.empty()) return;
    if (Result r = init(0)) missing = text("cuInit", r);
  }

  std::string text(const char* call, Result r) const {
    const char *name = nullptr, *description = nullptr;
    error_name(r, &name), error_text(r, &description);
    return std::string(call) + " failed with " + (name ? name : std::to_string(r)) +
           (description ? std::string(": ") + description : "");
  }
};
const Driver& driver() {
  static const Driver& one = *new Driver;  // never destroyed: a process may end while threads compute
  return one;
}

class CudaDevice final : public GpuDevice {
 public:
  // Null members where it stopped, with the reason in why_not.
  CudaDevice(int ordinal, Stream stream, std::string& why_not) : stream_(stream) {
    const auto ok = [&](const char* call, Result r) {
      if (r) why_not = d.text(call, r);
      return r == 0;
    };
    int count = 0, major = 0, minor = 0, pools = 0, shared = 0;
    char name[256] = "";
    if (!ok("cuDeviceGetCount", d.device_count(&count))) return;
    if (ordinal < 0 || ordinal >= count) {
      why_not = "ordinal is " + std::to_string(ordinal) + ", this machine has " + std::to_string(count) +
                (count == 1 ? " GPU" : " GPUs");
      return;
    }
    int device = 0;
    if (!ok("cuDeviceGet", d.device_get(&device, ordinal)) ||
        !ok("cuDeviceGetName", d.device_name(name, sizeof name, device)))
      return;
    if (!ok("cuDeviceGetAttribute", d.device_attribute(&multiprocessors, MULTIPROCESSORS, device)) ||
        !ok("cuDeviceGetAttribute", d.device_attribute(&major, CAPABILITY_MAJOR, device)) ||
        !ok("cuDeviceGetAttribute", d.device_attribute(&minor, CAPABILITY_MINOR, device)) ||
        !ok("cuDeviceGetAttribute", d.device_attribute(&shared, SHARED_MOST, device)) ||
        !ok("cuDeviceGetAttribute", d.device_attribute(&pools, MEMORY_POOLS, device)))
      return;
    name_ = name, shared_most_ = shared, architecture = 10 * major + minor;
    if (architecture < 80 || !pools) {
      why_not = name_ + " has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
                ", wanted 8.0 or newer with memory pools";
      return;
    }
    if (!ok("cuDevicePrimaryCtxRetain", d.retain(&context_, device))) return;
    device_ = device;
    const Current current(*this);
    uint64_t all =
        UINT64_MAX;  // freed memory stays with the pool, our own: the process may have other plans for the device's
    PoolProperties properties;
    properties.device = device;
    if (!ok("cuMemPoolCreate", d.pool_create(&pool_, &properties)) ||
        !ok("cuMemPoolSetAttribute", d.pool_set(pool_, RELEASE_THRESHOLD, &all)))
      return;
    if (!stream_) {
      if (!ok("cuStreamCreate", d.stream_create(&stream_, NON_BLOCKING))) return;
      own_stream_ = true;
    }
    for (const Fatbin& fatbin : fatbins()) {
      Module module = nullptr;
      if (!ok(fatbin.name, d.module_load(&module, fatbin.data))) return;
      modules_.push_back(module);
    }
    Address words = 0;
    if (!ok("cuMemAllocAsync", d.allocate(&words, ERRORS, pool_, stream_)) ||
        !ok("cuMemsetD8Async", d.fill(words, 0, ERRORS, stream_)))
      return;
    errors = reinterpret_cast<int32_t*>(words);
    ready = ok("cuStreamSynchronize", d.stream_wait(stream_));
  }
  ~CudaDevice() override {
    if (!context_) return;
    {
      const Current current(*this);
      if (errors) d.free(address(errors), stream_);
      if (stream_) d.stream_wait(stream_);
      if (pool_) d.pool_destroy(pool_);
      for (Module module : modules_) d.module_unload(module);
      if (own_stream_) d.stream_destroy(stream_);
    }
    d.release(device_);
  }
  CudaDevice(const CudaDevice&) = delete;

  bool launch(
      const char* name, const int64_t grid[3], int threads, int64_t shared, const void* params, int64_t) override {
    const Current current(*this);
    Known* kernel = find(name);
    if (!kernel) return false;
    if (grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535)
      return refuse(name, "launched with more blocks than a grid can have");
    if (shared > shared_most_)
      return refuse(name, ("it needs " + std::to_string(shared) + " bytes of shared memory, a block of this GPU has " +
                              std::to_string(shared_most_))
                              .c_str());
    if (shared > kernel->shared) {
      if (!did("cuFuncSetAttribute", d.function_set(kernel->function, MOST_DYNAMIC_SHARED, int(shared)))) return false;
      kernel->shared = shared;
    }
    void* arguments[] = {const_cast<void*>(params)};
    return did(name, d.launch(kernel->function, unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2]),
                         unsigned(threads), 1, 1, unsigned(shared), stream_, arguments, nullptr));
  }
  bool tensor_map(void* map, const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) override {
    const Current current(*this);
    const uint64_t sizes[2] = {uint64_t(columns), uint64_t(rows)}, strides[1] = {uint64_t(2 * stride)};
    const unsigned box[2] = {64, unsigned(box_rows)}, steps[2] = {1, 1};
    return did("cuTensorMapEncodeTiled", d.tensor_map(map, BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box,
                                             steps, NOT_INTERLEAVED, SWIZZLE_128, PROMOTION_256, ZEROS));
  }
  bool fill(void* data, int byte, int64_t bytes) override {
    const Current current(*this);
    return bytes == 0 || did("cuMemsetD8Async", d.fill(address(data), uint8_t(byte), size_t(bytes), stream_));
  }
  void* allocate(size_t bytes) override {  // from any thread: leaves `failure` alone
    const Current current(*this);
    Address data = 0;
    return d.allocate(&data, bytes ? bytes : 1, pool_, stream_) == 0 ? reinterpret_cast<void*>(data) : nullptr;
  }
  void release(void* data) override {
    const Current current(*this);
    d.free(address(data), stream_);
  }
  bool write(void* to, const void* from, size_t bytes) override {
    const Current current(*this);
    if (bytes == 0) return true;
    if (!did("cuMemcpyHtoDAsync", d.to_device(address(to), from, bytes, stream_))) return false;
    // Pageable memory has been read by now; what the driver knows is read later.
    unsigned kind = 0;
    return d.pointer_attribute(&kind, MEMORY_TYPE, address(from)) != 0 ||
           did("cuStreamSynchronize", d.stream_wait(stream_));
  }
  bool read(void* to, const void* from, size_t bytes) override {
    const Current current(*this);
    if (bytes && !did("cuMemcpyDtoHAsync", d.to_host(to, address(from), bytes, stream_))) return false;
    return did("cuStreamSynchronize", d.stream_wait(stream_));
  }
  bool wait() override {
    const Current current(*this);
    return did("cuStreamSynchronize", d.stream_wait(stream_));
  }
  std::string name() const override { return name_; }

  bool ready = false;

 private:
  static constexpr size_t ERRORS = 4096;  // bytes: more words than there are ops
  struct Known {
    Function function;
    int64_t shared;  // that it may be launched with
  };
  // The primary context is the thread's only meanwhile: others may have theirs.
  struct Current {
    explicit Current(const CudaDevice& device) { device.d.push(device.context_); }
    ~Current() {
      Context_ mine;
      driver().pop(&mine);
    }
    Current(const Current&) = delete;
  };

  static Address address(const void* p) { return Address(reinterpret_cast<uintptr_t>(p)); }

  Known* find(const char* name) {
    const auto known = kernels_.find(name);
    if (known != kernels_.end()) return &known->second;
    for (Module module : modules_) {
      Function function = nullptr;
      if (d.function(&function, module, name) == 0)
        return &kernels_.emplace(name, Known{function, 48 << 10}).first->second;
    }
    refuse(name, "there is no kernel of this name");
    return nullptr;
  }
  bool did(const char* call, Result r) { return r == 0 || say(d.text(call, r)); }
  bool refuse(const char* kernel, const char* why) { return say(std::string(kernel) + ": " + why); }
  bool say(const std::string& what) {
    std::snprintf(message_, sizeof message_, "%s", what.c_str());
    failure = message_;
    return false;
  }

  const Driver& d = driver();
  Context_ context_ = nullptr;
  Stream stream_;
  void* pool_ = nullptr;
  bool own_stream_ = false;
  int device_ = 0;
  int64_t shared_most_ = 0;
  std::string name_;
  std::vector<Module> modules_;
  std::unordered_map<std::string, Known> kernels_;
  char message_[512] = "";
};

}  // namespace

std::unique_ptr<GpuDevice> open_gpu(int ordinal, void* stream, std::string& why_not) {
  if (!driver().missing.empty()) return why_not = driver().missing, nullptr;
  if (fatbins().empty())
    return why_not = "this build has no kernels for GPUs; `npm run build:cuda` builds them (it needs nvcc)", nullptr;
  auto device = std::make_unique<CudaDevice>(ordinal, stream, why_not);
  return device->ready ? std::move(device) : nullptr;
}

}  // namespace rlhf
#endif
