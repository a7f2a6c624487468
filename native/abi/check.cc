#include "native/abi/check.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>

namespace rlhf {
namespace {

int dtype_of(const char* type) {
  if (type[0] == 'I') return RLHF_I32;
  return std::strcmp(type, "F64") == 0 ? RLHF_F64 : RLHF_F32;
}

}  // namespace

rlhf_status Checker::refuse(rlhf_status status, const char* format, ...) {
  int n = std::snprintf(on_->message, sizeof on_->message, "%s: ", op_.name);
  va_list list;
  va_start(list, format);
  std::vsnprintf(on_->message + n, sizeof on_->message - size_t(n), format, list);
  va_end(list);
  return status;
}

rlhf_status Checker::check(const Value* values, bool measuring) {
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

rlhf_status Checker::scalar(const Argument& a, const Value& v) {
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
bool Checker::bf16(const Argument& a) const {
  return narrow_ &&
         (std::strcmp(a.type, "ROWS") == 0 || std::strcmp(a.type, "WEIGHT") == 0 || std::strcmp(a.type, "SAME") == 0);
}

rlhf_status Checker::tensor(const Argument& a, const rlhf_tensor* t) {
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

rlhf_status Checker::shape(const Argument& a, const rlhf_tensor* t) {
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
  return rank == t->rank ? RLHF_OK : refuse(RLHF_BAD_ARGUMENT, "%s has rank %d, wanted [%s]", a.name, t->rank, a.dims);
}

rlhf_status Checker::contents(const Argument& a, const rlhf_tensor* t) {
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
bool Checker::within(const int32_t* x, int64_t n, int64_t limit) {
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

}  // namespace rlhf
