// The ops that a GPU has; the others are null.
#include <cstring>

#include "native/list/kernel.h"

namespace rlhf::cuda {

// X(op, takes bf16)
#define RLHF_CUDA_OPS(X)    \
  X(attention, 1)           \
  X(attention_grad, 1)      \
  X(linear, 1)              \
  X(linear_grad_input, 1)   \
  X(linear_grad_weight, 1)  \
  X(linear_logprob, 1)      \
  X(linear_logprob_grad, 1) \
  X(linear_policy_loss, 1)  \
  X(gae, 0)                 \
  X(gae_padded, 0)          \
  X(token_rewards, 0)       \
  X(whiten, 0)              \
  X(moments, 0)             \
  X(sequence_sum, 0)        \
  X(sequence_sum_grad, 0)   \
  X(policy_loss, 0)         \
  X(value_loss, 0)          \
  X(preference_loss, 0)     \
  X(logprob, 1)             \
  X(logprob_grad, 1)        \
  X(norm_squared, 0)        \
  X(adamw, 0)               \
  X(add, 0)                 \
  X(sub, 0)                 \
  X(mul, 0)                 \
  X(scale, 0)               \
  X(clamp, 0)               \
  X(clamp_grad, 0)          \
  X(accumulate, 0)          \
  X(fill, 0)                \
  X(sum, 0)

#define DECLARE(op, bf16) void op(Context&, const op##_args&);
RLHF_CUDA_OPS(DECLARE)

#define SET(op, bf16) k.op = op;
const Kernels kernels = [] {
  Kernels k{};
  RLHF_CUDA_OPS(SET)
  return k;
}();

bool takes_bf16(const char* op) {
#define TAKES(name, bf16) \
  if (bf16 && std::strcmp(op, #name) == 0) return true;
  RLHF_CUDA_OPS(TAKES)
  return false;
}

}  // namespace rlhf::cuda
