#include "native/queue.h"

#include <chrono>

#include "native/glibc.h"

namespace rlhf {

Queue::Queue(rlhf_stream* stream, Pages pages) : stream_(stream), pages_(pages), thread_([this] { work(); }) {}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ready_.notify_one();
  thread_.join();
  release_workspace();
}

void Queue::release_workspace() {
  if (workspace_) pages_.release(workspace_);
  workspace_ = nullptr, workspace_bytes_ = 0;
}

void Queue::trim() {
  push([this] { release_workspace(); });
}

void Queue::push(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    waiting_.store(tasks_.size(), std::memory_order_release);
  }
  ready_.notify_one();
}

void Queue::drain() {
  std::condition_variable done;
  bool ran = false;
  push([&] {
    std::lock_guard lock(mutex_);  // until it is told, or `done` could be gone
    ran = true;
    done.notify_one();
  });
  std::unique_lock lock(mutex_);
  done.wait(lock, [&] { return ran; });
}

void Queue::work() {
  for (;;) {
    std::function<void()> task;
    // The next op is often only microseconds away.
    for (int spin = 0; spin < 200 && !waiting_.load(std::memory_order_acquire) && !stop_; spin++) std::this_thread::yield();
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stop_ || !tasks_.empty(); });
      if (stop_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      waiting_.store(tasks_.size(), std::memory_order_release);
    }
    task();
  }
}

void Call::bind() {
  const rlhf_tensor* next = tensors.data();
  for (size_t i = 0; i < values.size(); i++)
    if (is_tensor(op_table()[size_t(op)].arguments[i].kind)) values[i].tensor = next->dtype < 0 ? nullptr : next, next++;
}

void Queue::run(std::shared_ptr<const Calls> calls) {
  push([this, calls = std::move(calls)] {
    if (calls->size() > 1) keep_awake(stream_, true);
    for (const Call& call : *calls) {
      auto begin = std::chrono::steady_clock::now();
      run(call);
      std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      busy_.store(busy_.load(std::memory_order_relaxed) + took.count(), std::memory_order_relaxed);
    }
    if (calls->size() > 1) keep_awake(stream_, false);
  });
}

void Queue::run(const Call& call) {
  const char* const name = op_table()[size_t(call.op)].name;
  const Value* values = call.values.data();
  const auto attempt = [&] { return invoke(stream_, call.op, values, workspace_, int64_t(workspace_bytes_.load()), nullptr); };
  rlhf_status status = attempt();
  int64_t bytes = 0;
  if (status == RLHF_BAD_WORKSPACE && invoke(stream_, call.op, values, nullptr, 0, &bytes) == RLHF_OK) {  // nothing was continued yet
    release_workspace();
    workspace_ = pages_.allocate(size_t(bytes));
    if (!workspace_) return keep({name, std::string(name) + ": out of memory: " + std::to_string(bytes) + " bytes of workspace wanted", status});
    workspace_bytes_ = size_t(bytes);
    status = attempt();
  }
  if (status != RLHF_OK) keep({name, rlhf_message(stream_), status});
}

void Queue::keep(Failure failure) {
  if (failure_.status == RLHF_OK) failure_ = std::move(failure);
}

Failure Queue::take_failure() {
  Failure failure = std::move(failure_);
  failure_ = {};
  return failure;
}

}  // namespace rlhf
