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
  if (workspace_) pages_.release(workspace_);
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

void bind(int op, std::vector<Value>& values, const std::vector<rlhf_tensor>& tensors) {
  const rlhf_tensor* next = tensors.data();
  for (size_t i = 0; i < values.size(); i++)
    if (is_tensor(op_table()[size_t(op)].arguments[i].kind)) values[i].tensor = next->dtype < 0 ? nullptr : next, next++;
}

void Queue::call(int op, std::vector<Value> values, std::vector<rlhf_tensor> tensors) {
  push([this, op, values = std::move(values), tensors = std::move(tensors)]() mutable {
    bind(op, values, tensors);
    auto begin = std::chrono::steady_clock::now();
    run(op, values);
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    busy_.store(busy_.load(std::memory_order_relaxed) + took.count(), std::memory_order_relaxed);
  });
}

void Queue::run(int op, const std::vector<Value>& values) {
  int64_t bytes = 0;
  rlhf_status status = invoke(stream_, op, values.data(), nullptr, 0, &bytes);
  if (size_t(bytes) > workspace_bytes_) {
    if (workspace_) pages_.release(workspace_);
    workspace_ = pages_.allocate(size_t(bytes));
    workspace_bytes_ = workspace_ ? size_t(bytes) : 0;
  }
  // Refused arguments are refused again by the call itself, which also leaves NaN behind where ids were bad.
  status = invoke(stream_, op, values.data(), workspace_, int64_t(workspace_bytes_.load()), nullptr);
  if (status != RLHF_OK) keep({op_table()[size_t(op)].name, rlhf_message(stream_), status});
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
