#pragma once
struct Consumer : Flash {
  // Positions of the tile that this warpgroup has.
  DEV int positions(const Work &t, int w) const { return min(GROUP_POSITIONS, t.count - w * GROUP_POSITIONS); }

  // To memory, through this warpgroup's own part of the Q stage: whole with the copy engine, else the rows that exist.
  DEV void store(const CUtensorMap *om, elem *o, u32 smem, int w, const Work &t) {
    const int positions = this->positions(t, w), token = t.token + w * GROUP_POSITIONS;
    if (positions <= 0) return;
    stage_o(smem, w);
    if (positions == GROUP_POSITIONS) {
      if (threadIdx.x % 128 == 0) {
#pragma unroll
        for (int c = 0; c < SLABS; c++) tma_store_3d(om, smem + c * Q_SLAB, 64 * c, t.head, token);
        tma_store_commit();
      }
    } else {
      for (int i = threadIdx.x % 128; i < positions * PACK * (HEAD_DIM / 8); i += 128) {
        const int row = i / (HEAD_DIM / 8), chunk = i % (HEAD_DIM / 8);
        uint4 v;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(smem + chunk / 8 * Q_SLAB + swizzled<128>(row * 128 + chunk % 8 * 16)) : "memory");
        *(uint4 *)(o + ((i64)(token + row / PACK) * HEADS + t.head + row % PACK) * HEAD_DIM + chunk * 8) = v;
      }
    }
    __syncwarp(); // what follows is executed by converged warps: barriers, wgmma
  }

  DEV void store_part(const Partials &to, int w, const Work &t) {
    const int positions = this->positions(t, w), lane = lane_id();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = total(r);
      const int row = warp_id() % 4 * 16 + lane / 4 + 8 * r, position = row / PACK;
      if (position >= positions) continue;
      const i64 at = to.at(t.token + w * GROUP_POSITIONS + position, t.head + row % PACK, t.part);
      if (lane % 4 == 0) to.max_sum[at] = make_float2(row_max[r] * SCALE, row_max[r] == NEG_INF ? 0.0f : sum);
      float *out = to.out + at * HEAD_DIM + 2 * (lane % 4);
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 8; i++) *(float2 *)(out + 8 * i) = make_float2(o[4 * i + 2 * r], o[4 * i + 2 * r + 1]);
    }
    __syncwarp();
  }
};
