// The kernels of one ISA, in the order of the list. An op that an ISA does not have is null there.
#include "native/list/kernel.h"

namespace rlhf::RLHF_ISA {

#define OP(name, arguments) void name(Context&, const name##_args&);
#include "native/list/ops.h"
#include "native/list/ops_end.h"

const Kernels kernels = {
#define OP(name, arguments) name,
#include "native/list/ops.h"
#include "native/list/ops_end.h"
};

}  // namespace rlhf::RLHF_ISA
