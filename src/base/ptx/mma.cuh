// Matrices spread over a warp, and their product on the tensor cores (sm_80). All lanes of the warp call together.
//
// Fragments, as PTX ISA documents them: with g = lane / 4 and t = lane % 4, each register holds two neighbouring 16-bit
// elements, the first in the low half,
//
//   A, 16 × 16, row-major:     a[0]: row g,     columns 2t, 2t + 1      a[2]: row g,     columns 2t + 8, 2t + 9
//                              a[1]: row g + 8, columns 2t, 2t + 1      a[3]: row g + 8, columns 2t + 8, 2t + 9
//   B, 16 × 8, column-major:   b[0]: rows 2t, 2t + 1, column g          b[1]: rows 2t + 8, 2t + 9, column g
//   C, 16 × 8, fp32:           c[0], c[1]: row g, columns 2t, 2t + 1    c[2], c[3]: row g + 8, columns 2t, 2t + 1
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"
#include "base/ptx/shared_address.cuh"

#if STROP_EMULATED
#include "emu/matrix.h"
#endif

namespace strop::ptx {

// ldmatrix.x4: four 8 × 8 matrices of 16-bit elements from shared memory. Lane 8i + j gives the address of row j of
// matrix i: 16 bytes, 16-byte aligned. r[i] gets matrix i: row g, columns 2t and 2t + 1. With A's quarters in the order
// of a[0] to a[3], that is the fragment above.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
#if STROP_EMULATED
  emu::load_matrices("ldmatrix.x4", r, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}
// ldmatrix.x2: two of them; lanes 0 to 15 give addresses, those of others are ignored.
__device__ __forceinline__ void ldmatrix_x2(std::uint32_t (&r)[2], const void* row) {
#if STROP_EMULATED
  emu::load_matrices("ldmatrix.x2", r, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#endif
}
// ldmatrix.x4.trans: each matrix transposed, so that r[i] gets rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
#if STROP_EMULATED
  emu::load_matrices("ldmatrix.x4.trans", r, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}
// ldmatrix.x2.trans: rows 0 to 7 and 8 to 15 of a row-major B give B's fragment.
__device__ __forceinline__ void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* row) {
#if STROP_EMULATED
  emu::load_matrices("ldmatrix.x2.trans", r, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// mma.m16n8k16: c += a · b of fp16, accumulated in fp32. Products are exact. In which order and with how many bits
// the hardware adds them up is not documented, and the emulator adds in order of k, each sum rounded to fp32: results
// agree within rounding only.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&c)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
#if STROP_EMULATED
  emu::multiply_matrices("mma.m16n8k16.f16", c, a, b, false);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// The same of bf16.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4],
                                                  const std::uint32_t (&b)[2]) {
#if STROP_EMULATED
  emu::multiply_matrices("mma.m16n8k16.bf16", c, a, b, true);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace strop::ptx
