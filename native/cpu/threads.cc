#include "native/cpu/threads.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace rlhf {
namespace {

// About 20 us: ops follow one another closely, and a sleeping thread takes longer than that to wake.
constexpr int SPINS = 1000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <class T, class Done>
void wait(std::atomic<T>& value, const std::atomic<bool>& awake, Done done) {
  for (int spin = 0; spin < SPINS; spin++, pause())
    if (done(value.load(std::memory_order_acquire))) return;
  for (; awake.load(std::memory_order_relaxed);
       std::this_thread::yield())  // where there are more threads than cores, others must get on
    if (done(value.load(std::memory_order_acquire))) return;
  for (T seen = value.load(std::memory_order_acquire); !done(seen); seen = value.load(std::memory_order_acquire))
    value.wait(seen, std::memory_order_acquire);
}

}  // namespace

Pool::Pool(int threads) {
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {  // there are no more threads
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  stop_.store(true, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(void (*f)(void* state, int thread), void* state) {
  f_ = f, state_ = state;
  running_.store(int(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  f(state, 0);
  wait(running_, awake_, [](int n) { return n == 0; });
}

void Pool::work(int thread) {
  KeepDenormals keep;
  for (unsigned round = 0;;) {
    wait(round_, awake_, [round](unsigned now) { return now != round; });
    round++;
    if (stop_.load(std::memory_order_relaxed)) return;
    f_(state_, thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

// A quota holds for a group and all below it. In a container the path may be the host's, of which only the root is
// there.
double cpu_quota(const std::string& groups, const std::string& mount) {
  double least = std::numeric_limits<double>::infinity();
  std::istringstream lines(groups);
  for (std::string line; std::getline(lines, line);) {  // id:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    for (std::string path = line.substr(second + 1);; path.resize(path.find_last_of('/'))) {
      if (path == "/") path.clear();
      const std::string folder = mount + (unified ? "" : "/cpu") + path;
      double quota = 0, period = 0;  // microseconds; "max" or -1 is none
      if (unified) std::ifstream(folder + "/cpu.max") >> quota >> period;
      else std::ifstream(folder + "/cpu.cfs_quota_us") >> quota, std::ifstream(folder + "/cpu.cfs_period_us") >> period;
      if (quota > 0 && period > 0) least = std::min(least, quota / period);
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

int cores() {
  int n = std::max(1, int(std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  std::ostringstream groups;
  groups << std::ifstream("/proc/self/cgroup").rdbuf();
  const double quota = std::ceil(cpu_quota(groups.str(), "/sys/fs/cgroup"));
  if (quota < n) n = std::max(1, int(quota));
#endif
  return n;
}

#if defined(__x86_64__)
KeepDenormals::KeepDenormals() : saved_(_mm_getcsr()) {
  constexpr unsigned standard = 0x1f80;  // exceptions masked, to nearest, no flush to zero
  if ((saved_ & ~0x3fu) != standard) _mm_setcsr(standard);
}
KeepDenormals::~KeepDenormals() {
  if ((saved_ & ~0x3fu) != 0x1f80) _mm_setcsr(saved_);
}
#else
KeepDenormals::KeepDenormals() {}
KeepDenormals::~KeepDenormals() {}
#endif

}  // namespace rlhf
