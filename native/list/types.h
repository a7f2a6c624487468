// What the C interface, the list of ops and the kernels share: versions, dtypes, layouts, statuses and tensors. Plain
// C.
#ifndef RLHF_TYPES_H
#define RLHF_TYPES_H
#include <stdint.h>

#define RLHF_ABI_VERSION 1
#define RLHF_LAW_VERSION 2  // 2: differences of logits are scaled by 1/T, not logits

typedef enum { RLHF_F32 = 0, RLHF_F64 = 1, RLHF_I32 = 2, RLHF_BF16 = 3 } rlhf_dtype;
typedef enum { RLHF_ROW_MAJOR = 0, RLHF_PANELS = 1, RLHF_PANELS_TRANSPOSED = 2 } rlhf_layout;
typedef enum {
  RLHF_OK = 0,
  RLHF_BAD_ARGUMENT = 1,  // null, dtype, rank, size, stride, layout
  RLHF_BAD_ID = 2,  // an id outside its range; float outputs are NaN
  RLHF_BAD_OFFSETS = 3,  // offsets that do not run monotonically from 0 to their total; float outputs are NaN
  RLHF_BAD_WORKSPACE = 4,  // too small
  RLHF_FAILED = 5  // the GPU or its driver
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

#endif
