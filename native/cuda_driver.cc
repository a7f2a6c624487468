// A GPU through its driver, which is found when a device is opened: no CUDA header, no CUDA library is needed to build or to run without
// one. The primary context of the device is used, so memory of other users of it (torch) may be passed; it is made current in whatever
// thread calls. The kernels come from the fatbins that `npm run build:cuda` (or cmake -DRLHF_CUDA=ON) put into this library.
#include <dlfcn.h>

#include <cstdio>
#include <unordered_map>
#include <vector>

#include "native/fatbins.h"
#include "native/gpu.h"
#include "native/op_table.h"

namespace rlhf {
namespace {

// What is used of cuda.h, as its ABI has it.
using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
constexpr int MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, MEMORY_POOLS = 115;  // CUdevice_attribute
constexpr int DYNAMIC_SHARED = 8;  // CUfunction_attribute
constexpr int MEMORY_TYPE = 2;  // CUpointer_attribute
constexpr unsigned NON_BLOCKING = 1;  // CUstream_flags
constexpr int64_t SHARED_BY_DEFAULT = 48 << 10;

#define RLHF_DRIVER(X)                                                                                                                       \
  X(cuInit, cuInit, (unsigned))                                                                                                              \
  X(cuGetErrorString, cuGetErrorString, (CUresult, const char**))                                                                            \
  X(cuDeviceGetCount, cuDeviceGetCount, (int*))                                                                                              \
  X(cuDeviceGet, cuDeviceGet, (CUdevice*, int))                                                                                              \
  X(cuDeviceGetName, cuDeviceGetName, (char*, int, CUdevice))                                                                                \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute, (int*, int, CUdevice))                                                                       \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice))                                                              \
  X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice))                                                                     \
  X(cuCtxGetCurrent, cuCtxGetCurrent, (CUcontext*))                                                                                          \
  X(cuCtxSetCurrent, cuCtxSetCurrent, (CUcontext))                                                                                           \
  X(cuStreamCreate, cuStreamCreate, (CUstream*, unsigned))                                                                                   \
  X(cuStreamDestroy, cuStreamDestroy_v2, (CUstream))                                                                                         \
  X(cuStreamSynchronize, cuStreamSynchronize, (CUstream))                                                                                    \
  X(cuModuleLoadData, cuModuleLoadData, (CUmodule*, const void*))                                                                            \
  X(cuModuleUnload, cuModuleUnload, (CUmodule))                                                                                              \
  X(cuModuleGetFunction, cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                                          \
  X(cuFuncSetAttribute, cuFuncSetAttribute, (CUfunction, int, int))                                                                          \
  X(cuLaunchKernel, cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuMemAlloc, cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                                                       \
  X(cuMemFree, cuMemFree_v2, (CUdeviceptr))                                                                                                  \
  X(cuMemAllocAsync, cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream))                                                                      \
  X(cuMemFreeAsync, cuMemFreeAsync, (CUdeviceptr, CUstream))                                                                                 \
  X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                                                   \
  X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                                                         \
  X(cuMemsetD8Async, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                                        \
  X(cuPointerGetAttribute, cuPointerGetAttribute, (void*, int, CUdeviceptr))

constexpr const char* LIBRARY = "libcuda.so.1";

struct Driver {
#define MEMBER(name, symbol, arguments) CUresult(*name) arguments = nullptr;
  RLHF_DRIVER(MEMBER)
  std::string why_not;  // empty where it is there

  Driver() {
    void* library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      why_not = std::string(LIBRARY) + " was not found: there is no NVIDIA driver";
      return;
    }
#define FIND(name, symbol, arguments)                                                      \
  name = reinterpret_cast<decltype(name)>(dlsym(library, #symbol));                         \
  if (!name && why_not.empty()) why_not = std::string(LIBRARY) + " is too old: it has no " #symbol;
    RLHF_DRIVER(FIND)
    if (!why_not.empty()) return;
    if (CUresult result = cuInit(0)) why_not = std::string("cuInit: ") + text(result);
  }

  const char* text(CUresult result) const {
    const char* said = nullptr;
    return cuGetErrorString(result, &said) == 0 && said ? said : "an error that the driver does not name";
  }
};

const Driver& driver() {
  static const Driver loaded;
  return loaded;
}

CUdeviceptr pointer(const void* p) { return CUdeviceptr(reinterpret_cast<uintptr_t>(p)); }

// Makes the device's context current in this thread, and the one before it after.
class Current {
 public:
  explicit Current(CUcontext context) {
    driver().cuCtxGetCurrent(&before_);
    if (before_ == context) return;
    changed_ = true;
    driver().cuCtxSetCurrent(context);
  }
  ~Current() {
    if (changed_) driver().cuCtxSetCurrent(before_);
  }
  Current(const Current&) = delete;

 private:
  CUcontext before_ = nullptr;
  bool changed_ = false;
};

class CudaDevice final : public GpuDevice {
 public:
  // Empty where it opened.
  std::string open(int ordinal, void* stream) {
    const Driver& d = driver();
    int count = 0;
    if (CUresult result = d.cuDeviceGetCount(&count)) return std::string("cuDeviceGetCount: ") + d.text(result);
    if (count == 0) return "the driver sees no GPU";
    if (ordinal < 0 || ordinal >= count) return "there is no GPU " + std::to_string(ordinal) + ", the driver sees " + std::to_string(count);
    if (fatbins().empty()) return "this build has no CUDA kernels: build them with `npm run build:cuda` (or cmake -DRLHF_CUDA=ON)";
    if (CUresult result = d.cuDeviceGet(&device_, ordinal)) return std::string("cuDeviceGet: ") + d.text(result);
    char text[256] = "";
    d.cuDeviceGetName(text, sizeof text, device_);
    name_ = text;
    int major = 0, minor = 0, pools = 0;
    d.cuDeviceGetAttribute(&multiprocessors, MULTIPROCESSORS, device_);
    d.cuDeviceGetAttribute(&major, MAJOR, device_);
    d.cuDeviceGetAttribute(&minor, MINOR, device_);
    d.cuDeviceGetAttribute(&pools, MEMORY_POOLS, device_);
    architecture = 10 * major + minor, pooled_ = pools != 0;
    if (architecture < 80) return name_ + " has compute capability " + std::to_string(major) + "." + std::to_string(minor) + ", wanted 8.0 or newer";
    if (CUresult result = d.cuDevicePrimaryCtxRetain(&context_, device_)) return std::string("cuDevicePrimaryCtxRetain: ") + d.text(result);
    Current current(context_);
    stream_ = static_cast<CUstream>(stream), own_ = !stream;
    if (own_ && !did(d.cuStreamCreate(&stream_, NON_BLOCKING), "cuStreamCreate")) return failure;
    for (const Fatbin& fatbin : fatbins()) {
      CUmodule module = nullptr;
      if (!did(d.cuModuleLoadData(&module, fatbin.data), fatbin.name)) return failure;
      modules_.push_back(module);
    }
    const size_t bytes = op_table().size() * sizeof(int32_t);
    errors = static_cast<int32_t*>(allocate(bytes));
    if (!errors) return "no memory for its error words";
    return fill(errors, 0, int64_t(bytes)) ? "" : failure;
  }

  ~CudaDevice() override {
    if (!context_) return;
    const Driver& d = driver();
    {
      Current current(context_);
      if (stream_ || !own_) d.cuStreamSynchronize(stream_);
      if (errors) release(errors);
      for (CUmodule module : modules_) d.cuModuleUnload(module);
      if (own_ && stream_) d.cuStreamDestroy(stream_);
    }
    d.cuDevicePrimaryCtxRelease(device_);
  }

  bool launch(const char* kernel, const int64_t grid[3], int threads, int64_t shared, const void* params, int64_t) override {
    Current current(context_);
    if (grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) return refuse(kernel, "launched with more blocks than a grid can have");
    Function* f = function(kernel);
    if (!f) return false;
    const Driver& d = driver();
    if (shared > f->shared) {
      if (!did(d.cuFuncSetAttribute(f->handle, DYNAMIC_SHARED, int(shared)), kernel)) return false;
      f->shared = shared;
    }
    void* arguments[] = {const_cast<void*>(params)};
    return did(d.cuLaunchKernel(f->handle, unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2]), unsigned(threads), 1, 1, unsigned(shared), stream_, arguments, nullptr),
        kernel);
  }
  bool fill(void* data, int byte, int64_t bytes) override {
    Current current(context_);
    return bytes == 0 || did(driver().cuMemsetD8Async(pointer(data), static_cast<unsigned char>(byte), size_t(bytes), stream_), "cuMemsetD8Async");
  }

  // From any thread: they leave `failure` alone.
  void* allocate(size_t bytes) override {
    Current current(context_);
    CUdeviceptr p = 0;
    const Driver& d = driver();
    const CUresult result = pooled_ ? d.cuMemAllocAsync(&p, bytes ? bytes : 1, stream_) : d.cuMemAlloc(&p, bytes ? bytes : 1);
    return result == 0 ? reinterpret_cast<void*>(uintptr_t(p)) : nullptr;
  }
  void release(void* data) override {
    Current current(context_);
    if (pooled_) driver().cuMemFreeAsync(pointer(data), stream_);
    else driver().cuMemFree(pointer(data));  // waits for the device
  }

  bool write(void* to, const void* from, size_t bytes) override {
    Current current(context_);
    if (bytes == 0) return true;
    const Driver& d = driver();
    if (!did(d.cuMemcpyHtoDAsync(pointer(to), from, bytes, stream_), "cuMemcpyHtoDAsync")) return false;
    // Pageable memory has been copied when the call returns; what the driver knows (pinned) is read later.
    unsigned type = 0;
    return d.cuPointerGetAttribute(&type, MEMORY_TYPE, pointer(from)) != 0 || type == 0 || wait();
  }
  bool read(void* to, const void* from, size_t bytes) override {
    Current current(context_);
    return bytes == 0 || (did(driver().cuMemcpyDtoHAsync(to, pointer(from), bytes, stream_), "cuMemcpyDtoHAsync") && wait());
  }
  bool wait() override {
    Current current(context_);
    return did(driver().cuStreamSynchronize(stream_), "cuStreamSynchronize");
  }
  std::string name() const override { return name_; }

 private:
  struct Function {
    CUfunction handle = nullptr;
    int64_t shared = SHARED_BY_DEFAULT;  // that it may be launched with
  };

  Function* function(const char* kernel) {
    auto found = functions_.find(kernel);
    if (found != functions_.end()) return &found->second;
    for (CUmodule module : modules_) {
      Function f;
      if (driver().cuModuleGetFunction(&f.handle, module, kernel) == 0) return &functions_.emplace(kernel, f).first->second;
    }
    refuse(kernel, "there is no kernel of this name");
    return nullptr;
  }

  bool refuse(const char* what, const char* why) {
    std::snprintf(text_, sizeof text_, "%s: %s", what, why);
    failure = text_;
    return false;
  }
  bool did(CUresult result, const char* what) { return result == 0 || refuse(what, driver().text(result)); }

  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUstream stream_ = nullptr;
  bool own_ = false, pooled_ = false;
  std::vector<CUmodule> modules_;
  std::unordered_map<std::string, Function> functions_;
  std::string name_;
  char text_[384] = "";
};

}  // namespace

std::unique_ptr<GpuDevice> open_gpu(int ordinal, void* stream, std::string& why_not) {
  why_not = driver().why_not;
  if (!why_not.empty()) return nullptr;
  auto device = std::make_unique<CudaDevice>();
  why_not = device->open(ordinal, stream);
  if (!why_not.empty()) return nullptr;
  return device;
}

}  // namespace rlhf
