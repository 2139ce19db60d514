// Loads and stores whose cache behaviour is chosen.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"

namespace strop::ptx {

// ld.global.nc.L1::no_allocate: data that is read once and that nobody writes during the kernel.
__device__ __forceinline__ std::uint32_t load_once_u16(const void* p) {
#if STROP_EMULATED
  return emu::load<std::uint16_t>(p, emu::Op::kReadOnly);
#else
  std::uint16_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
  return v;
#endif
}
__device__ __forceinline__ std::uint32_t load_once_u32(const void* p) {
#if STROP_EMULATED
  return emu::load<std::uint32_t>(p, emu::Op::kReadOnly);
#else
  std::uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
#endif
}
__device__ __forceinline__ uint2 load_once_u64(const void* p) {  // 8-byte aligned
#if STROP_EMULATED
  return emu::load<uint2>(p, emu::Op::kReadOnly);
#else
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
#endif
}
__device__ __forceinline__ uint4 load_once_u128(const void* p) {  // 16-byte aligned
#if STROP_EMULATED
  return emu::load<uint4>(p, emu::Op::kReadOnly);
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#endif
}

// cp.async.bulk.prefetch.L2 (sm_90): brings `bytes` from p into L2, without waiting; both multiples of 16. One thread
// asks for a whole stretch. Nothing below sm_90.
__device__ __forceinline__ void prefetch_l2(const void* p, std::uint32_t bytes) {
#if STROP_EMULATED
  emu::check_prefetch(p, bytes);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

// st.global.cs: evict first, for what this kernel does not read again.
__device__ __forceinline__ void store_streaming_u16(void* p, std::uint32_t v) {
#if STROP_EMULATED
  emu::store(p, static_cast<std::uint16_t>(v));
#else
  asm volatile("st.global.cs.u16 [%0], %1;" ::"l"(p), "h"(static_cast<std::uint16_t>(v)) : "memory");
#endif
}
__device__ __forceinline__ void store_streaming_u32(void* p, std::uint32_t v) {
#if STROP_EMULATED
  emu::store(p, v);
#else
  asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}
__device__ __forceinline__ void store_streaming_u64(void* p, uint2 v) {  // 8-byte aligned
#if STROP_EMULATED
  emu::store(p, v);
#else
  asm volatile("st.global.cs.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(v.x), "r"(v.y) : "memory");
#endif
}
__device__ __forceinline__ void store_streaming_u128(void* p, uint4 v) {  // 16-byte aligned
#if STROP_EMULATED
  emu::store(p, v);
#else
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
#endif
}

// 16 aligned bytes that threads of different blocks may write and read at once: a read finds all of one write or
// nothing of it, and nothing else is ordered by either (ld.relaxed, st.relaxed .b128: sm_70).
struct alignas(16) Bits128 {
  std::uint64_t low, high;
};
__device__ __forceinline__ void send_b128(Bits128* p, Bits128 v) {
#if STROP_EMULATED
  emu::send(p, &v, sizeof v);
#else
  asm volatile("{\n.reg .b128 v;\nmov.b128 v, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(p), "l"(v.low),
               "l"(v.high)
               : "memory");
#endif
}
__device__ __forceinline__ Bits128 poll_b128(const Bits128* p) {  // what it finds need not have been written
#if STROP_EMULATED
  Bits128 v;
  emu::poll(&v, p, sizeof v);
  return v;
#else
  Bits128 v;
  asm volatile("{\n.reg .b128 v;\nld.relaxed.gpu.global.b128 v, [%2];\nmov.b128 {%0, %1}, v;\n}"
               : "=l"(v.low), "=l"(v.high)
               : "l"(p)
               : "memory");
  return v;
#endif
}

}  // namespace strop::ptx
