// What the native tests share: tensors over vectors, random numbers from a printed seed, streams of every ISA, and
// checks that count. A test is a plain main() that ends with `return report();`.
#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "native/abi/rlhf_kernels.h"

namespace check {

inline int passed = 0, failed = 0;

inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("RLHF_TEST_SEED");
    uint64_t s = given ? std::strtoull(given, nullptr, 10) : uint64_t(std::time(nullptr));
    std::printf("seed %llu\n", (unsigned long long)s),
        std::fflush(stdout);  // a test that is ended by a signal has said it
    return s;
  }();
  return value;
}

class Random {  // splitmix64
 public:
  explicit Random(uint64_t stream, uint64_t from = seed()) : state_(from * 0x9e3779b97f4a7c15u + stream) {}
  virtual ~Random() = default;
  virtual uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(2 * 3.141592653589793 * uniform()); }
  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }

 private:
  uint64_t state_;
};

template <class T>
constexpr int32_t dtype() {
  return sizeof(T) == 8 ? RLHF_F64 : std::is_integral_v<T> ? RLHF_I32 : RLHF_F32;
}

// A tensor with its memory; converts to the pointer that the C interface takes.
template <class T>
struct Tensor {
  std::vector<T> data;
  rlhf_tensor t{};
  explicit Tensor(std::vector<int64_t> dims, int64_t stride = 0) {
    int64_t inner = 1;
    for (size_t i = 1; i < dims.size(); i++) inner *= dims[i];
    int64_t rows = dims.empty() ? 1 : dims[0];
    t.dtype = dtype<T>(), t.rank = int32_t(dims.size());
    for (size_t i = 0; i < dims.size(); i++) t.dims[i] = dims[i];
    t.stride = stride ? stride : inner;
    data.resize(size_t(rows * t.stride));
    t.data = data.data();
  }
  Tensor(std::vector<int64_t> dims, Random& random, double deviation = 1, int64_t stride = 0) : Tensor(dims, stride) {
    for (auto& x : data) x = T(random.normal() * deviation);
  }
  Tensor(const Tensor& other) : data(other.data), t(other.t) { t.data = data.data(); }
  Tensor& operator=(const Tensor& other) {
    data = other.data, t = other.t, t.data = data.data();
    return *this;
  }
  operator const rlhf_tensor*() const { return &t; }
  T& operator[](int64_t i) { return data[size_t(i)]; }
  const T& operator[](int64_t i) const { return data[size_t(i)]; }
};

inline void expect(bool ok, const char* format, ...) __attribute__((format(printf, 2, 3)));
inline void expect(bool ok, const char* format, ...) {
  if (ok) {
    passed++;
    return;
  }
  failed++;
  std::printf("FAILED: ");
  va_list list;
  va_start(list, format);
  std::vprintf(format, list);
  va_end(list);
  std::printf("\n");
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// |got - wanted| <= relative * |wanted| + absolute, and NaN never passes.
template <class T>
void expect_near(const std::vector<T>& got, const std::vector<double>& wanted, double relative, double absolute,
    const std::string& what) {
  size_t bad = got.size() == wanted.size() ? got.size() : 0;
  for (size_t i = 0; i < got.size() && got.size() == wanted.size(); i++)
    if (!(std::abs(double(got[i]) - wanted[i]) <= relative * std::abs(wanted[i]) + absolute) &&
        !(double(got[i]) == wanted[i])) {
      bad = i;
      break;
    }
  bool ok = got.size() == wanted.size() && bad == got.size();
  expect(ok, "%s: [%zu] is %.9g, wanted %.9g", what.c_str(), bad, bad < got.size() ? double(got[bad]) : 0.0,
      bad < wanted.size() ? wanted[bad] : 0.0);
}

struct Stream {
  rlhf_stream* handle;
  std::string name;
  std::vector<char> workspace;
  Stream(const std::string& isa, int threads)
      : handle(rlhf_stream_create(isa.c_str(), threads)), name(isa + "/" + std::to_string(threads)) {}
  ~Stream() { rlhf_stream_destroy(handle); }
  Stream(const Stream&) = delete;
};

// CALL(stream, gae, rewards, values, ...): runs the op with the workspace that it asks for and expects RLHF_OK.
#define CALL(stream, op, ...)                                                                                    \
  do {                                                                                                           \
    int64_t bytes = rlhf_##op##_workspace(__VA_ARGS__, (stream).handle);                                         \
    check::expect(bytes >= 0, "%s on %s: %s", #op, (stream).name.c_str(), rlhf_message((stream).handle));        \
    if (bytes < 0) break;                                                                                        \
    void* memory = bytes ? std::aligned_alloc(64, size_t((bytes + 63) / 64 * 64)) : nullptr;                     \
    rlhf_status status = rlhf_##op((stream).handle, __VA_ARGS__, memory, bytes);                                 \
    std::free(memory);                                                                                           \
    check::expect(status == RLHF_OK, "%s on %s: %s", #op, (stream).name.c_str(), rlhf_message((stream).handle)); \
  } while (0)

// run(stream) for every available ISA with 1, 2 and 3 threads; what it returns must be the bits of scalar with 1.
template <class T>
void same_everywhere(const std::string& what, const std::function<std::vector<T>(Stream&)>& run) {
  Stream reference("scalar", 1);
  const std::vector<T> wanted = run(reference);
  std::istringstream names(rlhf_isa_available());
  for (std::string isa; names >> isa;)
    for (int threads = 1; threads <= 3; threads++) {
      Stream stream(isa, threads);
      const std::vector<T> got = run(stream);
      size_t at = 0;
      while (at < got.size() && at < wanted.size() && std::memcmp(&got[at], &wanted[at], sizeof(T)) == 0) at++;
      expect(same_bits(got, wanted), "%s: %s differs from scalar/1 at %zu: %.9g, wanted %.9g", what.c_str(),
          stream.name.c_str(), at, at < got.size() ? double(got[at]) : 0.0,
          at < wanted.size() ? double(wanted[at]) : 0.0);
    }
}

template <class T>
void append(std::vector<T>& to, const Tensor<T>& t) {
  to.insert(to.end(), t.data.begin(), t.data.end());
}

inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}

}  // namespace check
