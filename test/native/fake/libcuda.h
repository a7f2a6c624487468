// What the fake driver writes down.
#pragma once
#include <cstdint>

namespace fake {

struct Record {
  int contexts, streams, pools, modules, allocations, lookups, waits;  // alive; looked up; waited for
  char kernel[64];  // the last launch
  unsigned grid[3], threads, shared;
  void* stream;
  int maps;  // of tensors, made
};
struct Offsets {  // OffsetsParams of kernels/cuda/offsets.h, as the device sees it
  const int32_t* offsets;
  int64_t B, N;
  int32_t* error;
};

}  // namespace fake
