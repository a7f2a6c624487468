// A GPU as a stream sees it: the driver's (driver.cc), or the simulator's (native/simt) where RLHF_SIMT is set.
#pragma once
#include <memory>
#include <string>

#include "native/list/kernel.h"

namespace rlhf {

class GpuDevice : public Gpu {
 public:
  virtual ~GpuDevice() = default;
  virtual void* allocate(size_t bytes) = 0;  // in the order of the stream; null if there is none
  virtual void release(void*) = 0;
  virtual bool write(
      void* device, const void* host, size_t bytes) = 0;  // the host's memory may be reused when it returns
  virtual bool read(void* host, const void* device, size_t bytes) = 0;  // waits
  virtual bool wait() = 0;
  virtual std::string name() const = 0;
};

// stream: a CUstream to enqueue to, or null for one of its own. Null if there is no such GPU, with the reason.
std::unique_ptr<GpuDevice> open_gpu(int ordinal, void* stream, std::string& why_not);

}  // namespace rlhf
