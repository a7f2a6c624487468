// The C interface of rlhf-kernels: plain C, no global state, no exceptions. Memory and workspace are the caller's.
//
// For each op of ../list/ops.h, with its arguments in the order of the list (tensors by pointer, NULL where one is
// absent):
//   rlhf_status rlhf_<op>(rlhf_stream*, ..., void* workspace, int64_t workspace_bytes);
//   int64_t     rlhf_<op>_workspace(..., rlhf_stream*);      bytes, or -1 where the arguments are refused
// On a CPU's stream a call returns when the op is done; on a GPU's it enqueues and returns, tensors and workspace lie
// on the device, and ids and offsets that turn out bad leave NaN and are told by rlhf_stream_wait. After a status other
// than RLHF_OK, rlhf_message(stream) says what was wrong. A call whose results have no element is done once its shapes
// and numbers are checked. A stream takes one call at a time: threads that share one take turns, threads with one each
// need not. An output overlaps no other argument, but for add, sub, mul, scale and clamp, whose y may be an input, and
// logprob_grad, whose dlogits may be logits (of the same stride). Data begins at a multiple of its element's size, or
// the call is refused; at 16 bytes, rows too, a GPU moves it fastest. Workspace may begin anywhere. Only limit_stream
// with past_caches wants z at a multiple of 64 bytes.
#ifndef RLHF_KERNELS_H
#define RLHF_KERNELS_H
#include <stdint.h>

#include "../list/functions.h"
#include "../list/types.h"

#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif
#ifdef __cplusplus
extern "C" {
#endif

typedef struct rlhf_stream rlhf_stream;  // an ISA, its threads, the last message

// isa: "scalar", "avx2", "avx512", "neon", or NULL for the best; threads: 0 for one per core. NULL if refused:
// the machine has no such ISA, or the system gives no more threads.
rlhf_stream* rlhf_stream_create(const char* isa, int32_t threads);
// A GPU's stream: enqueues to `cuda_stream` (a CUstream of the device's primary context), or to one of its own where it
// is NULL. NULL if there is none, with the reason in why[size].
rlhf_stream* rlhf_cuda_stream_create(int32_t ordinal, void* cuda_stream, char* why, int64_t size);
rlhf_status rlhf_stream_wait(
    rlhf_stream*);  // until all that was enqueued is done; of several ops that failed, each wait tells one
void* rlhf_stream_allocate(rlhf_stream*, int64_t bytes);  // NULL if there is no more
void rlhf_stream_release(rlhf_stream*, void*);  // once what is enqueued no longer needs it
rlhf_status rlhf_stream_write(rlhf_stream*, void* device, const void* host, int64_t bytes);
rlhf_status rlhf_stream_read(rlhf_stream*, void* host, const void* device, int64_t bytes);  // waits
// The list of ops as JSON: versions of this interface and of the law of arithmetic, names, arguments and their ranges,
// choices, and the dtypes that each device takes them at. A range whose end is null has none there.
const char* rlhf_ops_json(void);
void rlhf_stream_destroy(rlhf_stream*);
const char* rlhf_message(const rlhf_stream*);
const char* rlhf_stream_isa(const rlhf_stream*);  // of a GPU: its name
int32_t rlhf_stream_threads(const rlhf_stream*);
const char* rlhf_isa_available(void);  // names, best first, separated by spaces

#define IN(type, name, dims) const rlhf_tensor *name,
#define OPT(type, name, dims) const rlhf_tensor *name,
#define OUT(type, name, dims) const rlhf_tensor *name,
#define OPT_OUT(type, name, dims) const rlhf_tensor *name,
#define ADD(type, name, dims) const rlhf_tensor *name,
#define OPT_ADD(type, name, dims) const rlhf_tensor *name,
#define IDS(name, dims, limit) const rlhf_tensor *name,
#define OFFSETS(name, dims, total) const rlhf_tensor *name,
#define REAL(name, range) double name,
#define INT(name, range) int64_t name,
#define CHOICE(list, name) int64_t name,
#define OP(name, arguments)                                                                     \
  rlhf_status rlhf_##name(rlhf_stream* on, arguments void* workspace, int64_t workspace_bytes); \
  int64_t rlhf_##name##_workspace(arguments rlhf_stream* on);
#include "../list/ops.h"
#include "../list/ops_end.h"

#ifdef __cplusplus
}
#endif
#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#endif
