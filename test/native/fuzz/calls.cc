// libFuzzer's target, under the sanitizers. Nothing in C++ parses what others wrote: what the C
// interface takes from outside are calls. An input's bytes make one: an op, arguments that fit it,
// then up to three fields that are not what they should be. It is done or refused by a message that
// names the op.
#include "test/native/calls.h"

using namespace check;

namespace {

class Bytes : public Random {  // two for each number; zeros after the last
 public:
  Bytes(const uint8_t* data, size_t size) : Random(0, 0), at_(data), end_(data + size) {}
  uint64_t next() override {
    uint64_t two = 0;
    for (int i = 0; i < 2 && at_ < end_; i++) two |= uint64_t(*at_++) << 8 * i;
    return two * 0x0001000100010001u;
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Stream on("scalar", 1);
  Bytes bytes(data, size);
  const Op& op = op_table()[size_t(bytes.below(int64_t(op_table().size())))];
  if (std::string(op.name).find("limit") == 0) return 0;  // these take as long as they are asked to
  int64_t changes = bytes.below(4);
  Random contents(bytes.next(), 0);
  Call call = make(op, bytes, contents);
  for (; changes > 0; changes--) disturb(call, bytes);
  if (!provide(call)) return 0;
  std::string message;
  if (outcome(on, call, &message)[0] != 0 && message.find(std::string(op.name) + ": ") != 0) {
    std::fprintf(stderr, "%s was refused by \"%s\"\n", op.name, message.c_str());
    std::abort();
  }
  return 0;
}
