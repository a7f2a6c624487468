// The instruction sets that the CPU kernels are compiled for, and which of them this machine has.
#pragma once
#include <vector>

#include "native/list/kernel.h"

namespace rlhf {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool (*there)();
};

const std::vector<Isa>& isas();  // best first

}  // namespace rlhf
