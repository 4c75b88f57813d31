// Rows of a table whose elements are codes of a scaled format, as values: a block a row.
#include "scaled.cuh"

extern "C" __global__ void __launch_bounds__(256) embedding_quant(const int *__restrict__ ids, const code_t *__restrict__ codes,
                                                                  const scale_elem *__restrict__ scales,
                                                                  const zero_elem *__restrict__ zeros, elem *__restrict__ y,
                                                                  int hidden) {
  pdl_launch();
  pdl_wait();
  const weights table = {codes, scales, zeros};
  const int row = ids[blockIdx.x];
  for (int c = threadIdx.x; c < hidden; c += 256) y[(i64)blockIdx.x * hidden + c] = from_f32<elem>(weight<float>(table, row, c, hidden));
}
