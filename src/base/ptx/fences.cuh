// Words in global memory by which threads of different blocks hand over other memory: what a thread did before a
// release is seen by who acquires what it left. Barriers around them extend that to the blocks of both.
#pragma once

#include <cstdint>

#include "base/ptx/emulated.cuh"

namespace strop::ptx {

// ld.acquire.gpu
__device__ __forceinline__ std::uint32_t load_acquire_u32(const std::uint32_t* p) {
#if STROP_EMULATED
  return static_cast<std::uint32_t>(
      emu::atomic(const_cast<std::uint32_t*>(p), sizeof *p, emu::MemoryOrder::kAcquire, nullptr, nullptr));
#else
  std::uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#endif
}

// st.release.gpu
__device__ __forceinline__ void store_release_u32(std::uint32_t* p, std::uint32_t v) {
#if STROP_EMULATED
  emu::atomic_store(p, v, emu::MemoryOrder::kRelease);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}

#if STROP_EMULATED
__device__ __forceinline__ std::uint32_t add_u32(std::uint32_t* p, std::uint32_t v, emu::MemoryOrder order) {
  return static_cast<std::uint32_t>(emu::atomic(
      p, sizeof *p, order,
      [](std::uint64_t old, const void* more) -> std::uint64_t {
        return old + *static_cast<const std::uint32_t*>(more);
      },
      &v));
}
#endif

// red.release.gpu.add: *p += v.
__device__ __forceinline__ void add_release_u32(std::uint32_t* p, std::uint32_t v) {
#if STROP_EMULATED
  add_u32(p, v, emu::MemoryOrder::kRelease);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}

// atom.acq_rel.gpu.add: *p += v; returns what was there.
__device__ __forceinline__ std::uint32_t add_acquire_release_u32(std::uint32_t* p, std::uint32_t v) {
#if STROP_EMULATED
  return add_u32(p, v, emu::MemoryOrder::kAcquireRelease);
#else
  std::uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
#endif
}

// atom.acq_rel.gpu.cas.b64: *p = desired if it is `expected`; returns what was there, which need not have been written.
__device__ __forceinline__ std::uint64_t compare_swap_u64(std::uint64_t* p, std::uint64_t expected,
                                                          std::uint64_t desired) {
#if STROP_EMULATED
  const std::uint64_t both[2] = {expected, desired};
  return emu::atomic_unwritten(
      p, sizeof *p, emu::MemoryOrder::kAcquireRelease,
      [](std::uint64_t old, const void* more) -> std::uint64_t {
        const auto* values = static_cast<const std::uint64_t*>(more);
        return old == values[0] ? values[1] : old;
      },
      both);
#else
  std::uint64_t old;
  asm volatile("atom.acq_rel.gpu.global.cas.b64 %0, [%1], %2, %3;"
               : "=l"(old)
               : "l"(p), "l"(expected), "l"(desired)
               : "memory");
  return old;
#endif
}

}  // namespace strop::ptx
