// Rows that lie more than 2^31 elements apart: offsets are 64 bits wide. The memory is mapped and hardly touched.
#include <sys/mman.h>

#include "test/native/check.h"

int main() {
  constexpr int64_t stride = (int64_t(1) << 31) + 24, V = 19, rows = 2;
  const size_t bytes = size_t(stride * (rows - 1) + V) * sizeof(float);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return std::printf("0 passed, 0 failed: no address space for %zu bytes\n", bytes), 0;
  auto* far = static_cast<float*>(memory);
  check::Tensor<float> near({rows, V});
  check::Random random(1);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < V; j++) far[i * stride + j] = near[i * V + j] = float(random.normal());
  rlhf_tensor logits = near.t;
  logits.data = memory, logits.stride = stride;
  check::Tensor<int32_t> y({rows});
  y[0] = 3, y[1] = 18;
  std::istringstream names(rlhf_isa_available());
  for (std::string isa; names >> isa;) {
    check::Stream stream(isa, 2);
    std::vector<float> outcome[2];
    for (const rlhf_tensor* given : {static_cast<const rlhf_tensor*>(near), static_cast<const rlhf_tensor*>(&logits)}) {
      check::Tensor<float> logp({rows}), lse({rows}), entropy({rows});
      CALL(stream, logprob, given, y, 1.0, logp, lse, entropy);
      auto& result = outcome[given == &logits];
      check::append(result, logp), check::append(result, lse), check::append(result, entropy);
    }
    check::expect(check::same_bits(outcome[0], outcome[1]), "%s: rows far apart differ", isa.c_str());
  }
  munmap(memory, bytes);
  return check::report();
}
