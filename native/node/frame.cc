#include "native/node/frame.h"

#include <cstring>

#include "native/node/node.h"

namespace rlhf {
namespace {

constexpr size_t TENSOR_NUMBERS = 9;
constexpr int64_t SIZES[] = {4, 8, 4, 2, 2};  // of dtypes, the last one f16

struct Reader {
  Numbers& numbers;
  const Op* op = nullptr;
  const Argument* argument = nullptr;

  [[noreturn]] void refuse(const std::string& what) const {
    throw Refusal{Refusal::range, "ARGUMENT",
        std::string(op ? op->name : "call") + ": " + (argument ? std::string(argument->name) + " " : "") + what};
  }
  double number() {
    if (numbers.next == numbers.end) refuse("is missing: the frame ends before it");
    return *numbers.next++;
  }
  double real() {
    const double x = number();
    if (std::isnan(x)) refuse("is nan, wanted a number");
    return x;
  }
  int64_t whole(const char* what, double low, double high) {
    const double x = number();
    if (!is_whole(x, low, high))
      refuse(std::string(what) + " " + text(x) + ", wanted a whole number from " + text(low) + " to " + text(high));
    return int64_t(x);
  }
};

// Bytes from a tensor's first number to the end of its last; of what the stream refuses anyway, any number.
int64_t extent(const rlhf_tensor& t, const Reader& in) {
  for (int d = 0; d < t.rank; d++)
    if (t.dims[d] == 0) return 0;
  int64_t dims[4] = {1, 1, 1, 1}, stride = t.stride;
  for (int d = 0; d < t.rank; d++) dims[d] = t.dims[d];
  if (t.layout != RLHF_ROW_MAJOR) {  // panels of 32 rows, or columns
    if (t.rank != 2) in.refuse("is packed and has rank " + std::to_string(t.rank) + ", wanted 2");
    int64_t& lanes = dims[t.layout == RLHF_PANELS ? 0 : 1];
    if (lanes > (int64_t(1) << 56)) in.refuse("is too large");
    lanes = (lanes + 31) / 32 * 32, stride = dims[1];
  }
  int64_t inner, rows, elements, bytes;
  if (__builtin_mul_overflow(dims[1], dims[2], &inner) || __builtin_mul_overflow(inner, dims[3], &inner) ||
      __builtin_mul_overflow(dims[0] - 1, stride, &rows) || __builtin_add_overflow(rows, inner, &elements) ||
      __builtin_mul_overflow(elements, SIZES[t.dtype], &bytes))
    in.refuse("is too large");
  return bytes;
}

void read_tensor(Reader& in, const Memory& memory, Held& held) {
  rlhf_tensor& t = held.tensor;
  const double address = in.number();
  t.dtype = int32_t(in.whole("has dtype", -1, 4));
  if (t.dtype < 0) {
    for (size_t i = 2; i < TENSOR_NUMBERS; i++) in.number();
    return;
  }
  t.layout = int32_t(in.whole("has layout", RLHF_ROW_MAJOR, RLHF_PANELS_TRANSPOSED));
  t.rank = int32_t(in.whole("has rank", 0, 4));
  for (int d = 0; d < 4; d++) {
    const double size = in.number();  // of those past the rank, whatever was there
    if (d >= t.rank) continue;
    if (!is_whole(size, 0, EXACT)) in.refuse("has size " + text(size) + " in dimension " + std::to_string(d));
    t.dims[d] = int64_t(size);
  }
  t.stride = in.whole("has stride", 0, EXACT);
  const int64_t bytes = extent(t, in);
  if (bytes <= 0) return;  // no number, no memory
  Block* block = nullptr;
  if (is_whole(address, 0, EXACT)) block = memory.find(uint64_t(address), size_t(bytes));
  if (!block)
    in.refuse("has " + std::to_string(bytes) + " bytes, and no memory of the device holds them at " + text(address));
  Place& place = held.place;
  const size_t offset = size_t(uint64_t(address) - uint64_t(reinterpret_cast<uintptr_t>(block->data)));
  if (offset % size_t(SIZES[t.dtype])) in.refuse("begins at byte " + std::to_string(offset) + ", within a number");
  place = {block, block->life, offset, size_t(bytes), offset == 0 && (size_t(bytes) + 3) / 4 * 4 >= block->asked};
  t.data = place.data();
}

// Ids and offsets are checked before the kernel runs: it must not write to them.
void hold_apart(const Reader& in, const Op& op, const Held* held) {
  const Held* result = held;
  for (const Argument& a : op.arguments) {
    if (!is_tensor(a.kind)) continue;
    const Place& to = (result++)->place;
    if (!is_result(a.kind) || !to.block) continue;
    const Held* other = held;
    for (const Argument& b : op.arguments) {
      if (!is_tensor(b.kind)) continue;
      const Place& from = (other++)->place;
      if (from.block == to.block && &from != &to && std::strcmp(b.type, "I32") == 0 &&
          from.offset < to.offset + to.bytes && to.offset < from.offset + from.bytes)
        in.refuse(std::string(a.name) + " overlaps " + b.name);
    }
  }
}

}  // namespace

void read_call(Numbers& numbers, const Memory& memory, Calls& calls) {
  Reader in{numbers};
  const int index = int(in.whole("has op", 0, double(op_table().size()) - 1));
  in.op = &op_table()[size_t(index)];
  const auto& arguments = in.op->arguments;
  if (calls.steps.empty()) {
    calls.values.reserve(arguments.size());
    calls.tensors.reserve(arguments.size());
  }
  calls.steps.push_back({index, calls.values.size(), calls.tensors.size()});
  const size_t first = calls.tensors.size();
  for (const Argument& argument : arguments) {
    in.argument = &argument;
    calls.values.emplace_back();
    if (is_tensor(argument.kind)) read_tensor(in, memory, calls.tensors.emplace_back());
    else if (argument.kind == Kind::real) calls.values.back().real = in.real();
    else calls.values.back().integer = in.whole("is", -EXACT, EXACT);
  }
  in.argument = nullptr;
  hold_apart(in, *in.op, calls.tensors.data() + first);
}

}  // namespace rlhf
