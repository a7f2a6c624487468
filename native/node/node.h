// Node-API for functions that may be given anything at any time, even while their environment is torn down. Each status
// is looked at, and what a function throws becomes an exception of JavaScript.
#pragma once
#include <node_api.h>

#include <cmath>
#include <cstdio>
#include <new>
#include <string>

namespace rlhf {

// JavaScript has an exception pending or runs no more: there is nothing to do but return.
struct Stopped {};

inline void must(napi_status status) {
  if (status != napi_ok) throw Stopped{};
}

// A TypeError or RangeError with a code.
struct Refusal {
  enum Kind { type, range } kind;
  const char* code;
  std::string message;
};

constexpr double EXACT = 9007199254740991;  // whole numbers up to here are exact

// Whether it is a whole number of this range, which lies within the exact ones.
inline bool is_whole(double x, double low, double high) { return x >= low && x <= high && double(int64_t(x)) == x; }

// A number as JavaScript shows it, where it is a whole one.
inline std::string text(double x) {
  char digits[32];
  std::snprintf(digits, sizeof digits, is_whole(x, -EXACT, EXACT) ? "%.0f" : "%g", x);
  return digits;
}

// A new error, or null where JavaScript runs no more.
inline napi_value error_of(napi_env env, Refusal::Kind kind, const char* code, const char* message) {
  napi_value name, text, error = nullptr;
  if (napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &text) != napi_ok)
    return nullptr;
  const napi_status made = kind == Refusal::range ? napi_create_range_error(env, name, text, &error)
                                                  : napi_create_type_error(env, name, text, &error);
  return made == napi_ok ? error : nullptr;
}

inline void throw_error(napi_env env, Refusal::Kind kind, const char* code, const char* message) {
  bool pending = true;
  if (napi_is_exception_pending(env, &pending) != napi_ok || pending) return;
  if (napi_value error = error_of(env, kind, code, message)) napi_throw(env, error);
}

inline napi_value boolean(napi_env env, bool x) {
  napi_value out;
  must(napi_get_boolean(env, x, &out));
  return out;
}

// What a function was called with.
class Arguments {
 public:
  static constexpr size_t MOST = 3;

  Arguments(napi_env env, napi_callback_info info, const char* function) : env(env), function_(function) {
    size_t count = MOST;
    must(napi_get_cb_info(env, info, &count, values_, &self, nullptr));  // what is missing is undefined
  }
  napi_value operator[](size_t i) const { return values_[i]; }

  double number(size_t i, const char* name) const {
    double x;
    const napi_status status = napi_get_value_double(env, values_[i], &x);
    if (status == napi_number_expected)
      throw Refusal{Refusal::type, "ARGUMENT", std::string(function_) + ": " + name + " is no number"};
    must(status);
    return x;
  }
  double whole(size_t i, const char* name, double low = 0, double high = EXACT) const {
    const double x = number(i, name);
    if (!is_whole(x, low, high))
      throw Refusal{Refusal::range, "ARGUMENT",
          std::string(function_) + ": " + name + " is " + text(x) + ", wanted a whole number from " + text(low) +
              " to " + text(high)};
    return x;
  }
  bool is(size_t i, napi_valuetype wanted) const {
    napi_valuetype type;
    must(napi_typeof(env, values_[i], &type));
    return type == wanted;
  }
  // The memory of a typed array of this kind, as it is now.
  template <class T>
  T* array(size_t i, const char* name, napi_typedarray_type wanted, size_t* length) const {
    napi_typedarray_type type;
    void* data = nullptr;
    const napi_status status = napi_get_typedarray_info(env, values_[i], &type, length, &data, nullptr, nullptr);
    if (status != napi_invalid_arg) must(status);
    if (status != napi_ok || type != wanted)
      throw Refusal{Refusal::type, "ARGUMENT", std::string(function_) + ": " + name + " is no array of its type"};
    if (!data) *length = 0;
    return static_cast<T*>(data);
  }

  const napi_env env;
  napi_value self = nullptr;

 private:
  const char* const function_;
  napi_value values_[MOST] = {};
};

// f, as JavaScript calls it.
template <napi_value (*f)(napi_env, napi_callback_info)>
napi_value guarded(napi_env env, napi_callback_info info) noexcept {
  try {
    return f(env, info);
  } catch (const Stopped&) {
    throw_error(env, Refusal::type, "DEVICE", "Node.js refused a call of the addon");
  } catch (const Refusal& refusal) {
    throw_error(env, refusal.kind, refusal.code, refusal.message.c_str());
  } catch (const std::bad_alloc&) { throw_error(env, Refusal::range, "MEMORY", "out of memory"); } catch (...) {
    throw_error(env, Refusal::type, "DEVICE", "the addon failed");
  }
  return nullptr;
}

}  // namespace rlhf
