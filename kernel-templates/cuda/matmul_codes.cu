// y = x·Wᵀ for up to 64 tokens where W is stored as scaled codes of 4 or 8 bits: a stream of the codes from memory to
// registers, each byte read once, turned there into fragments of mma.m16n8k16. The operands are swapped: 16 rows of W are
// the M side of the instruction and eight tokens its N side. The run time is the codes' bytes over the memory bandwidth.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y), computed by one block: its WARPS warps are SPLIT_K parts
// of k by WARPS / SPLIT_K parts of ROW_TILES * 16 rows. A lane reads 16 bytes of each of its 2 * ROW_TILES rows at a time; a
// step covers UNROLL such vectors, and all of them are in flight at once. As soon as a vector is used, its registers are the
// target of the load that is one step further along the stream, across row groups too. x comes through the L1 cache.
//
//   codes ──16-byte loads──▶ q[UNROLL][ROW_TILES][2] ──pairs──▶ A ─┐
//   x ──16-byte loads──────────────────────────────────────────▶ B ─┴─mma──▶ part ──scale of the group──▶ acc ──▶ epilogue
//
// A group's scale is applied to the f32 sum of its products, a row's or the tensor's to the result, and so is what codes are
// too large by, with the sum of the group's tokens, which comes from the tensor cores too. So nothing is rounded but sums. With fragment row t / 4 standing for weight row
// 2 * (t / 4), and t / 4 + 8 for the one after it, a thread's accumulators are pairs of adjacent columns of y.
//
// Under programmatic dependent launch the first codes are requested before the wait for the kernel that produces x, and
// the dependent kernel may start at once: its own first codes then arrive under this kernel's tail.
#include "codes_stream.cuh"

#define TOKEN_STRIDE K
#define LOAD_TOKENS ld_tokens

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_codes(const elem *x, const u8 *__restrict__ w, const scale_elem *__restrict__ scales,
#if W_ZERO_ZERO
             const u8 *__restrict__ zeros,
#elif W_ZERO_MIN
             const scale_elem *__restrict__ mins,
#endif
             EPILOGUE_PARAMS, int m) {
#if SPLIT_K > 1
  extern __shared__ __align__(16) float partials[]; // two buffers in turn
#endif
  const epilogue_args e = EPILOGUE_PACK;
#include "codes_begin.cuh"
  pdl_wait();
  const elem *const tokens = x;
#include "codes_products.cuh"
