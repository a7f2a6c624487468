// What a CPU kernel is given: its arguments (one struct per op, expanded from the list) and a Context.
//
// Kernel files are compiled once per ISA into namespace rlhf::RLHF_ISA. What is shared between them must leave no
// function of one ISA for the linker to hand to another: every function here is always inlined, and kernel files use
// no standard containers or algorithms.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ops_choices.h"

#define RLHF_INLINE inline __attribute__((always_inline))

namespace rlhf {

// A tensor argument. An absent one is false.
template <class T>
struct View {
  T* data;
  int64_t dim[4];
  int64_t stride;  // elements from one index of dimension 0 to the next
  int32_t layout;  // rlhf_layout, for weights
  int32_t dtype;  // rlhf_dtype: where an op takes bf16 too, data is of that type
  RLHF_INLINE explicit operator bool() const { return data != nullptr; }
  RLHF_INLINE T& operator[](int64_t i) const { return data[i]; }
  RLHF_INLINE T* row(int64_t i) const { return data + i * stride; }
  RLHF_INLINE int64_t size() const { return dim[0] * dim[1] * dim[2] * dim[3]; }  // unused dims are 1
};

#define F32 float
#define F64 double
#define I32 int32_t
#define ROWS float
#define EITHER float
#define WEIGHT float
#define SAME float
#define IN(type, name, dims) View<const type> name;
#define OPT(type, name, dims) View<const type> name;
#define OUT(type, name, dims) View<type> name;
#define OPT_OUT(type, name, dims) View<type> name;
#define ADD(type, name, dims) View<type> name;
#define OPT_ADD(type, name, dims) View<type> name;
#define IDS(name, dims, limit) View<const int32_t> name;
#define OFFSETS(name, dims, total) View<const int32_t> name;
#define REAL(name, range) double name;
#define INT(name, range) int64_t name;
#define CHOICE(list, name) list name;
#define ITEM(name) name,
#define LIST(list, items) enum class list : int64_t { items };
RLHF_CHOICES(LIST)
#undef LIST
#undef ITEM
#define OP(name, arguments) \
  struct name##_args {      \
    arguments               \
  };
#include "ops.h"
#include "ops_end.h"
#undef F32
#undef F64
#undef I32
#undef ROWS
#undef EITHER
#undef WEIGHT
#undef SAME

// The threads of a stream. run() calls f(state, thread) once on each of them and returns when all are done.
struct Threads {
  virtual void run(void (*f)(void* state, int thread), void* state) = 0;

 protected:
  ~Threads() = default;
};

// What a GPU's stream offers the functions that launch its kernels.
struct Gpu {
  virtual bool launch(
      const char* kernel, const int64_t grid[3], int threads, int64_t shared, const void* params, int64_t bytes) = 0;
  virtual bool fill(void* data, int byte, int64_t bytes) = 0;
  // of bf16 [rows][columns], in boxes of box_rows x 64: kernels/cuda/hopper.h
  virtual bool tensor_map(void* map, const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) = 0;
  const char* failure = nullptr;  // why the last launch did not happen
  int32_t* errors = nullptr;  // on the device, a word per op: why its results are NaN (simt.h)
  int multiprocessors = 0, architecture = 0;  // 80, 90

 protected:
  ~Gpu() = default;
};

struct Context {
  Threads* pool;
  int threads;
  char* workspace;  // null while the workspace is being measured
  int64_t workspace_bytes;  // in: what there is; out: what the kernel asked for
  bool measuring;
  const char* failure;  // set by fail(): the first thing that was wrong, a literal
  Gpu* gpu = nullptr;  // of a GPU's stream: the call enqueues, tensors and workspace lie on the device
  int op = 0;  // in the list

  // The kernel's one request for memory, before any other work: 64-byte aligned, wherever the caller's workspace
  // begins. A kernel that gets null returns at once.
  RLHF_INLINE void* scratch(int64_t bytes) {
    constexpr int64_t LINE = 64;
    if (measuring || bytes < 0 || bytes > workspace_bytes - LINE) {
      if (!measuring || bytes < 0) failure = "workspace is too small";
      workspace_bytes = bytes < 0 ? INT64_MAX : bytes + LINE;  // negative: more than can be counted
      return nullptr;
    }
    return workspace + (-reinterpret_cast<uintptr_t>(workspace) & (LINE - 1));
  }

  RLHF_INLINE void fail(const char* what) {
    if (!failure) failure = what;
  }

  // f(thread), once on each thread.
  template <class F>
  RLHF_INLINE void each(F&& f) {
    if (threads == 1) return f(0);
    pool->run([](void* state, int thread) { (*static_cast<F*>(state))(thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

  // f(begin, end): [0, n) in one contiguous range per thread, whose bounds are multiples of grain.
  // A range of less than `least` elements per thread is not worth waking another for.
  template <class F>
  RLHF_INLINE void split(int64_t n, int64_t grain, int64_t least, F&& f) {
    if (n <= 0) return;
    int64_t grains = (n + grain - 1) / grain;
    int64_t parts = n / (least > 0 ? least : 1);
    if (parts > threads) parts = threads;
    if (parts > grains) parts = grains;
    if (parts <= 1) return f(int64_t(0), n);
    each([&](int thread) {
      if (thread >= parts) return;
      int64_t begin = grains * thread / parts * grain, end = grains * (thread + 1) / parts * grain;
      if (end > n) end = n;
      if (begin < end) f(begin, end);
    });
  }
};

// One entry per op; each ISA has a table of its own.
struct Kernels {
#define OP(name, arguments) void (*name)(Context&, const name##_args&);
#include "ops.h"
#include "ops_end.h"
};

// The kernels of the GPU, and which of them take bf16 (kernels/cuda/table.cc).
namespace cuda {
extern const Kernels kernels;
bool takes_bf16(const char* op);
}  // namespace cuda

#ifdef RLHF_ISA
namespace RLHF_ISA {
extern const Kernels kernels;  // kernels/cpu/table.cc
#define OP(name, arguments) void name(Context&, const name##_args&);
#include "ops.h"
#include "ops_end.h"
}  // namespace RLHF_ISA
#endif

}  // namespace rlhf
