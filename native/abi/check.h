// The checks of one call: dtypes, ranks, sizes, strides, layouts, ranges, ids and offsets.
#pragma once
#include "native/abi/stream.h"

namespace rlhf {

inline int64_t bytes_of(int32_t dtype) { return dtype == RLHF_F64 ? 8 : dtype == RLHF_BF16 ? 2 : 4; }

// Sizes bound by the letters of an op's dims, and the one shape that "..." stands for.
struct Sizes {
  int64_t letter[128];
  const rlhf_tensor* any = nullptr;
  Sizes() {
    for (auto& size : letter) size = -1;
  }
};

class Checker {
 public:
  Checker(rlhf_stream* on, const Op& op) : on_(on), op_(op) {}

  // Writes the stream's message, "<op>: ...".
  rlhf_status refuse(rlhf_status status, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // Ids are not looked at while a workspace is measured: no size depends on them, and the call does.
  rlhf_status check(const Value* values, bool measuring);

 private:
  rlhf_status scalar(const Argument&, const Value&);
  rlhf_status tensor(const Argument&, const rlhf_tensor*);
  rlhf_status shape(const Argument&, const rlhf_tensor*);
  rlhf_status contents(const Argument&, const rlhf_tensor*);
  bool bf16(const Argument&) const;
  bool within(const int32_t* x, int64_t n, int64_t limit);

  rlhf_stream* on_;
  const Op& op_;
  Sizes sizes_;
  bool narrow_ = false;
};

}  // namespace rlhf
