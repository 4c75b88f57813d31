// f64 reference of the products with every epilogue. One block computes a 64×64 tile of the product, each thread 4×4 of it
// (four consecutive columns, so that the pairs of SwiGLU and RoPE are in one thread), over k in steps of 16 through
// shared memory. All dimensions are arguments and may be ragged. Where the heads of a `qkv` are normed, the product goes to
// the workspace in f64 and qk_norm_reference, a block of 32 threads a (row, head), finishes it.
#include "matmul_reference.cuh"
