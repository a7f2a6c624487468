// The kernels of one ISA, in the order of the list. An op that an ISA does not have is null there.
#include "native/kernel.h"

namespace rlhf::RLHF_ISA {

#define OP(name, arguments) void name(Context&, const name##_args&);
#include "native/ops.h"
#include "native/ops_end.h"

extern const Kernels kernels;
const Kernels kernels = {
#define OP(name, arguments) name,
#include "native/ops.h"
#include "native/ops_end.h"
};

}  // namespace rlhf::RLHF_ISA
