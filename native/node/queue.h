// An in-order queue: tasks run one after another on a thread of their own, off the JavaScript thread. What it runs may
// fail; a failure stays with the memory that it spoilt, and with what is computed from that.
#pragma once
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "native/abi/stream.h"
#include "native/node/memory.h"

namespace rlhf {

struct Failure {
  std::string message;  // begins with the op, where it is one's
  rlhf_status status;
};
using Cause = std::shared_ptr<const Failure>;

// Bytes within a block, in one use of it.
struct Place {
  Block* block = nullptr;  // null: no bytes
  uint64_t life = 0;
  size_t offset = 0, bytes = 0;
  bool whole = false;  // all that was asked for, to 4 bytes
  char* data() const { return block ? block->data + offset : nullptr; }
};

struct Held {  // a tensor of a call; of dtype -1 it is absent
  rlhf_tensor tensor;
  Place place;
};

// Calls of ops, one after another.
struct Calls {
  struct Step {
    int op;
    size_t value, tensor;  // where its arguments begin
  };
  std::vector<Step> steps;
  std::vector<Value> values;
  std::vector<Held> tensors;
  void bind();  // once all are there: puts the tensors into the values
};

class Task {
 public:
  virtual void run() noexcept = 0;  // on the queue's thread, once; it may end the task's life
  virtual void drop() noexcept { delete this; }  // in place of run, when the queue ends before
  virtual ~Task() = default;

 private:
  friend class Queue;
  Task* next_ = nullptr;
};

class Queue {
 public:
  Queue(rlhf_stream* stream, Pages pages);  // pages: of the workspace
  ~Queue();  // what is still queued does not run
  void push(Task*) noexcept;
  void drain() noexcept;  // waits until all that is queued has run
  void run(std::shared_ptr<const Calls>);
  void write(const Place&, std::unique_ptr<uint8_t[]> bytes);
  void trust(const Place&);  // takes these numbers as good, and what spoilt them as told
  void trim();  // gives back the workspace, once all that is queued has run

  // Within a task only. They return why it failed, null if it did not.
  Cause read(const Place&, void* to) noexcept;  // of spoilt numbers: what spoilt them
  Cause wait() noexcept;  // the first failure that neither told yet

  double busy_seconds() const { return busy_.load(std::memory_order_relaxed); }
  size_t workspace_bytes() const { return workspace_bytes_.load(std::memory_order_relaxed); }

 private:
  struct Queued;  // the GPU's, whose failures show later
  void work() noexcept;
  void call(const std::shared_ptr<const Calls>&) noexcept;
  void store(const Place&, const void* from) noexcept;
  void tell(const Cause&) noexcept;
  void step(const Calls&, const Calls::Step&) noexcept;
  Cause attempt(const Calls&, const Calls::Step&);
  Cause failed(rlhf_status) const;
  template <class F>
  Cause cause(F&&) noexcept;
  Cause note(Cause) noexcept;
  Cause inherited(const Calls&, const Calls::Step&) const noexcept;
  void mark(const Calls&, const Calls::Step&, const Cause&) noexcept;
  void mark(const Place&, const Cause&) noexcept;
  void remember(Queued) noexcept;
  void settle() noexcept;
  void release_workspace() noexcept;

  rlhf_stream* stream_;
  const Pages pages_;
  std::mutex mutex_;
  std::condition_variable ready_;
  Task *first_ = nullptr, *last_ = nullptr;
  std::atomic<bool> waiting_{false}, stop_{false};
  std::atomic<double> busy_{0};
  std::atomic<size_t> workspace_bytes_{0};
  void* workspace_ = nullptr;
  bool spoilt_ = false;  // some memory was
  std::array<Cause, 64> untold_;  // the first of them, in order, then null
  std::vector<Queued> unsettled_;
  std::thread thread_;
};

}  // namespace rlhf
