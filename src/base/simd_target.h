// Which of the compiled instruction sets a call runs on. Include it before Highway in files that use foreach_target.h.
//
// Highway compiles a file once for each set. The choice is made here and not by its own run-time part, so that the
// library needs Highway's headers only, and so that tests can ask for each set.
#pragma once

#include <cstdint>

// Sets that no machine of interest would choose: SSSE3 without SSE4, and AVX-512 beyond what the kernels use.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#endif

namespace strop {

enum class SimdTarget : std::int8_t { kBaseline, kSse4, kAvx2, kAvx512 };

// The best set of this machine, or the one that STROP_SIMD (baseline, sse4, avx2 or avx512) limits it to, or the one
// that was set last.
SimdTarget simd_target();
// "baseline", "sse4", "avx2", "avx512".
const char* simd_target_name(SimdTarget target);
// For tests: runs calls from now on with `target`, at most the machine's best. Returns what is in force.
SimdTarget set_simd_target(SimdTarget target);

namespace detail {

// Of one function compiled for several sets (null where it was not), the one to call.
template <class F>
F choose(F avx512, F avx2, F sse4, F baseline) {
  const SimdTarget target = simd_target();
  if (target >= SimdTarget::kAvx512 && avx512 != nullptr) return avx512;
  if (target >= SimdTarget::kAvx2 && avx2 != nullptr) return avx2;
  if (target >= SimdTarget::kSse4 && sse4 != nullptr) return sse4;
  return baseline;
}

}  // namespace detail
}  // namespace strop

// The version of a function of namespace HWY_NAMESPACE that this machine runs. On other machines than x86 it is the
// one that the compiler was told to make.
#if defined(__x86_64__)
#define STROP_SIMD(FUNCTION)                                         \
  ::strop::detail::choose<decltype(&HWY_STATIC_DISPATCH(FUNCTION))>( \
      HWY_CHOOSE_AVX3(FUNCTION), HWY_CHOOSE_AVX2(FUNCTION), HWY_CHOOSE_SSE4(FUNCTION), HWY_CHOOSE_FALLBACK(FUNCTION))
#else
#define STROP_SIMD(FUNCTION) (&HWY_STATIC_DISPATCH(FUNCTION))
#endif
