// What every CUDA template shares: integer types, the element type of the problem and its conversions, vector access,
// warp reductions, asynchronous copies, and the warp-level matrix instructions of sm_80. Plain PTX wrappers; no policy.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEV __device__ __forceinline__

// ---- element types -------------------------------------------------------------------------------------------------
// Storage only: arithmetic is in f32.
struct bf16_t { u16 bits; };
struct f16_t { u16 bits; };
struct e4m3_t { u8 bits; };

// `operand` is what the operands of a product are stored in, `elem` everything else.
#if DTYPE_BF16
typedef bf16_t elem;
#define ELEM_BYTES 2
#elif DTYPE_F16
typedef f16_t elem;
#define ELEM_BYTES 2
#elif DTYPE_F32 || DTYPE_TF32
typedef float elem;
#define ELEM_BYTES 4
#elif DTYPE_E4M3
typedef bf16_t elem;
#define ELEM_BYTES 2
#else
#error "no DTYPE_ of a known element type is defined"
#endif
#if DTYPE_E4M3
typedef e4m3_t operand;
#else
typedef elem operand;
#endif

DEV float to_f32(float v) { return v; }
DEV float to_f32(bf16_t v) { return __uint_as_float((u32)v.bits << 16); }
DEV float to_f32(f16_t v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}

DEV float to_f32(e4m3_t v) {
  const u32 sign = (u32)(v.bits & 0x80) << 24, exponent = v.bits >> 3 & 15, mantissa = v.bits & 7;
  if (exponent == 15 && mantissa == 7) return __int_as_float(0x7fffffff);
  const float a = exponent == 0 ? mantissa * (1.0f / 512.0f) : __uint_as_float((exponent + 120) << 23 | mantissa << 20);
  return __uint_as_float(__float_as_uint(a) | sign);
}

template <class T> DEV T from_f32(float v);
template <> DEV float from_f32<float>(float v) { return v; }
template <> DEV bf16_t from_f32<bf16_t>(float v) {
  bf16_t r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
template <> DEV f16_t from_f32<f16_t>(float v) {
  f16_t r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}

// Two 16-bit elements in one register, the first in the low half.
DEV u32 pack2(bf16_t, float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
DEV u32 pack2(f16_t, float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
DEV void unpack2(bf16_t, u32 v, float &lo, float &hi) {
  lo = __uint_as_float(v << 16);
  hi = __uint_as_float(v & 0xffff0000u);
}
DEV void unpack2(f16_t, u32 v, float &lo, float &hi) {
  lo = to_f32(f16_t{(u16)(v & 0xffffu)});
  hi = to_f32(f16_t{(u16)(v >> 16)});
}

// ---- vector access -------------------------------------------------------------------------------------------------
// COUNT elements that are loaded and stored as one access of at most 16 bytes.
template <int COUNT> struct alignas(COUNT * sizeof(elem)) vec { elem v[COUNT]; };

DEV uint4 ld_global_nc(const uint4 *p) {
  uint4 r;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
DEV void st_global_cs(uint4 *p, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
DEV u32 smem_u32(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// ---- arithmetic ----------------------------------------------------------------------------------------------------
DEV int cdiv(int a, int b) { return (a + b - 1) / b; }
DEV float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEV float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#define LOG2E 1.4426950408889634f
DEV float silu(float x) { return x * rcp_approx(1.0f + exp2_approx(-x * LOG2E)); }
#define NEG_INF __int_as_float(0xff800000)

// ---- warps ---------------------------------------------------------------------------------------------------------
DEV int lane_id() { return threadIdx.x & 31; }
DEV int warp_id() { return threadIdx.x >> 5; }
template <int WIDTH = 32> DEV float warp_sum(float v) {
#pragma unroll
  for (int o = WIDTH / 2; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
template <int WIDTH = 32> DEV float warp_max(float v) {
#pragma unroll
  for (int o = WIDTH / 2; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}

// ---- asynchronous copies of sm_80 ----------------------------------------------------------------------------------
// Copies 16 bytes; where `bytes` is less, the rest is filled with zeros.
DEV void cp_async16(u32 smem, const void *global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(bytes) : "memory");
}
DEV void cp_async4(u32 smem, const void *global, int bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem), "l"(global), "r"(bytes) : "memory");
}
DEV void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEV void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// ---- programmatic dependent launch ---------------------------------------------------------------------------------
DEV void pdl_wait() {
#if ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEV void pdl_launch() {
#if ARCH >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
