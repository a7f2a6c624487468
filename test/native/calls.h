// Calls of the C interface: any op on arguments of any small size, made by a source of numbers, and such calls with a
// few fields that are not what they should be. Drawn at random by ops.cc, from the bytes that reach new code by
// fuzz/calls.cc.
#pragma once
#include <algorithm>
#include <cctype>
#include <cfloat>
#include <map>

#include "native/abi/stream.h"
#include "test/native/check.h"

namespace check {

using namespace rlhf;

// One tensor argument's memory, exactly as long as the tensor; a call sees it at any multiple of its element's size.
struct Memory {
  std::vector<char> bytes, placed;
  size_t offset = 0;  // of the bytes in what is placed
  rlhf_tensor tensor{};
  bool absent = false, lost = false;  // lost: a tensor that points nowhere

  void place() {
    placed = std::vector<char>(offset);
    placed.insert(placed.end(), bytes.begin(), bytes.end());
    placed.shrink_to_fit();
    tensor.data = lost ? nullptr : placed.data() + offset;
  }
  void take_back() { bytes.assign(placed.begin() + int64_t(offset), placed.end()); }
};

struct Call {
  const Op* op;
  std::vector<Memory> memory;
  std::vector<double> reals;
  std::vector<int64_t> integers;
  std::vector<Value> values(std::vector<Memory>& own) const {
    std::vector<Value> list(op->arguments.size());
    for (size_t i = 0; i < list.size(); i++) {
      const Kind kind = op->arguments[i].kind;
      if (is_tensor(kind)) {
        own[i].place();
        list[i].tensor = own[i].absent ? nullptr : &own[i].tensor;
      } else if (kind == Kind::real) list[i].real = reals[i];
      else list[i].integer = integers[i];
    }
    return list;
  }
};

// Numbers at the ends of what f32 can be.
inline float extreme(Random& random) {
  const float list[] = {FLT_MAX, 1e38f, 4e37f, 1e20f, 88.7f, 1, FLT_MIN, FLT_TRUE_MIN, 0, INFINITY, NAN};
  const float x = list[random.below(random.below(3) == 0 ? 11 : 9)];
  return random.below(2) ? -x : x;
}

inline int64_t bytes_of(int32_t dtype) { return dtype == RLHF_F64 ? 8 : dtype == RLHF_BF16 ? 2 : 4; }

// Sizes of the letters, with what the ops demand of each other.
struct Sizes {
  std::string op;
  Random& random;
  std::map<std::string, int64_t> letters;
  int64_t letter(const std::string& name) {
    auto found = letters.find(name);
    if (found != letters.end()) return found->second;
    int64_t n = random.below(40);
    if (name == "V" || name == "C" || name == "I" || name == "O" || name == "D" || name == "S" || name == "B") n++;
    if (name == "V" && random.below(3) == 0) n += 500;  // beyond one tile
    if (name == "G") n = 1 + random.below(3);
    if (name == "H") n = letter("G") * (1 + random.below(3));
    if (name == "D" && op == "rope") n = 2 * n;
    if (name == "R") n = letter("D") / 2;
    if (name == "T" && op.find("kv_") == 0) n = 64;
    if (name == "T" && op == "attention_decode") n = 64;
    if (name == "B" && op == "kv_copy") n = 2;
    if (name == "P" && op == "pack")
      n = (letter(transposed ? "I" : "O") + 31) / 32 * 32 * letter(transposed ? "O" : "I");
    return letters[name] = n;
  }
  bool transposed = false;
  std::vector<int64_t> any = {};
  std::vector<int64_t> dims(const std::string& text) {
    if (text == "...") {
      if (any.empty()) any = {1 + random.below(5), random.below(60)};
      return any;
    }
    std::vector<int64_t> list;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
      if (std::isdigit(part[0])) list.push_back(std::stoll(part));
      else if (part.size() > 2) list.push_back(letter(part.substr(0, 1)) + std::stoll(part.substr(2)));
      else list.push_back(letter(part));
    }
    return list;
  }
};

// Floats come from `contents`, all else from `random`.
inline Call make(const Op& op, Random& random, Random& contents) {
  Sizes sizes{op.name, random, {}};
  sizes.transposed = random.below(2);
  Call call{&op, std::vector<Memory>(op.arguments.size()), std::vector<double>(op.arguments.size()),
      std::vector<int64_t>(op.arguments.size())};
  for (size_t i = 0; i < op.arguments.size(); i++) {
    const Argument& argument = op.arguments[i];
    const std::string name = argument.name;
    if (argument.kind == Kind::real) {
      double value = 0.1 + random.uniform();
      if (name == "eps") value = 1e-5;
      if (name == "denominator") value = 7;
      if (name == "low") value = -0.5;
      if (name.find("beta") == 0 && op.name == std::string("adamw")) value = 0.9;
      if (name == "top_p" || name == "min_p" || name == "label_smoothing")
        value = 0.3 * random.uniform() + (name == "top_p" ? 0.6 : 0);
      if (name == "clip_ratio_c") value += 1;
      if (random.below(8) == 0)
        value = random.below(2) ? argument.range.low : argument.range.high;  // the least and the most that it may be
      call.reals[i] = std::min(std::max(value, argument.range.low), argument.range.high);
      continue;
    }
    if (!is_tensor(argument.kind)) {
      int64_t value = random.below(2);
      if (name == "transposed") value = sizes.transposed;
      if (name == "step" || name == "top_k") value = 1 + random.below(5);
      if (name == "seed" || name == "stream") value = random.below(1000);
      if (name == "rounds") value = 3;
      if (argument.kind == Kind::choice) {
        for (const Choice& choice : choice_table())
          if (std::string(choice.name) == argument.type) value = random.below(int64_t(choice.items.size()));
      }
      call.integers[i] = value;
      continue;
    }
    Memory& memory = call.memory[i];
    memory.absent = is_optional(argument.kind) && random.below(3) == 0 && name != "ref_scores" && name != "old_values";
    const std::string type = argument.kind == Kind::ids || argument.kind == Kind::offsets ? "I32" : argument.type;
    std::vector<int64_t> dims = sizes.dims(argument.dims);
    rlhf_tensor& t = memory.tensor;
    t.dtype = type == "F64" ? RLHF_F64 : type == "I32" ? RLHF_I32 : RLHF_F32;
    if ((type == "EITHER" || type == "WEIGHT") && random.below(2)) t.dtype = RLHF_BF16;
    t.rank = int32_t(dims.size());
    int64_t size = 1, inner = 1;
    for (size_t d = 0; d < dims.size(); d++) {
      t.dims[d] = dims[d], size *= dims[d];
      if (d > 0) inner *= dims[d];
    }
    t.stride = inner;
    memory.offset = size_t(random.below(16)) * size_t(bytes_of(t.dtype));
    memory.bytes.resize(size_t(size * bytes_of(t.dtype)));
    const bool hostile = random.below(6) == 0;
    for (int64_t k = 0; k < size; k++) {
      if (t.dtype == RLHF_F32) {
        float x = hostile ? extreme(contents) : float(contents.normal());
        if (name == "v" && op.name == std::string("adamw")) x = std::abs(x);
        std::memcpy(memory.bytes.data() + 4 * k, &x, 4);
      } else if (t.dtype == RLHF_F64) {
        double x = std::abs(hostile ? extreme(contents) : contents.normal());
        std::memcpy(memory.bytes.data() + 8 * k, &x, 8);
      } else if (t.dtype == RLHF_BF16) {
        float x = hostile ? extreme(contents) : float(contents.normal());
        std::memcpy(memory.bytes.data() + 2 * k, reinterpret_cast<char*>(&x) + 2, 2);
      } else {
        int32_t x = int32_t(random.below(3));
        if (argument.kind == Kind::ids) x = int32_t(random.below(std::max<int64_t>(1, sizes.letter(argument.limit))));
        if (name == "prefix") x = int32_t(random.below(k + 1)) - 1;
        if (name == "lengths") x = 1 + int32_t(random.below(64));
        if (name == "slots" || name == "from" || name == "to")
          x = int32_t(k % sizes.letter(argument.limit));  // one writer each
        if (name == "positions" && op.name == std::string("kv_write")) x = int32_t(k / sizes.letter("S"));
        std::memcpy(memory.bytes.data() + 4 * k, &x, 4);
      }
    }
    if (argument.kind == Kind::offsets) {
      const int64_t total = sizes.letter(argument.limit);
      std::vector<int32_t> cuts(static_cast<size_t>(size));
      for (auto& cut : cuts) cut = int32_t(random.below(total + 1));
      std::sort(cuts.begin(), cuts.end());
      cuts.front() = 0, cuts.back() = int32_t(total);
      std::memcpy(memory.bytes.data(), cuts.data(), cuts.size() * 4);
    }
  }
  return call;
}

// All NaN are one: which of them an operation on two gives is no part of the law.
template <class T>
inline void one_nan(std::vector<char>& bytes) {
  for (size_t k = 0; k + sizeof(T) <= bytes.size(); k += sizeof(T)) {
    T x;
    std::memcpy(&x, bytes.data() + k, sizeof(T));
    if (x != x) x = std::numeric_limits<T>::quiet_NaN(), std::memcpy(bytes.data() + k, &x, sizeof(T));
  }
}
inline void one_nan(Memory& memory) {
  if (memory.tensor.dtype == RLHF_F32) one_nan<float>(memory.bytes);
  if (memory.tensor.dtype == RLHF_F64) one_nan<double>(memory.bytes);
}

inline constexpr int64_t workspace_worth_having = int64_t(1) << 28;

// The status, then the bits of everything that the op may write. Sizes of tensors without elements may want any
// workspace: one that is more than worth having counts as refused.
inline std::vector<char> outcome(Stream& on, const Call& call, std::string* message) {
  const Op& op = *call.op;
  std::vector<Memory> own = call.memory;
  const std::vector<Value> values = call.values(own);
  int index = int(&op - op_table().data());
  int64_t bytes = 0;
  std::vector<char> result(1);
  if (invoke(on.handle, index, values.data(), nullptr, 0, &bytes) != RLHF_OK) {
    *message = rlhf_message(on.handle);
    return result[0] = 1, result;
  }
  if (bytes > workspace_worth_having)
    return *message = std::string(op.name) + ": wants too much workspace", result[0] = 1, result;
  static size_t turn = 0;
  const size_t shift = turn++ % 64;  // workspace may begin anywhere
  std::vector<char> workspace(size_t(bytes) + shift);
  workspace.shrink_to_fit();
  result[0] = char(invoke(on.handle, index, values.data(), bytes ? workspace.data() + shift : nullptr, bytes, nullptr));
  if (result[0]) *message = rlhf_message(on.handle);
  for (Memory& memory : own) memory.take_back();
  for (size_t i = 0; i < own.size(); i++)
    if (op.arguments[i].kind != Kind::in && is_tensor(op.arguments[i].kind)) {
      one_nan(own[i]);
      result.insert(result.end(), own[i].bytes.begin(), own[i].bytes.end());
    }
  return result;
}

inline constexpr int64_t huge = int64_t(1) << 62;

// One field of one argument is another.
inline void disturb(Call& call, Random& random) {
  const int64_t any = int64_t(random.next()) >> random.below(64);  // of any size
  const auto one_of = [&](std::initializer_list<int64_t> list) {
    return list.begin()[random.below(int64_t(list.size()))];
  };
  const size_t i = size_t(random.below(int64_t(call.op->arguments.size())));
  const Argument& argument = call.op->arguments[i];
  if (argument.kind == Kind::real) {
    const double values[] = {std::nan(""), std::numeric_limits<double>::infinity(), -1, 0, -1e300, 5e-324};
    call.reals[i] = values[random.below(6)];
    return;
  }
  if (!is_tensor(argument.kind)) {
    call.integers[i] = one_of({any, -1, 0, 1 << 30, huge, -huge, std::numeric_limits<int64_t>::max(),
        std::numeric_limits<int64_t>::min(), (huge >> 30) + 1});
    return;
  }
  Memory& memory = call.memory[i];
  rlhf_tensor& t = memory.tensor;
  int64_t& size = t.dims[random.below(4)];
  switch (random.below(9)) {
    case 0: memory.absent = !memory.absent; break;
    case 1: memory.lost = true; break;
    case 2: t.dtype = int32_t(random.below(7)) - 1; break;
    case 3: t.layout = int32_t(random.below(5)) - 1; break;
    case 4: t.rank = int32_t(one_of({-1, 0, 1, 2, 3, 4, 5, 1 << 30})); break;
    case 5:
      size =
          one_of({any, -1, 0, int64_t(uint64_t(size) + 1), int64_t(uint64_t(size) - 1), huge, -huge, int64_t(1) << 31});
      break;
    case 6:
      t.stride = one_of({any, -1, 0, int64_t(uint64_t(t.stride) + 1), int64_t(uint64_t(t.stride) - 1),
          int64_t(2 * uint64_t(t.stride)), huge, -huge});
      break;
    default:  // what it holds: for ids and offsets the worst
      for (size_t at = memory.bytes.size() / 4; at > 0 && random.below(3) > 0;) {
        const int32_t values[] = {-1, 1 << 30, int32_t(random.next()), std::numeric_limits<int32_t>::min(), 0x7fc00000};
        std::memcpy(memory.bytes.data() + 4 * random.below(int64_t(at)), &values[random.below(5)], 4);
      }
  }
}

// Gives every tensor the memory that it tells of; false where that is more than is worth having, and would not be
// refused for its size alone.
inline bool provide(Call& call) {
  for (Memory& memory : call.memory) {
    const rlhf_tensor& t = memory.tensor;
    if (t.rank < 0 || t.rank > 4) continue;
    __int128 inner = 1, elements = 1;
    bool negative = false;
    for (int d = t.rank - 1; d >= 0; d--)
      negative |= t.dims[d] < 0, inner = elements, elements = std::min(elements * t.dims[d], __int128(huge) * 2);
    if (negative) continue;
    if (t.layout != RLHF_ROW_MAJOR && t.rank == 2)
      elements = (t.dims[0] + 31) * __int128(t.dims[1] + 31);  // panels of 32 rows or columns
    if (t.rank > 0 && t.dims[0] > 0) elements = std::max(elements, __int128(t.dims[0] - 1) * t.stride + inner);
    if (elements > __int128(1) << 56) continue;
    const __int128 bytes = elements * std::max<int64_t>(4, bytes_of(t.dtype));
    if (bytes > 1 << 20) return false;
    if (int64_t(memory.bytes.size()) < int64_t(bytes)) memory.bytes.resize(size_t(bytes));
  }
  return true;
}

}  // namespace check
