// The CUDA kernels as nvcc made them, one fatbin a file of kernels/cuda: what `npm run build:cuda` put into this
// library, if anything.
#pragma once
#include <vector>

namespace rlhf {

struct Fatbin {
  const char* name;  // of the file
  const void* data;
};
const std::vector<Fatbin>& fatbins();

}  // namespace rlhf
