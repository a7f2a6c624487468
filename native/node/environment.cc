// However an environment ends, its devices' threads end before it, and no other thread touches Node.js after that.
#include "native/node/environment.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

namespace rlhf {
namespace {

std::mutex posting;
std::atomic<bool> exiting{false};  // the process ends, and Node.js's own state with it
struct AtExit {
  ~AtExit() { exiting = true; }
} at_exit;

}  // namespace

void Resident::enter(Environment& environment) noexcept {
  environment_ = &environment;
  after_ = environment.residents;
  if (after_) after_->before_ = this;
  environment.residents = this;
}

void Resident::leave() noexcept {
  (before_ ? before_->after_ : environment_->residents) = after_;
  if (after_) after_->before_ = before_;
  environment_ = nullptr;
}

Read::~Read() {
  if (buffer) napi_delete_reference(environment.env, buffer);
}

void Read::run() noexcept {
  failure = waits ? queue.wait() : queue.read(from, to);
  ran = true;
  environment.post(this);
}

void Environment::post(Read* read) noexcept {
  bool first;
  {
    std::lock_guard lock(posting);
    first = !done;
    (first ? done : last_done->next_done) = read;
    last_done = read;
  }
  // Not under the lock, which whoever wakes takes next. The function is there: it ends after this thread.
  if (first && !exiting) napi_call_threadsafe_function(wake, nullptr, napi_tsfn_nonblocking);
}

void Environment::add(napi_env env, Read* read) noexcept {
  read->after = reads;
  if (reads) reads->before = read;
  else napi_ref_threadsafe_function(env, wake);
  reads = read;
}

void Environment::settle_done() noexcept {
  Read* next;
  {
    std::lock_guard lock(posting);
    next = std::exchange(done, nullptr);
  }
  while (Read* read = next) {
    next = read->next_done;
    settle(read);
  }
}

static const char* code_of(rlhf_status status) {
  switch (status) {
    case RLHF_BAD_ID: return "ID";
    case RLHF_BAD_OFFSETS: return "OFFSETS";
    case RLHF_BAD_WORKSPACE: return "MEMORY";
    case RLHF_FAILED: return "DEVICE";
    default: return "ARGUMENT";
  }
}

void Environment::settle(Read* read) noexcept {
  const std::unique_ptr<Read> owned(read);
  (read->before ? read->before->after : reads) = read->after;
  if (read->after) read->after->before = read->before;
  if (!reads) napi_unref_threadsafe_function(env, wake);
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value value = nullptr;
  if (!read->ran) value = error_of(env, Refusal::type, "DEVICE", "the device was closed before it was read");
  else if (const Failure* failure = read->failure.get()) {
    const bool range =
        failure->status == RLHF_BAD_ID || failure->status == RLHF_BAD_OFFSETS || failure->status == RLHF_BAD_WORKSPACE;
    value = error_of(env, range ? Refusal::range : Refusal::type, code_of(failure->status), failure->message.c_str());
  } else if (read->waits) napi_get_undefined(env, &value);
  else napi_get_reference_value(env, read->buffer, &value);
  if (value) (read->ran && !read->failure ? napi_resolve_deferred : napi_reject_deferred)(env, read->deferred, value);
  read->device.let_go(env);
  napi_close_handle_scope(env, scope);
}

// Before Node.js takes the environment down. Its threads end here; after that nothing of it is touched.
void Environment::end() noexcept {
  ended = true;
  while (residents) residents->shut(env);
  done = nullptr;
  while (Read* read = reads) {
    reads = read->after;
    delete read;
  }
}

// It has the constructor of what reads return, and the way from the queues' threads to its own.
void Environment::open(napi_env env) {
  auto home = std::make_unique<Environment>();
  home->env = env;
  napi_value buffer, constructor, name;
  void* data = nullptr;
  must(napi_create_string_utf8(env, "rlhf-kernels", NAPI_AUTO_LENGTH, &name));
  must(napi_create_arraybuffer(env, 0, &data, &buffer));
  must(napi_get_named_property(env, buffer, "constructor", &constructor));
  must(napi_create_reference(env, constructor, 1, &home->array_buffer));
  const auto woken = [](napi_env env, napi_value, void* home, void*) {
    if (env) static_cast<Environment*>(home)->settle_done();
  };
  must(napi_create_threadsafe_function(
      env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, home.get(), woken, &home->wake));
  must(napi_unref_threadsafe_function(env, home->wake));
  Environment* one = home.release();
  must(napi_set_instance_data(
      env, one, [](napi_env, void* data, void*) { delete static_cast<Environment*>(data); }, nullptr));
  // Hooks run in reverse: before Node.js ends the function above, made earlier, and all objects.
  must(napi_add_env_cleanup_hook(
      env, [](void* data) { static_cast<Environment*>(data)->end(); }, one));
}

Environment& Environment::of(napi_env env) {
  void* data = nullptr;
  must(napi_get_instance_data(env, &data));
  if (!data || static_cast<Environment*>(data)->ended) throw Stopped{};
  return *static_cast<Environment*>(data);
}

}  // namespace rlhf
