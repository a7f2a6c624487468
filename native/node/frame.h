// A call as JavaScript gives it, a frame of numbers: the op, then for a tensor its address, dtype (-1: absent), layout,
// rank, four dims and row stride, for a scalar the number itself. Nothing in it is believed: addresses are looked up,
// and a tensor stays within what was allocated.
#pragma once
#include "native/node/memory.h"
#include "native/node/queue.h"

namespace rlhf {

struct Numbers {
  const double *next, *end;
};

// Adds the next call of the numbers, not yet bound. Throws Refusal.
void read_call(Numbers &, const Memory &, Calls &);

}  // namespace rlhf
