// What device code calls without an include: indices, barriers, warps, fences, atomics, loads by cache.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emu/device.h"
#include "host_defines.h"
#include "vector_types.h"

// blockDim and gridDim: strop_emu_block_dim() and strop_emu_grid_dim() (cuda_runtime_api.h).
#define threadIdx strop_emu_thread_idx()
#define blockIdx strop_emu_block_idx()
#define warpSize 32
__device__ __forceinline__ uint3 strop_emu_thread_idx() {
  const auto d = ::strop::emu::thread_index();
  return {d.x, d.y, d.z};
}
__device__ __forceinline__ uint3 strop_emu_block_idx() {
  const auto d = ::strop::emu::block_index();
  return {d.x, d.y, d.z};
}
__device__ __forceinline__ dim3 strop_emu_block_dim() {
  const auto d = ::strop::emu::block_size();
  return {d.x, d.y, d.z};
}
__device__ __forceinline__ dim3 strop_emu_grid_dim() {
  const auto d = ::strop::emu::grid_size();
  return {d.x, d.y, d.z};
}

// ---- Barriers and fences --------------------------------------------------------------------------------------------

__device__ __forceinline__ void __syncthreads() { ::strop::emu::block_barrier_sync(0, 0); }
__device__ __forceinline__ void __barrier_sync(unsigned id) { ::strop::emu::block_barrier_sync(id, 0); }
__device__ __forceinline__ void __barrier_sync_count(unsigned id, unsigned threads) {
  ::strop::emu::block_barrier_sync(id, threads);
}
__device__ __forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
  ::strop::emu::warp_meet("__syncwarp", mask, nullptr, nullptr, true);
}
__device__ __forceinline__ void __threadfence_block() { ::strop::emu::fence(::strop::emu::Scope::kBlock); }
__device__ __forceinline__ void __threadfence() { ::strop::emu::fence(::strop::emu::Scope::kGpu); }
__device__ __forceinline__ void __threadfence_system() { ::strop::emu::fence(::strop::emu::Scope::kGpu); }

// ---- Shuffles and votes ---------------------------------------------------------------------------------------------

namespace strop::emu {

// A lane's part in a shuffle: its value, and the lane that it reads from.
struct Shuffle {
  std::uint64_t value = 0, result = 0;
  unsigned source = 0;
  bool missing = false;  // the source did not take part
};
void complete_shuffle(void* const* payloads, unsigned mask);

template <class T>
__device__ __forceinline__ T shuffle(const char* what, unsigned mask, T v, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle s;
  std::memcpy(&s.value, &v, sizeof(T));
  s.source = source;
  warp_meet(what, mask, &s, &complete_shuffle);
  if (s.missing) report_shuffle(what, mask, s.source);
  std::memcpy(&v, &s.result, sizeof(T));
  return v;
}

// Lanes' values reduced or voted on; `op` names how.
enum class Vote : std::uint8_t {
  kBallot,
  kMatch,
  kMatchAll,
  kAdd,
  kMin,
  kMax,
  kMinSigned,
  kMaxSigned,
  kAnd,
  kOr,
  kXor
};
struct Ballot {
  Vote vote;
  std::uint64_t value = 0, result = 0;
};
void complete_ballot(void* const* payloads, unsigned mask);
__device__ __forceinline__ std::uint64_t vote(const char* what, unsigned mask, Vote how, std::uint64_t value) {
  Ballot b{how, value};
  warp_meet(what, mask, &b, &complete_ballot);
  return b.result;
}

// The lane that lane reads from, in segments of `width`; its own where the other is outside.
__device__ __forceinline__ unsigned segment(int width) { return lane_index() & ~(static_cast<unsigned>(width) - 1); }
__device__ __forceinline__ unsigned inside(int width, int lane) {
  const int low = static_cast<int>(segment(width));
  return lane >= low && lane < low + width ? static_cast<unsigned>(lane) : lane_index();
}

}  // namespace strop::emu

template <class T>
__device__ __forceinline__ T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  return ::strop::emu::shuffle("__shfl_sync", mask, v,
                               ::strop::emu::segment(width) + (static_cast<unsigned>(source) & (width - 1)));
}
template <class T>
__device__ __forceinline__ T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
  return ::strop::emu::shuffle("__shfl_xor_sync", mask, v,
                               ::strop::emu::inside(width, static_cast<int>(::strop::emu::lane_index()) ^ lanes));
}
template <class T>
__device__ __forceinline__ T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return ::strop::emu::shuffle(
      "__shfl_up_sync", mask, v,
      ::strop::emu::inside(width, static_cast<int>(::strop::emu::lane_index()) - static_cast<int>(delta)));
}
template <class T>
__device__ __forceinline__ T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  return ::strop::emu::shuffle(
      "__shfl_down_sync", mask, v,
      ::strop::emu::inside(width, static_cast<int>(::strop::emu::lane_index()) + static_cast<int>(delta)));
}
// No lane can count on others being with it: it is alone.
__device__ __forceinline__ unsigned __activemask() { return 1u << ::strop::emu::lane_index(); }
__device__ __forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(
      ::strop::emu::vote("__ballot_sync", mask, ::strop::emu::Vote::kBallot, predicate != 0 ? 1 : 0));
}
__device__ __forceinline__ int __any_sync(unsigned mask, int predicate) {
  return ::strop::emu::vote("__any_sync", mask, ::strop::emu::Vote::kBallot, predicate != 0 ? 1 : 0) != 0;
}
__device__ __forceinline__ int __all_sync(unsigned mask, int predicate) {
  return ::strop::emu::vote("__all_sync", mask, ::strop::emu::Vote::kBallot, predicate != 0 ? 0 : 1) == 0;
}
template <class T>
__device__ __forceinline__ unsigned __match_any_sync(unsigned mask, T v) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return static_cast<unsigned>(::strop::emu::vote("__match_any_sync", mask, ::strop::emu::Vote::kMatch, bits));
}
template <class T>
__device__ __forceinline__ unsigned __match_all_sync(unsigned mask, T v, int* all) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  const auto m =
      static_cast<unsigned>(::strop::emu::vote("__match_all_sync", mask, ::strop::emu::Vote::kMatchAll, bits));
  *all = m != 0;
  return m;
}
#define STROP_EMU_REDUCE(name, type, how)                                                                   \
  __device__ __forceinline__ type name(unsigned mask, type v) {                                             \
    return static_cast<type>(::strop::emu::vote(#name, mask, ::strop::emu::Vote::how,                       \
                                                static_cast<std::uint64_t>(static_cast<std::int64_t>(v)))); \
  }
STROP_EMU_REDUCE(__reduce_add_sync, unsigned, kAdd)
STROP_EMU_REDUCE(__reduce_add_sync, int, kAdd)
STROP_EMU_REDUCE(__reduce_min_sync, unsigned, kMin)
STROP_EMU_REDUCE(__reduce_min_sync, int, kMinSigned)
STROP_EMU_REDUCE(__reduce_max_sync, unsigned, kMax)
STROP_EMU_REDUCE(__reduce_max_sync, int, kMaxSigned)
STROP_EMU_REDUCE(__reduce_and_sync, unsigned, kAnd)
STROP_EMU_REDUCE(__reduce_or_sync, unsigned, kOr)
STROP_EMU_REDUCE(__reduce_xor_sync, unsigned, kXor)
#undef STROP_EMU_REDUCE

// ---- Atomics: relaxed, as CUDA's are --------------------------------------------------------------------------------

namespace strop::emu {

template <class T, class F>
__device__ __forceinline__ T atomic_as(T* p, const T& operand, F) {
  // The operation travels as a pointer to a function without state, its operand beside it.
  const std::uint64_t old = atomic(
      p, sizeof(T), MemoryOrder::kRelaxed,
      [](std::uint64_t bits, const void* context) {
        T v, operand_value;
        std::memcpy(&v, &bits, sizeof(T));
        std::memcpy(&operand_value, context, sizeof(T));
        v = F{}(v, operand_value);
        std::uint64_t now = 0;
        std::memcpy(&now, &v, sizeof(T));
        return now;
      },
      &operand);
  T v;
  std::memcpy(&v, &old, sizeof(T));
  return v;
}

}  // namespace strop::emu

#define STROP_EMU_ATOMIC(name, expression)                                                     \
  template <class T>                                                                           \
  __device__ __forceinline__ T name(T* p, std::type_identity_t<T> v) {                         \
    return ::strop::emu::atomic_as<T>(p, v, [](T old, T operand) -> T { return expression; }); \
  }
STROP_EMU_ATOMIC(atomicAdd, static_cast<T>(old + operand))
STROP_EMU_ATOMIC(atomicSub, static_cast<T>(old - operand))
STROP_EMU_ATOMIC(atomicMax, old < operand ? operand : old)
STROP_EMU_ATOMIC(atomicMin, operand < old ? operand : old)
STROP_EMU_ATOMIC(atomicExch, (static_cast<void>(old), operand))
STROP_EMU_ATOMIC(atomicAnd, static_cast<T>(old& operand))
STROP_EMU_ATOMIC(atomicOr, static_cast<T>(old | operand))
STROP_EMU_ATOMIC(atomicXor, static_cast<T>(old ^ operand))
STROP_EMU_ATOMIC(atomicInc, old >= operand ? T(0) : static_cast<T>(old + 1))
STROP_EMU_ATOMIC(atomicDec, old == 0 || old > operand ? operand : static_cast<T>(old - 1))
#undef STROP_EMU_ATOMIC
template <class T>
__device__ __forceinline__ T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> desired) {
  const T both[2] = {expected, desired};
  const std::uint64_t old = ::strop::emu::atomic(
      p, sizeof(T), ::strop::emu::MemoryOrder::kRelaxed,
      [](std::uint64_t bits, const void* context) {
        const T* pair = static_cast<const T*>(context);
        std::uint64_t now = bits;
        if (std::memcmp(&bits, &pair[0], sizeof(T)) == 0) std::memcpy(&now, &pair[1], sizeof(T));
        return now;
      },
      both);
  T v;
  std::memcpy(&v, &old, sizeof(T));
  return v;
}

// ---- Loads and stores by cache --------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ T __ldg(const T* p) {
  return ::strop::emu::load<T>(p, ::strop::emu::Op::kReadOnly);
}
#define STROP_EMU_LOAD(name)                      \
  template <class T>                              \
  __device__ __forceinline__ T name(const T* p) { \
    return ::strop::emu::load<T>(p);              \
  }
STROP_EMU_LOAD(__ldcg)
STROP_EMU_LOAD(__ldca)
STROP_EMU_LOAD(__ldcs)
STROP_EMU_LOAD(__ldlu)
STROP_EMU_LOAD(__ldcv)
#undef STROP_EMU_LOAD
#define STROP_EMU_STORE(name)                                             \
  template <class T>                                                      \
  __device__ __forceinline__ void name(T* p, std::type_identity_t<T> v) { \
    ::strop::emu::store<T>(p, v);                                         \
  }
STROP_EMU_STORE(__stcg)
STROP_EMU_STORE(__stcs)
STROP_EMU_STORE(__stwb)
STROP_EMU_STORE(__stwt)
#undef STROP_EMU_STORE

__device__ __forceinline__ std::size_t __cvta_generic_to_shared(const void* p) {
  return reinterpret_cast<std::size_t>(p);
}
__device__ __forceinline__ void __nanosleep(unsigned) {}
__device__ __forceinline__ void __trap() { __builtin_trap(); }
