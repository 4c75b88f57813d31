// Inputs that are not stored as results are, made where they lie: what the host would write, bit by bit. Compiled behind support.cu, whose
// `uniform` is the stream, and watch.cu, and apart from them as these from each other: no key depends on it.
#include "e4m3.cuh"

extern "C" __global__ void fill_uniform_e4m3(u8 *p, u64 n, u64 seed, float scale) {
  for (u64 i = thread_index(); i < n; i += thread_count()) p[i] = (u8)e4m3_from_f32(__fmul_rn(uniform(seed, i), scale));
}

// Codes that fill their bytes: the words that `uniform` takes its numbers from, as they are.
extern "C" __global__ void fill_words(u8 *p, u64 bytes, u64 seed) {
  for (u64 i = thread_index(); i < bytes; i += thread_count())
    p[i] = (u8)(mixed(seed + (i / 8 + 1) * 0x9E3779B97F4A7C15ull) >> i % 8 * 8);
}
