// y = x·Wᵀ for up to 64 tokens on the tensor cores of sm_90a where W is stored as scaled codes of 4 or 8 bits: a stream of
// the codes through shared memory, each byte read once. The operands are swapped: 64 rows of W are the M side of wgmma, out of
// registers, and the tokens its N side, out of shared memory, in steps of 8.
//
// A row group is BLOCK_ROWS adjacent rows of W (columns of y). One block computes it, or a cluster of CLUSTER_K blocks,
// each with a part of k. In a block
//  - the last warp is the producer: one thread fills a ring of STAGES buffers by bulk tensor copies (128-byte swizzle).
//    A stage is 128 bytes of codes of each row, and the tokens' elements of as many k;
//  - CONSUMERS warpgroups turn codes into fragments and multiply; each has BLOCK_ROWS / CONSUMERS of the rows.
// Barriers: full[s] completes when all bytes of stage s are in, empty[s] when all consumer warps have used them.
//
//   codes, x ──bulk copies──▶ ring[STAGES] ──pairs──▶ A ──wgmma──▶ part ──scale of the group──▶ acc (──▶ inbox) ──▶ epilogue
//
// In the layout `quads` (codes.cuh) the word of a chunk of 32 k in vector v holds the k from 8v; its pair t is what lane t
// of four needs of it, so a lane reads the vectors of all four lanes, as its neighbours do.
//
// An epilogue works on adjacent columns of y, which are adjacent rows of the accumulator and belong to lanes that differ
// in bit 2: these exchange one value of two, and each then has the pairs of one token. With CLUSTER_K > 1 every block
// finishes 1 / CLUSTER_K of the row group: the blocks write their sums to each other's inbox.
//
// Under programmatic dependent launch the codes of the whole ring are requested before the wait for the kernel that
// produces x, and the dependent kernel may start at once: its own ring then fills under this kernel's tail.
#include "epilogue.cuh"
#include "qk_norm.cuh"
#define WGMMA_N0 TILE_M
#include "wgmma.cuh"
#include "codes.cuh"

#define ROW_BLOCKS (BLOCK_ROWS / CONSUMERS / 64) // of 64 rows, of a warpgroup
#define THREADS (CONSUMERS * 128 + 32)
#define STAGE_K (1024 / CODE_BITS)                            // of 128 bytes of codes
#define STEPS_ALL ((K + STAGE_K - 1) / STAGE_K)
#define STEPS (STEPS_ALL / CLUSTER_K)                          // of a block
#define GROUPS ((N + BLOCK_ROWS - 1) / BLOCK_ROWS)
#define PERSISTENT (BLOCKS_SM > 0) // a block takes every gridDim.x-th row group, instead of just one

#define W_STAGE (BLOCK_ROWS * 128)
#define X_SLICE (TILE_M * 128) // bytes of 64 k of the tokens
#define X_SLICES (STAGE_K / 64)
#define STAGE_BYTES (W_STAGE + X_SLICES * X_SLICE)
#define RING_BYTES (STAGES * STAGE_BYTES)
#define PAIRS (BLOCK_ROWS / 2)
#define SHARE (PAIRS / CLUSTER_K) // column pairs that one block of the cluster finishes

#if W_SCALE_GROUP || W_SCALE_BLOCK
#define GROUPED 1
#else
#define GROUPED 0
#endif
#if GROUPED
#define GROUP_K (W_GROUP < STAGE_K ? W_GROUP : STAGE_K) // k of a stage that one scale belongs to
#define SCALES_K ((K + W_GROUP - 1) / W_GROUP)          // groups of a row
#else
#define GROUP_K STAGE_K
#endif
#define STAGE_GROUPS (STAGE_K / GROUP_K)
// k whose fragments are in registers at a time: of one group, and of one vector of four lanes.
constexpr int PART_K = GROUP_K < PART_MAX ? GROUP_K : PART_MAX < QUAD_K ? PART_MAX : QUAD_K;

static_assert(ELEM_BYTES == 2 && K % QUAD_K == 0, "rows are whole vectors of four lanes");
static_assert(TILE_M % 8 == 0 && TILE_M <= 64, "tokens are the N side of the instruction");
static_assert(BLOCK_ROWS % (CONSUMERS * 64) == 0 && BLOCK_ROWS <= 256, "warpgroups of whole 64-row blocks; a box has at most 256 rows");
static_assert(CLUSTER_K == 1 || (STEPS_ALL % CLUSTER_K == 0 && !PERSISTENT), "the parts of k do not overlap");
static_assert(PAIRS % CLUSTER_K == 0, "the blocks of a cluster finish equal shares of the row group");

struct ring_position {
  int slot = 0;
  u32 phase = 0;
  DEV void advance() {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
};

#if GROUPED
// The scales of one row in one stage, with what is taken off its codes.
struct factors {
  beside<scale_elem, STAGE_GROUPS> scales;
#if W_ZERO_ZERO
  beside<u8, STAGE_GROUPS> zeros;
#endif
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
matmul_codes_hopper(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                    const scale_elem *__restrict__ scales,
#if W_ZERO_ZERO
                    const u8 *__restrict__ zeros,
#endif
                    EPILOGUE_PARAMS, int m) {
  extern __shared__ u8 smem[];
  const u32 ring = (smem_u32(smem) + 1023) & ~1023u; // the swizzle pattern repeats every 1024 bytes
  const u8 *const ring_at = smem + (ring - smem_u32(smem));
  const u32 full = ring + RING_BYTES, empty = full + STAGES * 8;
  [[maybe_unused]] float2 *const inbox = // [CLUSTER_K][TILE_M][SHARE]
      reinterpret_cast<float2 *>(smem + (ring - smem_u32(smem)) + RING_BYTES + STAGES * 16);
  const epilogue_args e = EPILOGUE_PACK;
#if CLUSTER_K > 1
  const int rank = cluster_rank();
#else
  const int rank = 0;
#endif
  const int first_group = blockIdx.x / CLUSTER_K, stride = gridDim.x / CLUSTER_K;
  const int warp = warp_uniform(warp_id()), lane = lane_id();

  pdl_launch();
  if (threadIdx.x == 0) {
    tma_prefetch_map(&w_map);
    tma_prefetch_map(&x_map);
    for (int i = 0; i < STAGES; i++) {
      mbar_init(full + i * 8, 1);
      mbar_init(empty + i * 8, CONSUMERS * 4);
    }
    fence_mbar_init();
  }
  __syncthreads();
#if CLUSTER_K > 1
  cluster_arrive(); // matched before the first write to another block, which must have started by then
#endif

  if (warp == CONSUMERS * 4) {
    if (lane == 0) {
      const auto load_w = [&](int slot, int group, int step) {
        tma_load_2d(ring + slot * STAGE_BYTES, &w_map, full + slot * 8, (rank * STEPS + step) * 128, group * BLOCK_ROWS);
      };
      const auto load_x = [&](int slot, int step) {
#pragma unroll
        for (int i = 0; i < X_SLICES; i++)
          tma_load_2d(ring + slot * STAGE_BYTES + W_STAGE + i * X_SLICE, &x_map, full + slot * 8,
                      (rank * STEPS + step) * STAGE_K + i * 64, 0);
      };
      const int groups = PERSISTENT ? (GROUPS - first_group + stride - 1) / stride : 1, steps = groups * STEPS;
      const int early = min(STAGES, steps);
      for (int i = 0; i < early; i++) {
        mbar_expect_tx(full + i * 8, STAGE_BYTES);
        load_w(i, first_group + i / STEPS * stride, i % STEPS);
      }
      pdl_wait();
      for (int i = 0; i < early; i++) load_x(i, i % STEPS);
      ring_position at;
      int group = first_group + early / STEPS * stride, step = early % STEPS;
      for (int i = early; i < steps; i++) { // early == STAGES here, so slot 0 is the first to be filled again
        mbar_wait(empty + at.slot * 8, at.phase);
        mbar_expect_tx(full + at.slot * 8, STAGE_BYTES);
        load_w(at.slot, group, step);
        load_x(at.slot, step);
        at.advance();
        if (++step == STEPS) step = 0, group += stride;
      }
    }
#if CLUSTER_K > 1
    __syncwarp();
    cluster_wait();
    cluster_sync();
#endif
    return;
  }

  const int row_first = warp / 4 * (ROW_BLOCKS * 64) + warp % 4 * 16; // of this warp in a row group
#if GROUPED
  factors now[ROW_BLOCKS][2];
  const auto request = [&](factors (&f)[ROW_BLOCKS][2], int group, int step) {
    const int k = (rank * STEPS + step) * STAGE_K;
#pragma unroll
    for (int r = 0; r < ROW_BLOCKS; r++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int row = group * BLOCK_ROWS + row_first + r * 64 + j * 8 + lane / 4;
        const bool inside = row < N && k < K; // a row's last groups may lie beyond k, where tokens are zero
        #if W_SCALE_BLOCK
        const i64 at = (i64)(row / 128) * SCALES_K + k / W_GROUP;
#else
        const i64 at = (i64)row * SCALES_K + k / W_GROUP;
#endif
        f[r][j].scales = ld_beside_if<scale_elem, STAGE_GROUPS>(scales + at, inside);
#if W_ZERO_ZERO
        f[r][j].zeros = ld_beside_if<u8, STAGE_GROUPS>(zeros + at, inside);
#endif
      }
  };
  request(now, first_group, 0);
#endif
  pdl_wait();
  ring_position at;
  int group = first_group;
  do {
    float acc[ROW_BLOCKS][TILE_M / 2] = {};
#pragma unroll 1
    for (int step = 0; step < STEPS; step++) {
#if GROUPED
      factors next[ROW_BLOCKS][2];
      const bool last = step == STEPS - 1;
      if (!last || (PERSISTENT && group + stride < GROUPS)) request(next, last ? group + stride : group, last ? 0 : step + 1);
#endif
      mbar_wait(full + at.slot * 8, at.phase);
      const u8 *const w_stage = ring_at + at.slot * STAGE_BYTES;
      const u32 x_stage = ring + at.slot * STAGE_BYTES + W_STAGE;
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++) {
#pragma unroll
        for (int g = 0; g < STAGE_GROUPS; g++) {
#if GROUPED
          float part[TILE_M / 2];
#else
          float(&part)[TILE_M / 2] = acc[r];
#endif
#pragma unroll
          for (int k = g * GROUP_K; k < (g + 1) * GROUP_K; k += PART_K) {
            u32 a[PART_K / 16][4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
              const int row = row_first + r * 64 + j * 8 + lane / 4;
#if W_ZERO_ZERO && GROUPED
              const float less = -CODE_BASE - now[r][j].zeros.v[g];
#elif DTYPE_W_INT4
              const float less = -CODE_BASE - 8.0f;
#else
              const float less = 0;
#endif
              [[maybe_unused]] const u32 less2 = pack2(elem{}, less, less);
#pragma unroll
              for (int v = 0; v < 4; v++) {
                // The words of vector v that belong to these k, as few bytes as hold them.
                constexpr int WORDS = PART_K / 32 * (CODE_BITS / 4);
                const int first = k % QUAD_K / 32 * (CODE_BITS / 4);
                const u8 *p = w_stage + swizzled<128>(row * 128 + k / QUAD_K * 64 + v * 16) + first * 4;
                u32 words[WORDS];
#pragma unroll
                for (int i = 0; i < WORDS; i += WORDS < 4 ? WORDS : 4) {
                  if constexpr (WORDS >= 4) {
                    const uint4 q = *reinterpret_cast<const uint4 *>(p + i * 4);
                    words[i] = q.x, words[i + 1] = q.y, words[i + 2] = q.z, words[i + 3] = q.w;
                  } else if constexpr (WORDS == 2) {
                    const uint2 q = *reinterpret_cast<const uint2 *>(p);
                    words[0] = q.x, words[1] = q.y;
                  } else {
                    words[0] = *reinterpret_cast<const u32 *>(p);
                  }
                }
#pragma unroll
                for (int c = 0; c < PART_K / 32; c++) {
#if DTYPE_W_INT4
                  const u32 pair = fma2(elem{}, one_pair(words[c] >> (lane % 4 * 4)), ONES, less2);
#else
                  const u32 word = lane & 2 ? words[2 * c + 1] : words[2 * c];
                  const u32 pair = one_pair(word >> (lane % 2 * 8));
#endif
                  a[2 * c + v / 2][v % 2 * 2 + j] = pair;
                }
              }
            }
            wgmma_pin(part);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < PART_K / 16; i++) {
              const int at_k = k + i * 16;
              Wgmma<TILE_M>::rs(part, a[i], desc_advance(desc_k_major<128>(x_stage + at_k / 64 * X_SLICE), at_k % 64 * 2),
                                !GROUPED || at_k > g * GROUP_K);
            }
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_pin(part);
          }
#if GROUPED
          const float scale[2] = {to_f32(now[r][0].scales.v[g]), to_f32(now[r][1].scales.v[g])};
#pragma unroll
          for (int d = 0; d < TILE_M / 2; d++) acc[r][d] = fmaf(part[d], scale[d / 2 % 2], acc[r][d]);
#endif
        }
      }
      if (lane == 0) mbar_arrive(empty + at.slot * 8);
      at.advance();
#if GROUPED
#pragma unroll
      for (int r = 0; r < ROW_BLOCKS; r++) now[r][0] = next[r][0], now[r][1] = next[r][1];
#endif
    }
#if !GROUPED
#pragma unroll
    for (int r = 0; r < ROW_BLOCKS; r++) {
      const int row = group * BLOCK_ROWS + row_first + r * 64 + lane / 4;
#if W_SCALE_ROW
      const float scale[2] = {row < N ? to_f32(scales[row]) : 0.0f, row + 8 < N ? to_f32(scales[row + 8]) : 0.0f};
#else
      const float scale[2] = {to_f32(scales[0]), to_f32(scales[0])};
#endif
#pragma unroll
      for (int d = 0; d < TILE_M / 2; d++) acc[r][d] *= scale[d / 2 % 2];
    }
#endif
#include "skinny_hopper_end.cuh" // the sums of a row group to the epilogue, or to the block of the cluster that finishes them
