// The loads of the matrix products that stream their weights from memory to registers.
#pragma once
#include "common.cuh"

// Sixteen bytes that are read once. Deliberately not ld.global.nc: the assembler may move such a load down past
// griddepcontrol.wait, and the point of issuing weight loads before the wait would be lost.
DEV uint4 ld_weights(const elem *p) {
  uint4 r;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p) : "memory");
  return r;
}

// The same where `inside` holds and zero elsewhere, without a branch.
DEV uint4 ld_weights_if(const elem *p, bool inside) {
  uint4 r;
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
               "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
               "@p ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
               : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w) : "l"(p), "r"((u32)inside) : "memory");
  return r;
}

// Sixteen bytes of x, which the L1 cache keeps, where `inside` holds and zero elsewhere.
DEV uint4 ld_tokens_if(const elem *p, bool inside) {
  uint4 r;
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
               "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
               "@p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
               : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w) : "l"(p), "r"((u32)inside) : "memory");
  return r;
}
