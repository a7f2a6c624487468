#include "native/cpu/isa.h"

namespace rlhf {

#if RLHF_HAS_avx512
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if RLHF_HAS_avx2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#if RLHF_HAS_neon
namespace neon {
extern const Kernels kernels;
}
#endif
namespace scalar {
extern const Kernels kernels;
}

// clang-format off
const std::vector<Isa>& isas() {
  static const std::vector<Isa>& all = *new std::vector<Isa>{
#if RLHF_HAS_avx512
    {"avx512", &avx512::kernels,
        [] {
          return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
        }},
#endif
#if RLHF_HAS_avx2
    {"avx2", &avx2::kernels, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#if RLHF_HAS_neon
    {"neon", &neon::kernels, [] { return true; }},
#endif
    {"scalar", &scalar::kernels, [] { return true; }},
  };
  return all;
}
// clang-format on

}  // namespace rlhf
