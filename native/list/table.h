// The list of ops as data: what the C interface, the addon and `rlhf ops` know of each.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "native/list/kernel.h"
#include "native/list/types.h"

namespace rlhf {

#define RLHF_KINDS(K) K(in) K(opt) K(out) K(opt_out) K(add) K(opt_add) K(ids) K(offsets) K(real) K(integer) K(choice)
#define ITEM(name) name,
enum class Kind { RLHF_KINDS(ITEM) };
#undef ITEM
inline bool is_tensor(Kind k) { return k < Kind::real; }
inline bool is_optional(Kind k) { return k == Kind::opt || k == Kind::opt_out || k == Kind::opt_add; }
inline bool is_written(Kind k) { return k == Kind::out || k == Kind::opt_out; }
inline bool is_result(Kind k) { return is_written(k) || k == Kind::add || k == Kind::opt_add; }

// What a scalar may be: of an interval, whose ends belong to it or not.
struct Range {
  double low, high;
  bool open_low, open_high;
  bool has(double x) const { return (open_low ? x > low : x >= low) && (open_high ? x < high : x <= high); }
};
constexpr Range any() { return {-__builtin_inf(), __builtin_inf(), false, false}; }
// Numbers that kernels turn into f32: what is finite, or not zero, is so there too.
constexpr double LARGEST = __FLT_MAX__, LEAST = __FLT_MIN__;
constexpr Range finite() { return {-LARGEST, LARGEST, false, false}; }
constexpr Range positive() { return {LEAST, LARGEST, false, false}; }
constexpr Range not_negative() { return {0, LARGEST, false, false}; }
constexpr Range temperature() {
  return {0x1p-127, 0x1p120, false, false};
}  // 1 / T is normal, and where a difference overflows its exponential is 0
constexpr Range from(double low) { return {low, __builtin_inf(), false, false}; }  // a limit that infinity takes away
constexpr Range within(double low, double high) { return {low, high, false, false}; }
constexpr Range fraction() { return {0, 1, false, true}; }
constexpr Range flag() { return within(0, 1); }
std::string text(const Range&);  // "[0, 0.5]", "(0, inf)"

struct Argument {
  Kind kind;
  const char* type;  // F32, F64, I32, ROWS, EITHER, WEIGHT, SAME; of a choice: the name of its list
  const char* name;
  const char* dims;  // "N,H,D"; "" for scalars
  const char* limit;  // of ids and offsets: the letter
  Range range = any();  // of real and integer
};

struct Value {  // one argument of a call
  union {
    const rlhf_tensor* tensor;
    double real;
    int64_t integer;
  };
  Value() : tensor(nullptr) {}
  Value(const rlhf_tensor* t) : tensor(t) {}
  Value(double r) : real(r) {}
  Value(int64_t i) : integer(i) {}
};

struct Op {
  const char* name;
  std::vector<Argument> arguments;
  void (*run)(const Kernels&, Context&, const Value*);
  bool (*has)(const Kernels&);
};

struct Choice {
  const char* name;
  std::vector<std::string> items;
};

const std::vector<Op>& op_table();
const std::vector<Choice>& choice_table();
std::vector<const char*> cpu_dtypes(const Op&);  // that the op, or a weight of it, may have
std::vector<const char*> cuda_dtypes(const Op&);  // none where a GPU lacks the op
bool takes_either(const Argument&);  // by itself f32 or bf16, on a CPU
bool asks_for_workspace(int op);
std::string ops_json();

}  // namespace rlhf
