// The C interface: streams, and one function per op of the list.
#include "native/abi/stream.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "native/abi/check.h"

namespace rlhf {
namespace {

const Isa cuda_isa{"cuda", &cuda::kernels, [] { return true; }};

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
  if (is_empty(op, values) || (bytes_wanted && !on->gpu && !asks_for_workspace(index))) {
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

// What a kernel latched: simt.h
const char* latched(int32_t reason) {
  switch (reason) {
    case RLHF_BAD_ID: return "an id lies outside its range";
    case RLHF_BAD_OFFSETS: return "offsets do not run monotonically from 0 to their total";
    case RLHF_BAD_ARGUMENT | 1 << 8: return "the gradient norm is not finite";
    default: return "whitening needs at least two unmasked tokens";
  }
}

}  // namespace rlhf

extern "C" {

rlhf_stream* rlhf_stream_create(const char* isa, int32_t threads) {
  if (threads < 0 || threads > 1024) return nullptr;
  try {
    for (const rlhf::Isa& candidate : rlhf::isas())
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
    for (const rlhf::Isa& isa : rlhf::isas())
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
#include "native/list/ops.h"
#include "native/list/ops_end.h"
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
#include "native/list/ops.h"
#include "native/list/ops_end.h"

}  // extern "C"
