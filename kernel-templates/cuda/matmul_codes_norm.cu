// y = norm(x)·Wᵀ for up to eight tokens where W is stored as scaled codes of 4 or 8 bits: the product of matmul_codes.cu, whose
// blocks norm the rows of x themselves. What the norm takes is hidden behind the first codes, which are requested before the
// wait for the kernel that produces x and arrive while the rows are summed up.
//
//   x ──16-byte loads──▶ sums of squares ──block──▶ normed rows in shared memory ──16-byte loads──▶ B of matmul_codes
//
// Each block reads all of x. The products read the normed rows in shared memory, where those of matmul_codes read x through the
// L1 cache, and are the same otherwise.
#if OP_NORM_QKV
#define OP_QKV 1 // to the epilogue
#endif
#define TILE_M 8
#include "codes_stream.cuh"
#include "norm_tokens.cuh"

#define LOAD_TOKENS ld_normed

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_codes_norm(const elem *x, const elem *__restrict__ norm, const u8 *__restrict__ w, const scale_elem *__restrict__ scales,
#if W_ZERO_ZERO
                  const u8 *__restrict__ zeros,
#elif W_ZERO_MIN
                  const scale_elem *__restrict__ mins,
#endif
                  EPILOGUE_PARAMS, int m, float eps) {
  extern __shared__ __align__(16) float partials[]; // PARTIAL_BUFFERS in turn, and then the normed rows
  const epilogue_args e = EPILOGUE_PACK;
  prefetch_norm(norm);
#include "codes_begin.cuh"
  pdl_wait();
  elem *const tokens = reinterpret_cast<elem *>(partials + PARTIAL_BUFFERS * PARTIALS);
  norm_tokens(tokens, x, norm, m, eps);
#include "codes_products.cuh"
