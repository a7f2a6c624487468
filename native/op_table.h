// The list of ops as data: what the C interface, the addon and `rlhf ops` know of each.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "native/kernel.h"
#include "native/rlhf_kernels.h"

namespace rlhf {

enum class Kind { in, opt, out, opt_out, add, opt_add, ids, offsets, real, integer, choice };
inline bool is_tensor(Kind k) { return k < Kind::real; }
inline bool is_optional(Kind k) { return k == Kind::opt || k == Kind::opt_out || k == Kind::opt_add; }
inline bool is_written(Kind k) { return k == Kind::out || k == Kind::opt_out; }

struct Argument {
  Kind kind;
  const char* type;  // F32, F64, I32, ROWS, EITHER, WEIGHT, SAME; of a choice: the name of its list
  const char* name;
  const char* dims;  // "N,H,D"; "" for scalars
  const char* limit;  // of ids and offsets: the letter
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
std::string ops_json();

// Checks the arguments and runs the op on the stream; with bytes_wanted, only tells the workspace.
rlhf_status invoke(rlhf_stream*, int op, const Value*, void* workspace, int64_t workspace_bytes, int64_t* bytes_wanted);

// Whether the threads of the stream wait for the next op without falling asleep.
void keep_awake(rlhf_stream*, bool);

}  // namespace rlhf
