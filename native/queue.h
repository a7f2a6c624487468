// An in-order queue: tasks run one after another on a thread of their own, off the JavaScript thread.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "native/memory.h"
#include "native/op_table.h"

namespace rlhf {

struct Failure {
  std::string op, message;
  rlhf_status status = RLHF_OK;
};

struct Call {
  int op;
  std::vector<Value> values;
  std::vector<rlhf_tensor> tensors;  // in order; one of dtype -1 is absent
  void bind();  // puts the tensors into the values
};
using Calls = std::vector<Call>;

class Queue {
 public:
  Queue(rlhf_stream* stream, Pages pages);  // pages: of the workspace
  ~Queue();  // what is still queued does not run
  void push(std::function<void()> task);
  void drain();  // waits until all that is queued has run
  void run(std::shared_ptr<const Calls>);  // bound; many of them are one task
  void trim();  // gives back the workspace, once all that is queued has run

  // On the queue's thread only: the first failure since it was last taken, and keeping one.
  Failure take_failure();
  void keep(Failure);
  double busy_seconds() const { return busy_.load(std::memory_order_relaxed); }
  size_t workspace_bytes() const { return workspace_bytes_.load(std::memory_order_relaxed); }

 private:
  void work();
  void run(const Call&);
  void release_workspace();

  rlhf_stream* stream_;
  const Pages pages_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;
  std::atomic<size_t> waiting_{0};
  std::atomic<bool> stop_{false};
  std::atomic<double> busy_{0};
  std::atomic<size_t> workspace_bytes_{0};
  void* workspace_ = nullptr;
  Failure failure_;
  std::thread thread_;
};

}  // namespace rlhf
