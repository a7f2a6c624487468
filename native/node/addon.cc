// The Node addon: its class Device, the list of ops as JSON, and functions of the law of arithmetic. A call of an op is
// a frame of numbers (frame.h): there is no code per op. What runs while the environment may be torn down is in
// Node-API's own calls (node.h).
#include <napi.h>

#if !defined(_WIN32)
#include <sys/file.h>
#endif

#include <cerrno>
#include <cstring>
#include <string>

#include "native/abi/rlhf_kernels.h"
#include "native/cpu/threads.h"
#include "native/node/device.h"
#include "native/node/environment.h"
#include "native/node/node.h"

#if RLHF_FAILING
napi_status export_failing(napi_env, napi_value exports);  // test/native/fake/allocations.cc
#endif

namespace {

using namespace rlhf;

Napi::Number number(Napi::Env env, double x) { return Napi::Number::New(env, x); }

template <double (*f)(double)>
napi_value unary(napi_env env, napi_callback_info info) {
  return number(env, f(Arguments(env, info, "math").number(0, "x")));
}
napi_value power(napi_env env, napi_callback_info info) {
  const Arguments given(env, info, "pow");
  return number(env, rlhf_pow(given.number(0, "x"), given.number(1, "y")));
}

// lock(file descriptor): whether this process has it now; false if another has. It ends with the last descriptor of the
// file.
napi_value lock(napi_env env, napi_callback_info info) {
  const int file = int(Arguments(env, info, "lock").whole(0, "file descriptor", 0, 2147483647));
#if !defined(_WIN32)
  const bool locked = flock(file, LOCK_EX | LOCK_NB) == 0;
  if (!locked && errno != EWOULDBLOCK)
    throw Refusal{Refusal::type, "FILE", std::string("it cannot be locked: ") + std::strerror(errno)};
  return boolean(env, locked);
#else
  return boolean(env, file >= 0);
#endif
}

template <napi_value (*f)(napi_env, napi_callback_info)>
Napi::Value function(Napi::Env env, const char* name) {
  napi_value out;
  must(napi_create_function(env, name, NAPI_AUTO_LENGTH, guarded<f>, nullptr, &out));
  return {env, out};
}

napi_value start(napi_env raw, napi_callback_info exports) {
  const Napi::Env env(raw);
  Napi::Object out(env, reinterpret_cast<napi_value>(exports));
  Environment::open(env);
  out.Set("Device", define_device(env));
  out.Set("list", rlhf_ops_json());
  out.Set("isaAvailable", rlhf_isa_available());
  out.Set("cores", cores()), out.Set("lawVersion", RLHF_LAW_VERSION);
  out.Set("exp", function<unary<rlhf_exp>>(env, "exp")), out.Set("log", function<unary<rlhf_log>>(env, "log"));
  out.Set("cos", function<unary<rlhf_cos>>(env, "cos")), out.Set("pow", function<power>(env, "pow"));
  out.Set("lock", function<lock>(env, "lock"));
#if RLHF_FAILING
  must(export_failing(env, out));
#endif
  return out;
}

}  // namespace

NAPI_MODULE_INIT() { return guarded<start>(env, reinterpret_cast<napi_callback_info>(exports)); }
