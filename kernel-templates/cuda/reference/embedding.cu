// f64 reference of the embedding lookup: one block per token.
#include "common.cuh"

extern "C" __global__ void embedding_reference(const int *ids, const elem *table, double *y, int hidden) {
  const elem *from = table + (i64)ids[blockIdx.x] * hidden;
  for (int c = threadIdx.x; c < hidden; c += blockDim.x) y[(i64)blockIdx.x * hidden + c] = to_f32(from[c]);
}
