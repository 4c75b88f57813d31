// f64 reference of the lookup in a table of codes: one block per token.
#include "scaled.cuh"

extern "C" __global__ void embedding_quant_reference(const int *ids, const code_t *codes, const scale_elem *scales,
                                                     const zero_elem *zeros, double *y, int hidden) {
  const weights table = {codes, scales, zeros};
  const int row = ids[blockIdx.x];
  for (int c = threadIdx.x; c < hidden; c += blockDim.x) y[(i64)blockIdx.x * hidden + c] = weight<double>(table, row, c, hidden);
}
