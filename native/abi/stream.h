// A stream, and the one call that every op of the C interface and of the addon becomes.
#pragma once
#include <memory>
#include <string>

#include "native/abi/rlhf_kernels.h"
#include "native/cpu/isa.h"
#include "native/cpu/threads.h"
#include "native/cuda/gpu.h"
#include "native/list/table.h"

struct rlhf_stream {
  const rlhf::Isa* isa;
  std::unique_ptr<rlhf::Pool> pool;
  std::unique_ptr<rlhf::GpuDevice> gpu;  // of a GPU's stream, which has no pool
  std::string name;  // the ISA, or the GPU
  char message[512];
};

namespace rlhf {

// Checks the arguments and runs the op on the stream; with bytes_wanted, only tells the workspace.
rlhf_status invoke(rlhf_stream*, int op, const Value*, void* workspace, int64_t workspace_bytes, int64_t* bytes_wanted);

// Whether the threads of the stream wait for the next op without falling asleep.
void keep_awake(rlhf_stream*, bool);

}  // namespace rlhf
