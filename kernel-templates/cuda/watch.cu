// What looks after memory that a candidate must leave as it is, and makes some of its results untrue. Compiled behind
// support.cu, and apart from it since nothing here says how far a result is from the reference: no key depends on it.

DEV u64 mixed(u64 z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// sums[r] += a number of all bytes of range r and of where each lies. The table has the address and the bytes of each
// range, which may begin and end anywhere. The order of additions does not matter, so the same bytes give the same sum.
extern "C" __global__ void sum_ranges(const u64 *table, u64 count, u64 *sums) {
  for (u64 r = 0; r < count; r++) {
    const unsigned char *p = (const unsigned char *)table[2 * r];
    u64 n = table[2 * r + 1], sum = 0;
    u64 head = (16 - ((u64)p & 15)) & 15;
    head = head < n ? head : n;
    u64 words = (n - head) / 16, tail = head + words * 16;
    const uint4 *whole = (const uint4 *)(p + head);
    for (u64 i = thread_index(); i < words; i += thread_count()) {
      uint4 v = whole[i];
      sum += mixed(((u64)v.y << 32 | v.x) + (2 * i + 1) * 0x9E3779B97F4A7C15ull);
      sum += mixed(((u64)v.w << 32 | v.z) + (2 * i + 2) * 0x9E3779B97F4A7C15ull);
    }
    if (u64 i = thread_index(); i < head + (n - tail)) {
      u64 at = i < head ? i : tail + (i - head);
      sum += mixed(at << 8 | p[at]);
    }
    if (__any_sync(0xffffffffu, sum != 0)) {
      sum = warp_sum_u64(sum);
      if (lane_id() == 0) atomicAdd(&sums[r], sum);
    }
  }
}

// Counts the bytes of a guard region that are no longer 0xff.
extern "C" __global__ void check_bytes(const unsigned char *p, u64 n, u32 *bad) {
  for (u64 i = thread_index(); i < n; i += thread_count())
    if (p[i] != 0xff) atomicAdd(bad, 1u);
}

// Puts other numbers, between 2 and 4 in every float type, in place of about every 16th result.
template <class Bits> DEV void spoil_with(Bits *out, const double *ref, u64 n, u64 seed) {
  for (u64 i = thread_index(); i < n; i += thread_count()) {
    u64 h = mixed(seed + (i + 1) * 0x9E3779B97F4A7C15ull);
    if (ref[i] == ref[i] && ((h & 15) == 0 || i == seed % n)) {
      u32 bits = 0x40000000u | ((u32)(h >> 32) & 0xffffffu);
      out[i] = (Bits)(bits >> (32 - 8 * sizeof(Bits)));
    }
  }
}
extern "C" __global__ void spoil1(unsigned char *out, const double *ref, u64 n, u64 seed) {
  spoil_with(out, ref, n, seed);
}
extern "C" __global__ void spoil2(unsigned short *out, const double *ref, u64 n, u64 seed) {
  spoil_with(out, ref, n, seed);
}
extern "C" __global__ void spoil4(u32 *out, const double *ref, u64 n, u64 seed) { spoil_with(out, ref, n, seed); }
