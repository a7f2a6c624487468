// An environment of Node.js, the process's or a worker's: its devices, and the promises that their queues keep.
#pragma once
#include "native/node/node.h"
#include "native/node/queue.h"

namespace rlhf {

struct Environment;

// What an environment has and what ends before it: a device.
class Resident {
 public:
  virtual void shut(napi_env) noexcept = 0;  // ends its threads and leaves the environment
  virtual void let_go(napi_env) noexcept = 0;  // of one more of its reads

 protected:
  ~Resident() = default;
  void enter(Environment&) noexcept;
  void leave() noexcept;

  Environment* environment_ = nullptr;

 private:
  friend struct Environment;
  Resident *before_ = nullptr, *after_ = nullptr;
};

// A promise that the queue keeps: to read bytes, or that all before it is done. The JavaScript thread owns it, and
// frees it once it is settled.
struct Read final : Task {
  Read(Environment& environment, Resident& device, Queue& queue)
      : environment(environment), device(device), queue(queue) {}
  ~Read() override;
  void run() noexcept override;
  void drop() noexcept override {}

  Environment& environment;
  Resident& device;
  Queue& queue;
  napi_deferred deferred = nullptr;
  napi_ref buffer = nullptr;  // what the promise becomes; JavaScript has no other way to it before
  Place from;
  void* to = nullptr;
  bool waits = false, ran = false;
  Cause failure;
  Read *before = nullptr, *after = nullptr;  // of the same environment, not yet settled
  Read* next_done = nullptr;
};

// One environment, which has a thread of its own.
struct Environment {
  static void open(napi_env);  // once for each
  static Environment& of(napi_env);
  void post(Read*) noexcept;  // from the queue's thread: it ran
  void add(napi_env, Read*) noexcept;  // before it is queued
  void settle_done() noexcept;
  void settle(Read*) noexcept;
  void end() noexcept;

  napi_env env = nullptr;
  napi_threadsafe_function wake = nullptr;
  napi_ref array_buffer = nullptr;
  Resident* residents = nullptr;
  Read* reads = nullptr;
  Read *done = nullptr, *last_done = nullptr;  // in order; under `posting`
  bool ended = false;
};

}  // namespace rlhf
