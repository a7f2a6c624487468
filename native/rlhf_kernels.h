// The C interface of rlhf-kernels: plain C, no global state, no exceptions. Memory and workspace are the caller's.
//
// For each op of ops.h, with its arguments in the order of the list (tensors by pointer, NULL where one is absent):
//   rlhf_status rlhf_<op>(rlhf_stream*, ..., void* workspace, int64_t workspace_bytes);
//   int64_t     rlhf_<op>_workspace(..., rlhf_stream*);      bytes, or -1 where the arguments are refused
// A call returns when the op is done. After a status other than RLHF_OK, rlhf_message(stream) says what was wrong.
#ifndef RLHF_KERNELS_H
#define RLHF_KERNELS_H
#include <stdint.h>

#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif
#ifdef __cplusplus
extern "C" {
#endif

#define RLHF_ABI_VERSION 1
#define RLHF_LAW_VERSION 1

typedef enum { RLHF_F32 = 0, RLHF_F64 = 1, RLHF_I32 = 2 } rlhf_dtype;
typedef enum { RLHF_ROW_MAJOR = 0, RLHF_PANELS = 1, RLHF_PANELS_TRANSPOSED = 2 } rlhf_layout;
typedef enum {
  RLHF_OK = 0,
  RLHF_BAD_ARGUMENT = 1,  // null, dtype, rank, size, stride, layout
  RLHF_BAD_ID = 2,  // an id outside its range; float outputs are NaN
  RLHF_BAD_OFFSETS = 3,  // offsets that do not run monotonically from 0 to their total; float outputs are NaN
  RLHF_BAD_WORKSPACE = 4  // too small
} rlhf_status;

typedef struct {
  void* data;
  int32_t dtype;  // rlhf_dtype
  int32_t layout;  // rlhf_layout; dims stay those of the matrix
  int32_t rank;  // 0 to 4
  int32_t reserved;
  int64_t dims[4];
  int64_t stride;  // elements from one index of dimension 0 to the next
} rlhf_tensor;

typedef struct rlhf_stream rlhf_stream;  // an ISA, its threads, the last message

// isa: "scalar", "avx2", "avx512", "neon", or NULL for the best; threads: 0 for one per core. NULL if refused.
rlhf_stream* rlhf_stream_create(const char* isa, int32_t threads);
void rlhf_stream_destroy(rlhf_stream*);
const char* rlhf_message(const rlhf_stream*);
const char* rlhf_stream_isa(const rlhf_stream*);
int32_t rlhf_stream_threads(const rlhf_stream*);
const char* rlhf_isa_available(void);  // names, best first, separated by spaces
// Functions of the law of arithmetic in double: same bits on every machine.
double rlhf_exp(double x);
double rlhf_log(double x);
double rlhf_cos(double x);
double rlhf_pow(double x, double y);

#define IN(type, name, dims) const rlhf_tensor *name,
#define OPT(type, name, dims) const rlhf_tensor *name,
#define OUT(type, name, dims) const rlhf_tensor *name,
#define OPT_OUT(type, name, dims) const rlhf_tensor *name,
#define ADD(type, name, dims) const rlhf_tensor *name,
#define OPT_ADD(type, name, dims) const rlhf_tensor *name,
#define IDS(name, dims, limit) const rlhf_tensor *name,
#define OFFSETS(name, dims, total) const rlhf_tensor *name,
#define REAL(name) double name,
#define INT(name) int64_t name,
#define CHOICE(list, name) int64_t name,
#define OP(name, arguments)                                                                     \
  rlhf_status rlhf_##name(rlhf_stream* on, arguments void* workspace, int64_t workspace_bytes); \
  int64_t rlhf_##name##_workspace(arguments rlhf_stream* on);
#include "ops.h"
#include "ops_end.h"

#ifdef __cplusplus
}
#endif
#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#endif
