// ---- over a block, the result in every thread ------------------------------------------------------------------------
DEV u64 block_max(u64 v) {
  __shared__ u64 part[WARPS];
#pragma unroll
  for (int o = 16; o > 0; o /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, o));
  __syncthreads(); // an earlier call may still be reading
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = part[0];
#pragma unroll 4
  for (int i = 1; i < WARPS; i++) v = larger(v, part[i]);
  return v;
}
DEV float block_sum(float v) {
  __shared__ float part[WARPS];
  v = warp_sum(v);
  __syncthreads();
  if (lane_id() == 0) part[warp_id()] = v;
  __syncthreads();
  v = 0.0f;
#pragma unroll 4
  for (int i = 0; i < WARPS; i++) v += part[i];
  return v;
}
DEV u64 warp_scan(u64 v) {
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const u64 before = __shfl_up_sync(0xffffffffu, v, o);
    if (lane_id() >= o) v += before;
  }
  return v;
}
// What the threads before this one have, and what all have.
DEV u64 block_scan(u64 v, u64 &total) {
  __shared__ u64 part[WARPS];
  const u64 with = warp_scan(v);
  __syncthreads();
  if (lane_id() == 31) part[warp_id()] = with;
  __syncthreads();
  u64 before = 0;
  total = 0;
#pragma unroll 4
  for (int i = 0; i < WARPS; i++) {
    if (i < warp_id()) before += part[i];
    total += part[i];
  }
  return before + with - v;
}
