#include "native/node/queue.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "native/package/glibc.h"

namespace rlhf {
namespace {

// Made while there is memory.
const Cause& out_of_memory() {
  static const Cause& one = *new Cause(std::make_shared<Failure>(Failure{"out of memory", RLHF_BAD_WORKSPACE}));
  return one;
}

const Argument* arguments(const Calls::Step& step) { return op_table()[size_t(step.op)].arguments.data(); }

// f(kind, tensor) for each tensor of a call.
template <class F>
void each_tensor(const Calls& calls, const Calls::Step& step, F&& f) {
  const Argument* argument = arguments(step);
  const size_t count = op_table()[size_t(step.op)].arguments.size();
  const Held* held = calls.tensors.data() + step.tensor;
  for (size_t i = 0; i < count; i++)
    if (is_tensor(argument[i].kind)) f(argument[i].kind, *held++);
}

const Cause* spoilt(const Place& place) {
  return place.block && place.block->spoilt == place.life && place.life ? &place.block->failure : nullptr;
}

}  // namespace

// A call or a write that a GPU has been given: its failure shows when the GPU is waited for.
struct Queue::Queued {
  std::shared_ptr<const Calls> calls;  // or a write
  Place written;
};

Queue::Queue(rlhf_stream* stream, Pages pages) : stream_(stream), pages_(pages) {
  out_of_memory();
  thread_ = std::thread([this] { work(); });
}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ready_.notify_one();
  thread_.join();
  while (Task* task = first_) {
    first_ = task->next_;
    task->drop();
  }
  release_workspace();
}

void Queue::push(Task* task) noexcept {
  {
    std::lock_guard lock(mutex_);
    (first_ ? last_->next_ : first_) = task;
    last_ = task;
    waiting_.store(true, std::memory_order_release);
  }
  ready_.notify_one();
}

void Queue::work() noexcept {
  for (;;) {
    Task* task;
    // The next op is often only microseconds away.
    for (int spin = 0; spin < 200 && !waiting_.load(std::memory_order_acquire) && !stop_; spin++)
      std::this_thread::yield();
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stop_ || first_; });
      if (stop_) return;
      task = first_;
      first_ = task->next_;
      waiting_.store(first_ != nullptr, std::memory_order_release);
    }
    task->run();
  }
}

void Queue::drain() noexcept {
  struct Mark final : Task {
    explicit Mark(std::mutex& mutex) : mutex(mutex) {}
    void run() noexcept override {
      std::lock_guard lock(mutex);  // until it is told, or `done` could be gone
      ran = true;
      done.notify_one();
    }
    void drop() noexcept override {}
    std::mutex& mutex;
    std::condition_variable done;
    bool ran = false;
  } mark(mutex_);
  push(&mark);
  std::unique_lock lock(mutex_);
  mark.done.wait(lock, [&] { return mark.ran; });
}

void Queue::trim() {
  struct Trim final : Task {
    explicit Trim(Queue& queue) : queue(queue) {}
    void run() noexcept override {
      queue.release_workspace();
      delete this;
    }
    Queue& queue;
  };
  push(new Trim(*this));
}

void Queue::release_workspace() noexcept {
  if (workspace_) pages_.release(workspace_);
  workspace_ = nullptr, workspace_bytes_ = 0;
}

void Queue::run(std::shared_ptr<const Calls> calls) {
  struct Run final : Task {
    Run(Queue& queue, std::shared_ptr<const Calls> calls) : queue(queue), calls(std::move(calls)) {}
    void run() noexcept override {
      queue.call(calls);
      delete this;
    }
    Queue& queue;
    std::shared_ptr<const Calls> calls;
  };
  push(new Run(*this, std::move(calls)));
}

void Queue::write(const Place& place, std::unique_ptr<uint8_t[]> bytes) {
  struct Write final : Task {
    Write(Queue& queue, const Place& place, std::unique_ptr<uint8_t[]> bytes)
        : queue(queue), place(place), bytes(std::move(bytes)) {}
    void run() noexcept override {
      queue.store(place, bytes.get());
      delete this;
    }
    Queue& queue;
    const Place place;
    std::unique_ptr<uint8_t[]> bytes;
  };
  push(new Write(*this, place, std::move(bytes)));
}

void Queue::trust(const Place& place) {
  struct Trust final : Task {
    Trust(Queue& queue, const Place& place) : queue(queue), place(place) {}
    void run() noexcept override {
      if (queue.pages_.gpu) queue.settle();
      if (const Cause* cause = spoilt(place)) {
        queue.tell(Cause(*cause));
        queue.mark(place, nullptr);
      }
      delete this;
    }
    Queue& queue;
    const Place place;
  };
  push(new Trust(*this, place));
}

void Calls::bind() {
  const Held* next = tensors.data();
  for (const Step& step : steps) {
    const auto& arguments = op_table()[size_t(step.op)].arguments;
    for (size_t i = 0; i < arguments.size(); i++)
      if (is_tensor(arguments[i].kind))
        values[step.value + i].tensor = next->tensor.dtype < 0 ? nullptr : &next->tensor, next++;
  }
}

void Queue::call(const std::shared_ptr<const Calls>& calls) noexcept {
  if (calls->steps.size() > 1) keep_awake(stream_, true);
  for (const Calls::Step& one : calls->steps) {
    auto begin = std::chrono::steady_clock::now();
    step(*calls, one);
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    busy_.store(busy_.load(std::memory_order_relaxed) + took.count(), std::memory_order_relaxed);
  }
  if (calls->steps.size() > 1) keep_awake(stream_, false);
  if (pages_.gpu) remember({calls, {}});
}

void Queue::step(const Calls& calls, const Calls::Step& one) noexcept {
  Cause cause = spoilt_ ? inherited(calls, one) : nullptr;
  Cause own;
  try {
    own = attempt(calls, one);
  } catch (...) {  // kernels throw nothing: a message or a list on the way to them wanted memory
    own = out_of_memory();
  }
  if (own && !cause) cause = note(std::move(own));  // else it follows from what came before
  if (cause || spoilt_) mark(calls, one, cause);
}

Cause Queue::attempt(const Calls& calls, const Calls::Step& one) {
  const Value* values = calls.values.data() + one.value;
  const auto run = [&] {
    return invoke(stream_, one.op, values, workspace_, int64_t(workspace_bytes_.load()), nullptr);
  };
  rlhf_status status = run();
  int64_t bytes = 0;
  if (status == RLHF_BAD_WORKSPACE &&
      invoke(stream_, one.op, values, nullptr, 0, &bytes) == RLHF_OK) {  // nothing was continued yet
    release_workspace();
    workspace_ = pages_.allocate(size_t(bytes));
    if (!workspace_) {
      const std::string name = op_table()[size_t(one.op)].name;
      return std::make_shared<Failure>(
          Failure{name + ": out of memory: " + std::to_string(bytes) + " bytes of workspace wanted", status});
    }
    workspace_bytes_ = size_t(bytes);
    status = run();
  }
  return status == RLHF_OK ? nullptr : failed(status);
}

// What the stream's last status was, with its message.
Cause Queue::failed(rlhf_status status) const {
  return std::make_shared<Failure>(Failure{rlhf_message(stream_), status});
}

// Why f, which returns the stream's status, failed; or that there is no memory, where there is none to say so.
template <class F>
Cause Queue::cause(F&& f) noexcept {
  try {
    const rlhf_status status = f();
    return status == RLHF_OK ? nullptr : failed(status);
  } catch (...) { return out_of_memory(); }
}

void Queue::store(const Place& place, const void* from) noexcept {
  Cause failure;
  if (!pages_.gpu) std::memcpy(place.data(), from, place.bytes);
  else failure = note(cause([&] { return rlhf_stream_write(stream_, place.data(), from, int64_t(place.bytes)); }));
  if (failure || (spoilt_ && place.whole)) mark(place, failure);
  if (pages_.gpu) remember({nullptr, place});
}

Cause Queue::read(const Place& place, void* to) noexcept {
  if (pages_.gpu) {
    if (place.bytes)
      if (Cause failure = cause([&] { return rlhf_stream_read(stream_, to, place.data(), int64_t(place.bytes)); }))
        return failure;
    settle();
  } else if (place.bytes) {
    std::memcpy(to, place.data(), place.bytes);
  }
  const Cause* failure = spoilt(place);
  if (!failure) return nullptr;
  const Cause told = *failure;
  tell(told);
  return told;
}

void Queue::tell(const Cause& cause) noexcept {
  std::fill(std::remove(untold_.begin(), untold_.end(), cause), untold_.end(), nullptr);
}

Cause Queue::wait() noexcept {
  if (pages_.gpu) settle();
  const Cause first = untold_[0];
  untold_ = {};
  return first;
}

// ---- whose a failure is

Cause Queue::note(Cause cause) noexcept {
  if (!cause) return cause;
  const auto end = std::find(untold_.begin(), untold_.end(), nullptr);
  if (end != untold_.end() && std::find(untold_.begin(), end, cause) == end) *end = cause;
  return cause;
}

Cause Queue::inherited(const Calls& calls, const Calls::Step& one) const noexcept {
  const Cause* found = nullptr;
  each_tensor(calls, one, [&](Kind kind, const Held& held) {
    if (!found && !is_written(kind)) found = spoilt(held.place);
  });
  return found ? *found : nullptr;
}

// The results of a call are spoilt, or those that it wrote are good again.
void Queue::mark(const Calls& calls, const Calls::Step& one, const Cause& cause) noexcept {
  each_tensor(calls, one, [&](Kind kind, const Held& held) {
    if (cause ? is_result(kind) : is_written(kind) && held.place.whole) mark(held.place, cause);
  });
}

void Queue::mark(const Place& place, const Cause& cause) noexcept {
  if (!place.block) return;
  place.block->failure = cause;
  place.block->spoilt = cause ? place.life : 0;
  if (cause) spoilt_ = true;
}

void Queue::remember(Queued queued) noexcept {
  try {
    if (unsettled_.size() >= 1 << 16) settle();
    unsettled_.push_back(std::move(queued));
  } catch (const std::bad_alloc&) {
    settle();  // without it: waited for, it is done
  }
}

// Waits for the GPU. It tells which ops failed since the last time, not which of their calls: the results of all of
// them are spoilt, and what was computed from those since.
void Queue::settle() noexcept {
  std::vector<std::pair<std::string, Cause>> failures;
  Cause everything;
  try {
    while (const rlhf_status status = rlhf_stream_wait(stream_)) {
      everything = note(failed(status));
      if (status == RLHF_FAILED) break;
      failures.emplace_back(everything->message.substr(0, everything->message.find(':')), everything);
      everything = nullptr;
    }
  } catch (...) {  // which ops failed is not known any more
    if (!everything) everything = note(out_of_memory());
  }
  const auto fresh = [&](const Cause& cause) {
    return cause == everything ||
           std::any_of(failures.begin(), failures.end(), [&](const auto& failure) { return failure.second == cause; });
  };
  for (const Queued& queued : unsettled_) {
    if (!everything && failures.empty()) break;
    if (!queued.calls) {
      if (everything) mark(queued.written, everything);
      else if (const Cause* old = spoilt(queued.written); old && queued.written.whole && fresh(*old))
        mark(queued.written, nullptr);
      continue;
    }
    for (const Calls::Step& one : queued.calls->steps) {
      Cause cause = everything;
      const char* name = op_table()[size_t(one.op)].name;
      for (const auto& failure : failures)
        if (!cause && failure.first == name) cause = failure.second;
      each_tensor(*queued.calls, one, [&](Kind kind, const Held& held) {
        const Cause* old = spoilt(held.place);
        if (!cause && !is_written(kind) && old && fresh(*old)) cause = *old;
      });
      each_tensor(*queued.calls, one, [&](Kind kind, const Held& held) {
        const Cause* old = spoilt(held.place);
        if (cause ? is_result(kind) && !old : is_written(kind) && held.place.whole && old && fresh(*old))
          mark(held.place, cause);
      });
    }
  }
  unsettled_.clear();
}

}  // namespace rlhf
