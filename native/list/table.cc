// The tables, expanded from the list.
#include "native/list/table.h"

#include <cstdio>
#include <cstring>

namespace rlhf {
namespace {

#define STRING(x) #x
struct Cursor {
  const Value* value;
  template <class T>
  View<T> tensor() {
    const rlhf_tensor* t = (value++)->tensor;
    View<T> v{nullptr, {1, 1, 1, 1}, 0, RLHF_ROW_MAJOR, RLHF_F32};
    if (!t) return v;
    for (int i = 0; i < t->rank; i++) v.dim[i] = t->dims[i];
    static float nothing[16];  // an empty tensor is there, although it has no memory
    v.data = t->data ? static_cast<T*>(t->data) : reinterpret_cast<T*>(nothing);
    v.stride = t->stride, v.layout = t->layout, v.dtype = t->dtype;
    return v;
  }
};

#define F32 float
#define F64 double
#define I32 int32_t
#define ROWS float
#define EITHER float
#define WEIGHT float
#define SAME float
#define IN(type, name, dims) a.name = c.tensor<const type>();
#define OPT(type, name, dims) a.name = c.tensor<const type>();
#define OUT(type, name, dims) a.name = c.tensor<type>();
#define OPT_OUT(type, name, dims) a.name = c.tensor<type>();
#define ADD(type, name, dims) a.name = c.tensor<type>();
#define OPT_ADD(type, name, dims) a.name = c.tensor<type>();
#define IDS(name, dims, limit) a.name = c.tensor<const int32_t>();
#define OFFSETS(name, dims, total) a.name = c.tensor<const int32_t>();
#define REAL(name, range) a.name = (c.value++)->real;
#define INT(name, range) a.name = (c.value++)->integer;
#define CHOICE(list, name) a.name = static_cast<list>((c.value++)->integer);
#define OP(op, arguments)                                                   \
  void run_##op(const Kernels& kernels, Context& ctx, const Value* value) { \
    op##_args a;                                                            \
    Cursor c{value};                                                        \
    arguments;                                                              \
    kernels.op(ctx, a);                                                     \
  }
#include "native/list/ops.h"
#include "native/list/ops_end.h"
#undef F32
#undef F64
#undef I32
#undef ROWS
#undef EITHER
#undef WEIGHT
#undef SAME

}  // namespace

const std::vector<Op>& op_table() {
#define IN(type, name, dims) {Kind::in, #type, #name, dims, ""},
#define OPT(type, name, dims) {Kind::opt, #type, #name, dims, ""},
#define OUT(type, name, dims) {Kind::out, #type, #name, dims, ""},
#define OPT_OUT(type, name, dims) {Kind::opt_out, #type, #name, dims, ""},
#define ADD(type, name, dims) {Kind::add, #type, #name, dims, ""},
#define OPT_ADD(type, name, dims) {Kind::opt_add, #type, #name, dims, ""},
#define IDS(name, dims, limit) {Kind::ids, "I32", #name, dims, limit},
#define OFFSETS(name, dims, total) {Kind::offsets, "I32", #name, dims, total},
#define REAL(name, range) {Kind::real, "", #name, "", "", range},
#define INT(name, range) {Kind::integer, "", #name, "", "", range},
#define CHOICE(list, name) {Kind::choice, #list, #name, "", ""},
#define OP(op, arguments) {#op, {arguments}, run_##op, [](const Kernels& k) { return k.op != nullptr; }},
  static const std::vector<Op>& table = *new std::vector<Op>{
  // never destroyed: a process may end while threads compute
#include "native/list/ops.h"
  };
#include "native/list/ops_end.h"
  return table;
}

const std::vector<Choice>& choice_table() {
#define ITEM(name) #name,
#define LIST(list, items) {#list, {items}},
  static const std::vector<Choice>& table = *new std::vector<Choice>{RLHF_CHOICES(LIST)};
#undef LIST
#undef ITEM
  return table;
}

// which ops ask for workspace
#define IN(type, name, dims)
#define OPT IN
#define OUT IN
#define OPT_OUT IN
#define ADD IN
#define OPT_ADD IN
#define IDS IN
#define OFFSETS IN
#define REAL(name, range)
#define INT(name, range)
#define CHOICE(list, name)
#define SCRATCH || true
#define OP(name, arguments) (false arguments),
static const bool with_scratch[] = {
#include "native/list/ops.h"
#include "native/list/ops_end.h"
};
bool asks_for_workspace(int op) { return with_scratch[op]; }

std::string text(const Range& range) {
  char ends[64];
  std::snprintf(
      ends, sizeof ends, "%c%g, %g%c", range.open_low ? '(' : '[', range.low, range.high, range.open_high ? ')' : ']');
  return ends;
}

bool takes_either(const Argument& a) {
  return std::strcmp(a.type, "EITHER") == 0 || std::strcmp(a.type, "WEIGHT") == 0;
}

std::vector<const char*> cpu_dtypes(const Op& op) {
  for (const Argument& a : op.arguments)
    if (takes_either(a)) return {"f32", "bf16"};
  return {"f32"};
}

std::vector<const char*> cuda_dtypes(const Op& op) {
  if (!op.has(cuda::kernels)) return {};
  if (cuda::takes_bf16(op.name)) return {"f32", "bf16"};
  return {"f32"};
}

}  // namespace rlhf
