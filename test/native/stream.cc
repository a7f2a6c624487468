// What a stream refuses and says: threads that the system does not give, scalars out of their ranges; what control
// groups allow; the list of ops with its versions; outputs that are inputs, where the header says that they may be;
// results without elements.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "native/cpu/threads.h"
#include "test/native/check.h"

using namespace check;

namespace {

// In a process of a user who has no other, who may have few.
void threads_that_there_are_not() {
  if (geteuid() != 0) return;
  const pid_t child = fork();
  if (child == 0) {
    const rlimit few{8, 8};
    if (setuid(54321) != 0 || setrlimit(RLIMIT_NPROC, &few) != 0) _exit(2);
    rlhf_stream* refused = rlhf_stream_create(nullptr, 1000);
    rlhf_stream* one = rlhf_stream_create(nullptr, 2);  // the others have ended
    _exit(refused == nullptr && one != nullptr ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "1000 threads of 8 end the process with %d", status);
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

void quotas() {
  char folder[] = "/tmp/rlhf-quota-XXXXXX";
  if (!mkdtemp(folder)) return expect(false, "no folder");
  const std::string root = folder;
  for (const char* name : {"/slice", "/slice/job", "/cpu", "/cpu/docker"}) mkdir((root + name).c_str(), 0700);
  write(root + "/slice/cpu.max", "150000 100000\n"), write(root + "/slice/job/cpu.max", "max 100000\n");
  write(root + "/cpu/cpu.cfs_quota_us", "300000\n"), write(root + "/cpu/cpu.cfs_period_us", "100000\n");
  write(root + "/cpu/docker/cpu.cfs_quota_us", "-1\n"), write(root + "/cpu/docker/cpu.cfs_period_us", "100000\n");
  const auto of = [&](const char* groups, double wanted) {
    const double got = rlhf::cpu_quota(groups, root);
    expect(got == wanted, "%s allows %g, wanted %g", groups, got, wanted);
  };
  const double none = std::numeric_limits<double>::infinity();
  of("0::/slice/job\n", 1.5), of("0::/slice\n", 1.5), of("0::/\n", none), of("", none), of("nonsense\n1:\n", none);
  of("5:memory:/slice\n4:cpu,cpuacct:/docker\n", 3), of("4:cpuacct,cpu:/\n", 3), of("4:cpu:/not/here\n", 3),
      of("4:cpuset:/docker\n", none);
  write(root + "/cpu.max", "50000 100000\n");
  of("0::/slice/job\n", 0.5), of("0::/elsewhere\n", 0.5), of("0::/../..\n", 0.5);
  if (std::system(("rm -r " + root).c_str())) expect(false, "%s stays", folder);
}

void scalars_out_of_range() {
  Stream s("scalar", 1);
  Random random(1);
  Tensor<float> logits({2, 5}, random), logp({2}), lse({2}), entropy({2});
  Tensor<int32_t> y({2});
  for (double temperature : {0.0, -1.0, std::nan(""), HUGE_VAL, 5e-39, 1e37}) {
    expect(rlhf_logprob(s.handle, logits, y, temperature, logp, lse, entropy, nullptr, 0) == RLHF_BAD_ARGUMENT,
        "temperature %g is taken", temperature);
    const std::string said = rlhf_message(s.handle);
    expect(said.find("logprob: temperature is ") == 0 &&
               said.find(", wanted a number in [5.87747e-39, 1.32923e+36]") != std::string::npos,
        "%s", said.c_str());
  }
  expect(rlhf_scale(s.handle, logits, std::nan(""), 0, logits, nullptr, 0) == RLHF_BAD_ARGUMENT,
      "the factor NaN is taken");
}

void outputs_that_are_inputs() {
  same_everywhere<float>("scale in place", [](Stream& s) {
    Random random(2);
    Tensor<float> x({77}, random), y({77});
    CALL(s, scale, x, 3.0, 1.0, y);
    CALL(s, scale, x, 3.0, 1.0, x);
    expect(same_bits(x.data, y.data), "%s: scale in place", s.name.c_str());
    return y.data;
  });
  same_everywhere<float>("logprob_grad in place", [](Stream& s) {
    Random random(3);
    Tensor<float> logits({3, 700}, random), logp({3}), lse({3}), entropy({3}), dlogp({3}, random), dlogits({3, 700});
    Tensor<int32_t> y({3});
    CALL(s, logprob, logits, y, 0.8, logp, lse, entropy);
    CALL(s, logprob_grad, logits, y, logp, lse, entropy, dlogp, dlogp, 0.8, dlogits);
    CALL(s, logprob_grad, logits, y, logp, lse, entropy, dlogp, dlogp, 0.8, logits);
    expect(same_bits(logits.data, dlogits.data), "%s: logprob_grad in place", s.name.c_str());
    return dlogits.data;
  });
}

void results_without_elements() {
  std::istringstream names(rlhf_isa_available());
  for (std::string isa; names >> isa;) {
    Stream s(isa, 3);
    Tensor<float> logits({0, int64_t(1) << 31}), logp({0}), truncated({0});
    Tensor<int32_t> counter({0, 4}), token({0});
    const int64_t bytes =
        rlhf_sample_workspace(logits, counter, 1, 2, 0.7, 5, 0.9, 0, token, logp, truncated, s.handle);
    expect(bytes == 0, "%s: no row of 2^31 logits asks for %lld bytes", s.name.c_str(), (long long)bytes);
    const rlhf_status status =
        rlhf_sample(s.handle, logits, counter, 1, 2, 0.7, 5, 0.9, 0, token, logp, truncated, nullptr, 0);
    expect(status == RLHF_OK, "%s: no row of 2^31 logits: %s", s.name.c_str(), rlhf_message(s.handle));
    expect(rlhf_sample(s.handle, logits, counter, 1, 2, 0.7, 5, 2, 0, token, logp, truncated, nullptr, 0) ==
               RLHF_BAD_ARGUMENT,
        "top_p 2 is taken for no row");
  }
}

}  // namespace

int main() {
  threads_that_there_are_not();
  quotas();
  scalars_out_of_range();
  outputs_that_are_inputs();
  results_without_elements();
  const std::string list = rlhf_ops_json(), begin = "{\"abi\": " + std::to_string(RLHF_ABI_VERSION) +
                                                    ", \"law\": " + std::to_string(RLHF_LAW_VERSION) + ", \"ops\": [";
  expect(list.find(begin) == 0, "the list begins with %s", list.substr(0, 40).c_str());
  expect(list.find("\"name\": \"label_smoothing\", \"dims\": \"\", \"limit\": \"\", \"low\": 0, \"high\": 0.5, "
                   "\"openLow\": false, \"openHigh\": false}") != std::string::npos,
      "the list has no ranges");
  return report();
}
