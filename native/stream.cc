// The C interface: streams, the checks of every call, and one function per op of the list.
#include "native/rlhf_kernels.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "native/gpu.h"
#include "native/op_table.h"
#include "native/threads.h"

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
namespace cuda {
extern const Kernels kernels;
bool takes_bf16(const char* op);
}  // namespace cuda

namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool (*there)();
};

// clang-format off
const Isa cuda_isa{"cuda", &cuda::kernels, [] { return true; }};
const Isa isas[] = {
    // best first
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
// clang-format on

// ---- the tables, expanded from the list

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
#include "native/ops.h"
#include "native/ops_end.h"
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
#include "native/ops.h"
  };
#include "native/ops_end.h"
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

}  // namespace rlhf

struct rlhf_stream {
  const rlhf::Isa* isa;
  std::unique_ptr<rlhf::Pool> pool;
  std::unique_ptr<rlhf::GpuDevice> gpu;  // of a GPU's stream, which has no pool
  std::string name;  // the ISA, or the GPU
  char message[512];
};

namespace rlhf {
namespace {

int64_t bytes_of(int32_t dtype) { return dtype == RLHF_F64 ? 8 : dtype == RLHF_BF16 ? 2 : 4; }

int dtype_of(const char* type) {
  if (type[0] == 'I') return RLHF_I32;
  return std::strcmp(type, "F64") == 0 ? RLHF_F64 : RLHF_F32;
}

// By itself f32 or bf16, on a CPU.
bool takes_either(const Argument& a) {
  return std::strcmp(a.type, "EITHER") == 0 || std::strcmp(a.type, "WEIGHT") == 0;
}

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

  rlhf_status refuse(rlhf_status status, const char* format, ...) __attribute__((format(printf, 3, 4))) {
    int n = std::snprintf(on_->message, sizeof on_->message, "%s: ", op_.name);
    va_list list;
    va_start(list, format);
    std::vsnprintf(on_->message + n, sizeof on_->message - size_t(n), format, list);
    va_end(list);
    return status;
  }

  // Ids are not looked at while a workspace is measured: no size depends on them, and the call does.
  rlhf_status check(const Value* values, bool measuring) {
    if (on_->gpu && cuda::takes_bf16(op_.name))
      for (size_t i = 0; i < op_.arguments.size() && !narrow_; i++)
        narrow_ = op_.arguments[i].kind == Kind::in && std::strcmp(op_.arguments[i].type, "ROWS") == 0 &&
                  values[i].tensor && values[i].tensor->dtype == RLHF_BF16;
    for (size_t i = 0; i < op_.arguments.size(); i++)
      if (rlhf_status s = is_tensor(op_.arguments[i].kind) ? tensor(op_.arguments[i], values[i].tensor)
                                                           : scalar(op_.arguments[i], values[i]))
        return s;
    for (size_t i = 0; i < op_.arguments.size() && !on_->gpu; i++)  // on a GPU the kernels look
      if (!measuring || op_.arguments[i].kind != Kind::ids)
        if (rlhf_status s = contents(op_.arguments[i], values[i].tensor)) return s;
    return RLHF_OK;
  }

 private:
  rlhf_status scalar(const Argument& a, const Value& v) {
    if (a.kind != Kind::choice) {
      const double x = a.kind == Kind::real ? v.real : double(v.integer);
      return a.range.has(x)
                 ? RLHF_OK
                 : refuse(RLHF_BAD_ARGUMENT, "%s is %g, wanted a number in %s", a.name, x, text(a.range).c_str());
    }
    for (const Choice& list : choice_table())
      if (std::strcmp(list.name, a.type) == 0 && uint64_t(v.integer) >= list.items.size())
        return refuse(
            RLHF_BAD_ARGUMENT, "%s is %lld, wanted 0 to %zu", a.name, (long long)v.integer, list.items.size() - 1);
    return RLHF_OK;
  }

  // On a GPU that takes it, all of an op's ROWS, WEIGHT and SAME may be bf16 together.
  bool bf16(const Argument& a) const {
    return narrow_ &&
           (std::strcmp(a.type, "ROWS") == 0 || std::strcmp(a.type, "WEIGHT") == 0 || std::strcmp(a.type, "SAME") == 0);
  }

  rlhf_status tensor(const Argument& a, const rlhf_tensor* t) {
    if (!t) return is_optional(a.kind) ? RLHF_OK : refuse(RLHF_BAD_ARGUMENT, "%s is null", a.name);
    const int wanted = bf16(a) ? RLHF_BF16 : dtype_of(a.type);
    const bool either = !on_->gpu && takes_either(a);
    if (t->dtype != wanted && !(either && t->dtype == RLHF_BF16))
      return refuse(RLHF_BAD_ARGUMENT, "%s has dtype %d, wanted %d%s", a.name, t->dtype, wanted, either ? " or 3" : "");
    if (t->rank < 0 || t->rank > 4) return refuse(RLHF_BAD_ARGUMENT, "%s has rank %d, wanted 0 to 4", a.name, t->rank);
    int64_t inner = 1, size = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
      if (t->dims[i] < 0)
        return refuse(RLHF_BAD_ARGUMENT, "%s has the negative size %lld", a.name, (long long)t->dims[i]);
      inner = size;
      if (__builtin_mul_overflow(size, t->dims[i], &size) || size > (int64_t(1) << 56))
        return refuse(RLHF_BAD_ARGUMENT, "%s is too large", a.name);
    }
    if (size > 0 && !t->data) return refuse(RLHF_BAD_ARGUMENT, "%s has no data", a.name);
    const int64_t element = bytes_of(t->dtype);
    if (reinterpret_cast<uintptr_t>(t->data) % uintptr_t(element))
      return refuse(RLHF_BAD_ARGUMENT, "%s begins at %p, wanted a multiple of the %lld bytes of an element", a.name,
          t->data, (long long)element);
    bool rows = std::strcmp(a.type, "ROWS") == 0;
    if (t->rank > 0 && t->dims[0] > 1 && (rows ? t->stride < inner : t->stride != inner))
      return refuse(RLHF_BAD_ARGUMENT, "%s has stride %lld, wanted %lld%s", a.name, (long long)t->stride,
          (long long)inner, rows ? " or more" : "");
    int64_t extent;
    if (t->rank > 0 && (__builtin_mul_overflow(t->dims[0], t->stride, &extent) || extent > (int64_t(1) << 56)))
      return refuse(RLHF_BAD_ARGUMENT, "%s has stride %lld, which is too large", a.name, (long long)t->stride);
    if (t->layout != RLHF_ROW_MAJOR &&
        (std::strcmp(a.type, "WEIGHT") != 0 || t->layout < 0 || t->layout > RLHF_PANELS_TRANSPOSED))
      return refuse(RLHF_BAD_ARGUMENT, "%s has layout %d, wanted row-major", a.name, t->layout);
    return shape(a, t);
  }

  rlhf_status shape(const Argument& a, const rlhf_tensor* t) {
    if (a.dims[0] == '.') {
      if (!sizes_.any) sizes_.any = t;
      bool same = sizes_.any->rank == t->rank;
      for (int i = 0; same && i < t->rank; i++) same = sizes_.any->dims[i] == t->dims[i];
      return same ? RLHF_OK : refuse(RLHF_BAD_ARGUMENT, "%s differs in shape from the argument before it", a.name);
    }
    int rank = 0;
    for (const char* d = a.dims; *d; rank++) {
      if (rank >= t->rank) return refuse(RLHF_BAD_ARGUMENT, "%s has rank %d, wanted [%s]", a.name, t->rank, a.dims);
      int64_t wanted;
      if (*d >= '0' && *d <= '9') {
        for (wanted = 0; *d >= '0' && *d <= '9'; d++) wanted = wanted * 10 + (*d - '0');
      } else {
        int64_t& size = sizes_.letter[int(*d++)];
        int plus = d[0] == '+' ? 1 : 0;  // "B+1"
        d += 2 * plus;
        if (size < 0) size = t->dims[rank] - plus;
        wanted = size + plus;
        if (size < 0) return refuse(RLHF_BAD_ARGUMENT, "%s is empty, wanted [%s]", a.name, a.dims);
      }
      if (t->dims[rank] != wanted)
        return refuse(RLHF_BAD_ARGUMENT, "%s has size %lld in dimension %d, wanted %lld ([%s])", a.name,
            (long long)t->dims[rank], rank, (long long)wanted, a.dims);
      if (*d == ',') d++;
    }
    return rank == t->rank ? RLHF_OK
                           : refuse(RLHF_BAD_ARGUMENT, "%s has rank %d, wanted [%s]", a.name, t->rank, a.dims);
  }

  rlhf_status contents(const Argument& a, const rlhf_tensor* t) {
    if (a.kind != Kind::ids && a.kind != Kind::offsets) return RLHF_OK;
    const int32_t* x = static_cast<const int32_t*>(t->data);
    int64_t n = t->dims[0], limit = sizes_.letter[int(a.limit[0])];
    if (a.kind == Kind::ids) {
      if (within(x, n, limit)) return RLHF_OK;
      for (int64_t i = 0; i < n; i++)
        if (x[i] < 0 || x[i] >= limit)
          return refuse(
              RLHF_BAD_ID, "%s[%lld] is %d, wanted 0 to %lld", a.name, (long long)i, x[i], (long long)limit - 1);
      return RLHF_OK;
    }
    if (x[0] != 0) return refuse(RLHF_BAD_OFFSETS, "%s[0] is %d, wanted 0", a.name, x[0]);
    for (int64_t i = 1; i < n; i++)
      if (x[i] < x[i - 1])
        return refuse(
            RLHF_BAD_OFFSETS, "%s[%lld] is %d, less than the one before, %d", a.name, (long long)i, x[i], x[i - 1]);
    if (x[n - 1] != limit)
      return refuse(RLHF_BAD_OFFSETS, "%s ends with %d, wanted %lld", a.name, x[n - 1], (long long)limit);
    return RLHF_OK;
  }

  // All of x in [0, limit): of x and most - x neither is negative. Long lists over the threads.
  bool within(const int32_t* x, int64_t n, int64_t limit) {
    const uint32_t most = uint32_t(std::min<int64_t>(limit - 1, std::numeric_limits<int32_t>::max()));
    std::atomic<uint32_t> signs{0};
    Context ctx{on_->pool.get(), on_->pool->size(), nullptr, 0, false, nullptr};
    ctx.split(n, 1, 65536, [&](int64_t begin, int64_t end) {
      uint32_t own = 0;
      for (int64_t i = begin; i < end; i++) own |= uint32_t(x[i]) | (most - uint32_t(x[i]));
      signs.fetch_or(own, std::memory_order_relaxed);
    });
    return signs.load(std::memory_order_relaxed) >> 31 == 0;
  }

  rlhf_stream* on_;
  const Op& op_;
  Sizes sizes_;
  bool narrow_ = false;
};

int64_t elements(const rlhf_tensor* t) {
  int64_t size = 1;
  for (int d = 0; d < t->rank; d++) size *= t->dims[d];
  return size;
}

// No result has an element: whatever the sizes of what is read, there is nothing to compute, nor to take memory for.
bool is_empty(const Op& op, const Value* values) {
  for (size_t i = 0; i < op.arguments.size(); i++)
    if (is_result(op.arguments[i].kind) && values[i].tensor && elements(values[i].tensor) > 0) return false;
  return true;
}

// What an op that could not run leaves behind: NaN, never an old number.
void poison(rlhf_stream* on, const Op& op, const Value* values) {
  for (size_t i = 0; i < op.arguments.size(); i++) {
    const rlhf_tensor* t = values[i].tensor;
    if (!is_written(op.arguments[i].kind) || !t) continue;
    const int64_t size = elements(t);
    if (on->gpu) {
      on->gpu->fill(t->data, t->dtype == RLHF_I32 ? 0 : 0xff, size * bytes_of(t->dtype));
      continue;
    }
    if (t->dtype == RLHF_F32) std::fill_n(static_cast<float*>(t->data), size, std::numeric_limits<float>::quiet_NaN());
    if (t->dtype == RLHF_F64)
      std::fill_n(static_cast<double*>(t->data), size, std::numeric_limits<double>::quiet_NaN());
    if (t->dtype == RLHF_I32) std::fill_n(static_cast<int32_t*>(t->data), size, 0);
    if (t->dtype == RLHF_BF16) std::fill_n(static_cast<uint16_t*>(t->data), size, uint16_t(0x7fc0));
  }
}

}  // namespace

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
const bool asks_for_workspace[] = {
#include "native/ops.h"
#include "native/ops_end.h"
};

rlhf_status invoke(
    rlhf_stream* on, int index, const Value* values, void* workspace, int64_t workspace_bytes, int64_t* bytes_wanted) {
  const Op& op = op_table()[size_t(index)];
  Checker checker(on, op);
  on->message[0] = 0;
  if (!op.has(*on->isa->kernels)) return checker.refuse(RLHF_BAD_ARGUMENT, "not available on %s", on->isa->name);
  if (rlhf_status s = checker.check(values, bytes_wanted != nullptr)) {
    if (s != RLHF_BAD_ARGUMENT && !bytes_wanted) poison(on, op, values);
    return s;
  }
  if (is_empty(op, values) || (bytes_wanted && !on->gpu && !asks_for_workspace[index])) {
    if (bytes_wanted) *bytes_wanted = 0;
    return RLHF_OK;
  }
  KeepDenormals keep;
  if (!workspace) workspace_bytes = 0;
  Context ctx{on->pool.get(), on->pool ? on->pool->size() : 1, static_cast<char*>(workspace), workspace_bytes,
      bytes_wanted != nullptr, nullptr, on->gpu.get(), index};
  if (bytes_wanted) ctx.workspace = nullptr, ctx.workspace_bytes = 0;
  op.run(*on->isa->kernels, ctx, values);
  if (bytes_wanted) return *bytes_wanted = ctx.workspace_bytes, RLHF_OK;
  if (!ctx.failure) return RLHF_OK;
  const bool small = ctx.workspace_bytes > workspace_bytes, launch = on->gpu && ctx.failure == on->gpu->failure;
  const rlhf_status status = checker.refuse(launch  ? RLHF_FAILED
                                            : small ? RLHF_BAD_WORKSPACE
                                                    : RLHF_BAD_ARGUMENT,
      "%s", ctx.failure);
  poison(on, op, values);
  return status;
}

void keep_awake(rlhf_stream* on, bool awake) {
  if (on->pool) on->pool->keep_awake(awake);
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

// What a kernel latched: simt.h
const char* latched(int32_t reason) {
  switch (reason) {
    case RLHF_BAD_ID: return "an id lies outside its range";
    case RLHF_BAD_OFFSETS: return "offsets do not run monotonically from 0 to their total";
    case RLHF_BAD_ARGUMENT | 1 << 8: return "the gradient norm is not finite";
    default: return "whitening needs at least two unmasked tokens";
  }
}

std::string text(const Range& range) {
  char ends[64];
  std::snprintf(
      ends, sizeof ends, "%c%g, %g%c", range.open_low ? '(' : '[', range.low, range.high, range.open_high ? ')' : ']');
  return ends;
}

// Names are C's identifiers, so nothing needs escaping.
std::string ops_json() {
  static const char* const kinds[] = {
      "in", "opt", "out", "opt_out", "add", "opt_add", "ids", "offsets", "real", "integer", "choice"};
  const auto quoted = [](const std::string& x) { return '"' + x + '"'; };
  std::string ops, choices;
  for (const Op& op : op_table()) {
    std::string arguments;
    for (const Argument& a : op.arguments)
      arguments += (arguments.empty() ? "" : ", ") + std::string("{\"kind\": ") + quoted(kinds[int(a.kind)]) +
                   ", \"type\": " + quoted(a.type) + ", \"name\": " + quoted(a.name) + ", \"dims\": " + quoted(a.dims) +
                   ", \"limit\": " + quoted(a.limit) +
                   (a.kind == Kind::real || a.kind == Kind::integer ? ", \"range\": " + quoted(text(a.range)) : "") +
                   "}";
    const auto listed = [&](const std::vector<const char*>& dtypes) {
      std::string list;
      for (const char* dtype : dtypes) list += (list.empty() ? "" : ", ") + quoted(dtype);
      return "[" + list + "]";
    };
    ops += (ops.empty() ? "" : ",\n  ") + std::string("{\"name\": ") + quoted(op.name) +
           ", \"cpu\": " + listed(cpu_dtypes(op)) + ", \"cuda\": " + listed(cuda_dtypes(op)) + ", \"arguments\": [" +
           arguments + "]}";
  }
  for (const Choice& choice : choice_table()) {
    std::string items;
    for (const std::string& item : choice.items) items += (items.empty() ? "" : ", ") + quoted(item);
    choices += (choices.empty() ? "" : ", ") + quoted(choice.name) + ": [" + items + "]";
  }
  return "{\"abi\": " + std::to_string(RLHF_ABI_VERSION) + ", \"law\": " + std::to_string(RLHF_LAW_VERSION) +
         ", \"ops\": [\n  " + ops + "\n], \"choices\": {" + choices + "}}\n";
}

}  // namespace rlhf

extern "C" {

rlhf_stream* rlhf_stream_create(const char* isa, int32_t threads) {
  if (threads < 0 || threads > 1024) return nullptr;
  try {
    for (const rlhf::Isa& candidate : rlhf::isas)
      if ((!isa || std::strcmp(isa, candidate.name) == 0) && candidate.there())
        return new rlhf_stream{
            &candidate, std::make_unique<rlhf::Pool>(threads ? threads : rlhf::cores()), nullptr, candidate.name, {}};
  } catch (const std::exception&) {  // no memory, or no more threads
  }
  return nullptr;
}
rlhf_stream* rlhf_cuda_stream_create(int32_t ordinal, void* cuda_stream, char* why, int64_t size) {
  std::string reason;
  if (auto gpu = rlhf::open_gpu(ordinal, cuda_stream, reason)) {
    std::string name = gpu->name();
    return new rlhf_stream{&rlhf::cuda_isa, nullptr, std::move(gpu), std::move(name), {}};
  }
  if (why && size > 0) std::snprintf(why, size_t(size), "%s", reason.c_str());
  return nullptr;
}
rlhf_status rlhf_stream_wait(rlhf_stream* on) {
  if (!on->gpu) return RLHF_OK;
  std::vector<int32_t> errors(rlhf::op_table().size());
  if (!on->gpu->wait() || !on->gpu->read(errors.data(), on->gpu->errors, errors.size() * sizeof(int32_t))) {
    std::snprintf(on->message, sizeof on->message, "%s", on->gpu->failure);
    return RLHF_FAILED;
  }
  for (size_t op = 0; op < errors.size(); op++) {
    if (!errors[op]) continue;
    on->gpu->fill(on->gpu->errors + op, 0, int64_t(sizeof(int32_t)));  // those of other ops are told by the next wait
    std::snprintf(on->message, sizeof on->message, "%s: %s", rlhf::op_table()[op].name, rlhf::latched(errors[op]));
    return rlhf_status(errors[op] & 0xff);
  }
  return RLHF_OK;
}
void* rlhf_stream_allocate(rlhf_stream* on, int64_t bytes) {
  return on->gpu && bytes >= 0 ? on->gpu->allocate(size_t(bytes)) : nullptr;
}
void rlhf_stream_release(rlhf_stream* on, void* data) {
  if (on->gpu && data) on->gpu->release(data);
}
static rlhf_status moved(rlhf_stream* on, bool done) {
  if (!done) std::snprintf(on->message, sizeof on->message, "%s", on->gpu ? on->gpu->failure : "not a GPU's stream");
  return done ? RLHF_OK : RLHF_FAILED;
}
rlhf_status rlhf_stream_write(rlhf_stream* on, void* device, const void* host, int64_t bytes) {
  return moved(on, on->gpu && on->gpu->write(device, host, size_t(bytes)));
}
rlhf_status rlhf_stream_read(rlhf_stream* on, void* host, const void* device, int64_t bytes) {
  return moved(on, on->gpu && on->gpu->read(host, device, size_t(bytes)));
}
void rlhf_stream_destroy(rlhf_stream* stream) { delete stream; }
const char* rlhf_message(const rlhf_stream* stream) { return stream->message; }
const char* rlhf_stream_isa(const rlhf_stream* stream) { return stream->name.c_str(); }
int32_t rlhf_stream_threads(const rlhf_stream* stream) { return stream->pool ? stream->pool->size() : 1; }
const char* rlhf_ops_json(void) {
  static const std::string text = rlhf::ops_json();
  return text.c_str();
}
const char* rlhf_isa_available(void) {
  static const std::string names = [] {
    std::string list;
    for (const rlhf::Isa& isa : rlhf::isas)
      if (isa.there()) list += (list.empty() ? "" : " ") + std::string(isa.name);
    return list;
  }();
  return names.c_str();
}

// An op's arguments become a sequence (type, name)(type, name)..., read twice: as parameters and as values.
#define PARAMETERS(sequence) END(PARAMETER_A sequence)
#define PARAMETER_A(type, name) type name, PARAMETER_B
#define PARAMETER_B(type, name) type name, PARAMETER_A
#define PARAMETER_A_END
#define PARAMETER_B_END
#define VALUES(sequence) END(VALUE_A sequence)
#define VALUE_A(type, name) rlhf::Value(name), VALUE_B
#define VALUE_B(type, name) rlhf::Value(name), VALUE_A
#define VALUE_A_END
#define VALUE_B_END
#define END(...) END_(__VA_ARGS__)
#define END_(...) __VA_ARGS__##_END

enum OpIndex {
#define OP(name, arguments) op_##name,
#include "native/ops.h"
#include "native/ops_end.h"
};

#define IN(type, name, dims) (const rlhf_tensor*, name)
#define OPT IN
#define OUT IN
#define OPT_OUT IN
#define ADD IN
#define OPT_ADD IN
#define IDS(name, dims, limit) (const rlhf_tensor*, name)
#define OFFSETS IDS
#define REAL(name, range) (double, name)
#define INT(name, range) (int64_t, name)
#define CHOICE(list, name) (int64_t, name)
#define OP(op, arguments)                                                                                  \
  rlhf_status rlhf_##op(rlhf_stream* on, PARAMETERS(arguments) void* workspace, int64_t workspace_bytes) { \
    const rlhf::Value values_[] = {VALUES(arguments)};                                                     \
    return rlhf::invoke(on, op_##op, values_, workspace, workspace_bytes, nullptr);                        \
  }                                                                                                        \
  int64_t rlhf_##op##_workspace(PARAMETERS(arguments) rlhf_stream* on) {                                   \
    const rlhf::Value values_[] = {VALUES(arguments)};                                                     \
    int64_t bytes = 0;                                                                                     \
    return rlhf::invoke(on, op_##op, values_, nullptr, 0, &bytes) == RLHF_OK ? bytes : -1;                 \
  }
#include "native/ops.h"
#include "native/ops_end.h"

}  // extern "C"
