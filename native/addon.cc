// The Node addon: a Device is a stream of a CPU or a GPU, its memory and its queue; the list of ops is exported as data, and a call is
// a frame of numbers that lib/device/device.ts fills: the op, then for a tensor its address, dtype (-1: absent), layout, rank, four
// dims and row stride, for a scalar the number itself. There is no code per op.
#include <napi.h>

#if !defined(_WIN32)
#include <sys/file.h>
#endif

#include <cerrno>
#include <cstring>
#include <memory>
#include <sstream>

#include "native/memory.h"
#include "native/queue.h"
#include "native/rlhf_kernels.h"
#include "native/threads.h"

namespace {

using namespace rlhf;

constexpr size_t TENSOR_NUMBERS = 9;
using Recorded = std::shared_ptr<const Calls>;

struct Read {
  Napi::Promise::Deferred deferred;
  Napi::Reference<Napi::ArrayBuffer> buffer;
  Failure failure;
};

class Device : public Napi::ObjectWrap<Device> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Device",
        {InstanceMethod<&Device::allocate>("allocate"), InstanceMethod<&Device::release>("release"), InstanceMethod<&Device::write>("write"),
            InstanceMethod<&Device::read>("read"), InstanceMethod<&Device::call>("call"), InstanceMethod<&Device::record>("record"),
            InstanceMethod<&Device::run>("run"), InstanceMethod<&Device::memory>("memory"), InstanceMethod<&Device::trim>("trim"),
            InstanceMethod<&Device::close>("close"), InstanceAccessor<&Device::isa>("isa"), InstanceAccessor<&Device::threads>("threads")});
  }

  // new Device(isa | undefined, threads: 0 for one per core, planned: calls are not run, their workspace is found), or new Device("cuda", ordinal)
  explicit Device(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Device>(info) {
    std::string isa = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
    const int32_t number = info[1].As<Napi::Number>().Int32Value();
    gpu_ = isa == "cuda";
    planned_ = info[2].ToBoolean();
    char why[512] = "";
    stream_ = gpu_ ? rlhf_cuda_stream_create(number, nullptr, why, sizeof why) : rlhf_stream_create(isa.empty() ? nullptr : isa.c_str(), number);
    const std::string none = "the system gave no threads for a device of " + std::to_string(number ? number : cores());
    if (!stream_) throw Napi::RangeError::New(info.Env(), gpu_ ? why : none);  // the ISA is known to be there
    const Pages pages{gpu_ ? stream_ : nullptr};
    memory_ = std::make_unique<Memory>(pages);
    try {
      queue_ = std::make_unique<Queue>(stream_, pages);
    } catch (const std::system_error&) {
      rlhf_stream_destroy(stream_);
      throw Napi::RangeError::New(info.Env(), none);
    }
    settle_ = Napi::ThreadSafeFunction::New(info.Env(), Napi::Function::New(info.Env(), [](const Napi::CallbackInfo&) {}), "rlhf-kernels", 0, 1);
    settle_.Unref(info.Env());
  }
  ~Device() override { shut(); }

 private:
  void shut() {
    if (!stream_) return;
    queue_.reset();
    memory_.reset();
    settle_.Release();
    rlhf_stream_destroy(stream_);
    stream_ = nullptr;
  }

  static void* address(const Napi::Value& value) { return reinterpret_cast<void*>(uintptr_t(value.As<Napi::Number>().DoubleValue())); }

  void open(Napi::Env env) {
    if (!stream_) throw Napi::TypeError::New(env, "the device is closed");
  }

  Napi::Value allocate(const Napi::CallbackInfo& info) {
    open(info.Env());
    double bytes = info[0].As<Napi::Number>().DoubleValue();
    const bool possible = bytes >= 0 && bytes < 1e15;
    void* p = possible ? memory_->allocate(size_t(bytes)) : nullptr;
    if (!p && possible) queue_->drain(), memory_->trim(), p = memory_->allocate(size_t(bytes));
    if (!p) throw Napi::RangeError::New(info.Env(), "out of memory: " + info[0].ToString().Utf8Value() + " bytes wanted");
    return Napi::Number::New(info.Env(), double(reinterpret_cast<uintptr_t>(p)));
  }

  Napi::Value release(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), memory_ && memory_->release(address(info[0]))); }

  // write(address, bytes: Uint8Array): copied before it returns
  void write(const Napi::CallbackInfo& info) {
    open(info.Env());
    auto view = info[1].As<Napi::Uint8Array>();
    std::vector<uint8_t> copy;
    try {
      copy.assign(view.Data(), view.Data() + view.ByteLength());
    } catch (const std::bad_alloc&) {
      throw Napi::RangeError::New(info.Env(), "out of memory: " + std::to_string(view.ByteLength()) + " bytes are to be copied");
    }
    queue_->push([this, to = address(info[0]), copy = std::move(copy)] {
      if (!gpu_) std::memcpy(to, copy.data(), copy.size());
      else keep(rlhf_stream_write(stream_, to, copy.data(), int64_t(copy.size())));
    });
  }

  // A status of the GPU's stream; the message begins with the op, where it is one's.
  void keep(rlhf_status status) {
    if (status == RLHF_OK) return;
    const std::string message = rlhf_message(stream_);
    queue_->keep({status == RLHF_FAILED ? "" : message.substr(0, message.find(':')), message, status});
  }

  // read(address, to: ArrayBuffer): a promise, of it when it is filled, after all that was queued before
  Napi::Value read(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    open(env);
    auto buffer = info[1].As<Napi::ArrayBuffer>();
    auto* read = new Read{Napi::Promise::Deferred::New(env), Napi::Persistent(buffer), {}};
    if (pending_++ == 0) settle_.Ref(env);
    queue_->push([this, read, from = address(info[0]), to = buffer.Data(), bytes = buffer.ByteLength()] {
      if (!gpu_ && bytes) std::memcpy(to, from, bytes);
      if (gpu_ && bytes) keep(rlhf_stream_read(stream_, to, from, int64_t(bytes)));
      if (gpu_) keep(rlhf_stream_wait(stream_));
      read->failure = queue_->take_failure();
      settle_.BlockingCall(read, [this](Napi::Env env, Napi::Function, Read* read) { settled(env, read); });
    });
    return read->deferred.Promise();
  }

  void settled(Napi::Env env, Read* read) {
    std::unique_ptr<Read> owned(read);
    if (!env) return;
    Napi::HandleScope scope(env);
    if (--pending_ == 0 && stream_) settle_.Unref(env);
    if (read->failure.status == RLHF_OK) return read->deferred.Resolve(read->buffer.Value());
    Napi::Object error = Napi::Object::New(env);
    error.Set("op", read->failure.op);
    error.Set("message", read->failure.message);
    error.Set("status", Napi::Number::New(env, read->failure.status));
    read->deferred.Reject(error);
  }

  // An op and its frame; next moves on to what follows.
  static Call read_call(const double*& next) {
    const int op = int(*next++);
    const auto& arguments = op_table()[size_t(op)].arguments;
    Call call{op, std::vector<rlhf::Value>(arguments.size()), {}};
    auto& [_, values, tensors] = call;
    tensors.reserve(arguments.size());
    for (size_t i = 0; i < arguments.size(); i++) {
      if (is_tensor(arguments[i].kind)) {
        rlhf_tensor t{};
        t.data = reinterpret_cast<void*>(uintptr_t(next[0]));
        t.dtype = int32_t(next[1]), t.layout = int32_t(next[2]), t.rank = int32_t(next[3]);
        for (int d = 0; d < 4; d++) t.dims[d] = int64_t(next[4 + d]);
        t.stride = int64_t(next[8]);
        tensors.push_back(t);
        next += TENSOR_NUMBERS;
      } else if (arguments[i].kind == Kind::real) {
        values[i].real = *next++;
      } else {
        values[i].integer = int64_t(*next++);
      }
    }
    call.bind();
    return call;
  }

  // call(frame: Float64Array), the op before its arguments
  void call(const Napi::CallbackInfo& info) {
    open(info.Env());
    const double* next = info[0].As<Napi::Float64Array>().Data();
    if (planned_) return plan(read_call(next));
    auto calls = std::make_shared<Calls>();
    calls->push_back(read_call(next));
    queue_->run(std::move(calls));
  }

  // record(frames: Float64Array), one after another: what run takes
  Napi::Value record(const Napi::CallbackInfo& info) {
    auto frames = info[0].As<Napi::Float64Array>();
    auto calls = std::make_shared<Calls>();
    for (const double *next = frames.Data(), *end = next + frames.ElementLength(); next < end;) calls->push_back(read_call(next));
    return Napi::External<Recorded>::New(info.Env(), new Recorded(std::move(calls)), [](Napi::Env, Recorded* recorded) { delete recorded; });
  }

  // run(recorded)
  void run(const Napi::CallbackInfo& info) {
    open(info.Env());
    if (!planned_) queue_->run(*info[0].As<Napi::External<Recorded>>().Data());
  }

  void plan(const Call& call) {
    queue_->drain();  // offsets that were written tell how much
    int64_t bytes = 0;
    invoke(stream_, call.op, call.values.data(), nullptr, 0, &bytes);
    if (size_t(bytes) > planned_workspace_) planned_workspace_ = size_t(bytes);
  }

  Napi::Value memory(const Napi::CallbackInfo& info) {
    Napi::Object out = Napi::Object::New(info.Env());
    double workspace = planned_ ? double(planned_workspace_) : queue_ ? double(queue_->workspace_bytes()) : 0;
    out.Set("current", memory_ ? double(memory_->current()) : 0);
    out.Set("peak", memory_ ? double(memory_->peak()) + workspace : 0);
    out.Set("held", memory_ ? double(memory_->held()) + workspace : 0);
    out.Set("workspace", workspace);
    out.Set("busySeconds", queue_ ? queue_->busy_seconds() : 0);
    return out;
  }

  // trim(): starts the peak anew, without the workspace that calls so far needed
  void trim(const Napi::CallbackInfo&) {
    if (memory_) memory_->reset_peak();
    if (queue_) queue_->trim();
    planned_workspace_ = 0;
  }

  void close(const Napi::CallbackInfo&) { shut(); }
  Napi::Value isa(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), stream_ ? rlhf_stream_isa(stream_) : ""); }
  Napi::Value threads(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), stream_ ? rlhf_stream_threads(stream_) : 0); }

  rlhf_stream* stream_ = nullptr;
  bool gpu_ = false, planned_ = false;
  size_t planned_workspace_ = 0;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<Queue> queue_;
  Napi::ThreadSafeFunction settle_;
  int pending_ = 0;
};

const char* const KINDS[] = {"in", "opt", "out", "opt_out", "add", "opt_add", "ids", "offsets", "real", "integer", "choice"};

Napi::Array list_ops(Napi::Env env) {
  Napi::Array ops = Napi::Array::New(env);
  for (const Op& op : op_table()) {
    Napi::Array arguments = Napi::Array::New(env);
    for (const Argument& a : op.arguments) {
      Napi::Object o = Napi::Object::New(env);
      o.Set("kind", KINDS[int(a.kind)]), o.Set("type", a.type), o.Set("name", a.name), o.Set("dims", a.dims), o.Set("limit", a.limit);
      o.Set("low", a.range.low), o.Set("high", a.range.high), o.Set("openLow", a.range.open_low), o.Set("openHigh", a.range.open_high);
      arguments.Set(arguments.Length(), o);
    }
    Napi::Object o = Napi::Object::New(env);
    const auto list = [&](const std::vector<const char*>& dtypes) {
      Napi::Array array = Napi::Array::New(env);
      for (const char* dtype : dtypes) array.Set(array.Length(), dtype);
      return array;
    };
    o.Set("name", op.name), o.Set("arguments", arguments), o.Set("cpu", list(cpu_dtypes(op))), o.Set("cuda", list(cuda_dtypes(op)));
    ops.Set(ops.Length(), o);
  }
  return ops;
}

Napi::Object list_choices(Napi::Env env) {
  Napi::Object out = Napi::Object::New(env);
  for (const Choice& choice : choice_table()) {
    Napi::Array items = Napi::Array::New(env);
    for (const std::string& item : choice.items) items.Set(items.Length(), item);
    out.Set(choice.name, items);
  }
  return out;
}

template <double (*f)(double)>
Napi::Value unary(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), f(info[0].ToNumber().DoubleValue()));
}
Napi::Value power(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), rlhf_pow(info[0].ToNumber().DoubleValue(), info[1].ToNumber().DoubleValue()));
}

// lock(file descriptor): whether this process has it now; false if another has. It ends with the last descriptor of the file.
Napi::Value lock(const Napi::CallbackInfo& info) {
#if !defined(_WIN32)
  const bool locked = flock(info[0].As<Napi::Number>().Int32Value(), LOCK_EX | LOCK_NB) == 0;
  if (!locked && errno != EWOULDBLOCK) throw Napi::Error::New(info.Env(), std::string("it cannot be locked: ") + std::strerror(errno));
  return Napi::Boolean::New(info.Env(), locked);
#else
  return Napi::Boolean::New(info.Env(), true);
#endif
}

Napi::Object start(Napi::Env env, Napi::Object exports) {
  exports.Set("Device", Device::define(env));
  exports.Set("ops", list_ops(env));
  exports.Set("choices", list_choices(env));
  exports.Set("isaAvailable", rlhf_isa_available());
  exports.Set("cores", cores());
  exports.Set("lawVersion", RLHF_LAW_VERSION);
  exports.Set("exp", Napi::Function::New<unary<rlhf_exp>>(env));
  exports.Set("log", Napi::Function::New<unary<rlhf_log>>(env));
  exports.Set("cos", Napi::Function::New<unary<rlhf_cos>>(env));
  exports.Set("pow", Napi::Function::New<power>(env));
  exports.Set("lock", Napi::Function::New<lock>(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(rlhf_kernels, start)
