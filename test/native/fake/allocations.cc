// Allocations of the addon that fail on demand. The linker has its objects call these in place of the libraries' own
// (--wrap).
#include <node_api.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> made{0}, first{0}, last{0};  // those in [first, last) fail

bool fails() {
  const int64_t n = ++made;
  return n >= first.load() && n < last.load();
}

// failAllocations(from, count): of those from now on, from 1. Returns how many were made so far.
napi_value fail_allocations(napi_env env, napi_callback_info info) {
  size_t count = 2;
  napi_value given[2], out;
  int64_t from = 0, many = 0;
  napi_get_cb_info(env, info, &count, given, nullptr, nullptr);
  napi_get_value_int64(env, given[0], &from), napi_get_value_int64(env, given[1], &many);
  const int64_t now = made.load();
  last = 0, first = now + from, last = many > 0 ? now + from + many : 0;
  napi_create_int64(env, now, &out);
  return out;
}

}  // namespace

napi_status export_failing(napi_env env, napi_value exports) {
  napi_value function;
  const napi_status made_it =
      napi_create_function(env, "failAllocations", NAPI_AUTO_LENGTH, fail_allocations, nullptr, &function);
  return made_it == napi_ok ? napi_set_named_property(env, exports, "failAllocations", function) : made_it;
}

extern "C" {

void* __real_malloc(size_t);
void* __real_aligned_alloc(size_t, size_t);
void* __real__Znwm(size_t);
void* __real__Znam(size_t);
void* __real__ZnwmSt11align_val_t(size_t, std::align_val_t);

void* __wrap_malloc(size_t bytes) { return fails() ? nullptr : __real_malloc(bytes); }
void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  return fails() ? nullptr : __real_aligned_alloc(alignment, bytes);
}
void* __wrap__Znwm(size_t bytes) { return fails() ? throw std::bad_alloc() : __real__Znwm(bytes); }
void* __wrap__Znam(size_t bytes) { return fails() ? throw std::bad_alloc() : __real__Znam(bytes); }
void* __wrap__ZnwmRKSt9nothrow_t(size_t bytes, const std::nothrow_t&) {
  return fails() ? nullptr : __real_malloc(bytes);
}
void* __wrap__ZnamRKSt9nothrow_t(size_t bytes, const std::nothrow_t&) {
  return fails() ? nullptr : __real_malloc(bytes);
}
void* __wrap__ZnwmSt11align_val_t(size_t bytes, std::align_val_t alignment) {
  return fails() ? throw std::bad_alloc() : __real__ZnwmSt11align_val_t(bytes, alignment);
}

}  // extern "C"
