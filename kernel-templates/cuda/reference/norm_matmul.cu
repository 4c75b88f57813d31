// f64 reference of a norm and the product behind it: the normed rows go to the workspace, rounded to the element, and the
// product's reference reads them there.
#if OP_NORM_QKV
#define OP_QKV 1
#endif
#include "matmul_reference.cuh"

#include "norm_rows_reference.cuh"
