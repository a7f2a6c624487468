// Philox 4x32-10 (Salmon et al. 2011), keyed by (seed, stream); the same words as lib/device/philox.ts.
#pragma once
#include "native/list/kernel.h"

namespace rlhf::RLHF_ISA {

struct Words {
  uint32_t w[4];
};

RLHF_INLINE Words philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t(0xd2511f53u) * c0, p1 = uint64_t(0xcd9e8d57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ key0, c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ key1, c3 = uint32_t(p0);
    key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

// in [0, 1), 53 bits, from words 2 half and 2 half + 1
RLHF_INLINE double uniform(const Words& x, int half) {
  return (double(x.w[2 * half] >> 5) * 67108864.0 + double(x.w[2 * half + 1] >> 6)) / 9007199254740992.0;
}

}  // namespace rlhf::RLHF_ISA
