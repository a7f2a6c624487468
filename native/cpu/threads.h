// The threads of a stream: the caller and its workers, each always with the same number.
#pragma once
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "native/list/kernel.h"

namespace rlhf {

class Pool final : public Threads {
 public:
  explicit Pool(int threads);  // throws std::system_error where one of them cannot be made
  ~Pool();
  int size() const { return int(workers_.size()) + 1; }
  void run(void (*f)(void* state, int thread), void* state) override;
  void keep_awake(bool awake) {
    awake_.store(awake, std::memory_order_relaxed);
  }  // workers, whatever time passes between runs

 private:
  void work(int thread);
  void stop();

  std::vector<std::thread> workers_;
  void (*f_)(void*, int) = nullptr;
  void* state_ = nullptr;
  std::atomic<unsigned> round_{0};  // one more for every run
  std::atomic<int> running_{0};  // workers that have not finished this round
  std::atomic<bool> stop_{false}, awake_{false};
};

int cores();  // that this process may use: by its affinity, and by the quota of its control groups
// CPUs that control groups allow, infinity where they set no limit: `groups` is the text of /proc/self/cgroup, `mount`
// /sys/fs/cgroup.
double cpu_quota(const std::string& groups, const std::string& mount);

// Denormals are kept while this lives, whatever the process has set.
class KeepDenormals {
 public:
  KeepDenormals();
  ~KeepDenormals();

 private:
  unsigned saved_ = 0;
};

}  // namespace rlhf
