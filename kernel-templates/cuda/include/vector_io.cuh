// Access of 2 to 16 bytes as several elements at a time, with f32 on the register side.
#pragma once
#include "common.cuh"

template <int COUNT> struct packed {
  static_assert(COUNT * ELEM_BYTES <= 16, "one access is at most 16 bytes");
  static constexpr int WORDS = COUNT * ELEM_BYTES / 4 > 0 ? COUNT * ELEM_BYTES / 4 : 1;
  u32 w[WORDS];
};

// The loads are not .nc: under programmatic launch their data may be written while this grid is already resident.
template <int COUNT> DEV packed<COUNT> load(const elem *p) {
  packed<COUNT> r;
  if constexpr (COUNT * ELEM_BYTES == 16)
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p));
  else if constexpr (COUNT * ELEM_BYTES == 8)
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(r.w[0]), "=r"(r.w[1]) : "l"(p));
  else if constexpr (COUNT * ELEM_BYTES == 4)
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(r.w[0]) : "l"(p));
  else {
    u16 h;
    asm volatile("ld.global.L1::no_allocate.u16 %0, [%1];" : "=h"(h) : "l"(p));
    r.w[0] = h;
  }
  return r;
}

// For constants that every block reads, such as weights: through the read-only path and kept in the L1.
template <int COUNT> DEV packed<COUNT> load_constant(const elem *p) {
  packed<COUNT> r;
  if constexpr (COUNT * ELEM_BYTES == 16) {
    const uint4 v = __ldg((const uint4 *)p);
    r.w[0] = v.x, r.w[1] = v.y, r.w[2] = v.z, r.w[3] = v.w;
  } else if constexpr (COUNT * ELEM_BYTES == 8) {
    const uint2 v = __ldg((const uint2 *)p);
    r.w[0] = v.x, r.w[1] = v.y;
  } else if constexpr (COUNT * ELEM_BYTES == 4)
    r.w[0] = __ldg((const u32 *)p);
  else
    r.w[0] = __ldg((const u16 *)p);
  return r;
}

// FIRST_OUT: the result is larger than the L2, so let it be the first to leave.
template <bool FIRST_OUT = false, int COUNT> DEV void store(elem *p, packed<COUNT> r) {
  if constexpr (COUNT * ELEM_BYTES == 16) {
    if (FIRST_OUT)
      st_global_cs((uint4 *)p, make_uint4(r.w[0], r.w[1], r.w[2], r.w[3]));
    else
      *(uint4 *)p = make_uint4(r.w[0], r.w[1], r.w[2], r.w[3]);
  } else if constexpr (COUNT * ELEM_BYTES == 8)
    *(uint2 *)p = make_uint2(r.w[0], r.w[1]);
  else if constexpr (COUNT * ELEM_BYTES == 4)
    *(u32 *)p = r.w[0];
  else
    *(u16 *)p = (u16)r.w[0];
}

template <int COUNT> DEV void unpack(const packed<COUNT> &r, float (&f)[COUNT]) {
#if ELEM_BYTES == 4
#pragma unroll
  for (int i = 0; i < COUNT; i++) f[i] = __uint_as_float(r.w[i]);
#else
  if constexpr (COUNT == 1)
    f[0] = to_f32(elem{(u16)r.w[0]});
  else
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) unpack2(elem{}, r.w[i], f[2 * i], f[2 * i + 1]);
#endif
}

template <int COUNT> DEV packed<COUNT> pack(const float (&f)[COUNT]) {
  packed<COUNT> r;
#if ELEM_BYTES == 4
#pragma unroll
  for (int i = 0; i < COUNT; i++) r.w[i] = __float_as_uint(f[i]);
#else
  if constexpr (COUNT == 1)
    r.w[0] = from_f32<elem>(f[0]).bits;
  else
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) r.w[i] = pack2(elem{}, f[2 * i], f[2 * i + 1]);
#endif
  return r;
}
