#include "base/simd_target.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace strop {
namespace {

constexpr const char* kNames[] = {"baseline", "sse4", "avx2", "avx512"};

SimdTarget machine() {
#if defined(__x86_64__)
  // What Highway 1.0.3 compiles for with its SSE4, AVX2 and AVX3 targets.
  __builtin_cpu_init();
  const bool sse4 = __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
                    __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") &&
                    __builtin_cpu_supports("aes");
  const bool avx2 = sse4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx512) return SimdTarget::kAvx512;
  if (avx2) return SimdTarget::kAvx2;
  if (sse4) return SimdTarget::kSse4;
#endif
  return SimdTarget::kBaseline;
}

SimdTarget from_environment() {
  const char* text = std::getenv("STROP_SIMD");
  for (int i = 0; text != nullptr && i < 4; ++i) {
    if (std::strcmp(text, kNames[i]) == 0) return std::min(machine(), static_cast<SimdTarget>(i));
  }
  return machine();
}

std::atomic<SimdTarget>& current() {
  static std::atomic<SimdTarget> target{from_environment()};
  return target;
}

}  // namespace

SimdTarget simd_target() { return current().load(std::memory_order_relaxed); }

const char* simd_target_name(SimdTarget target) { return kNames[static_cast<int>(target)]; }

SimdTarget set_simd_target(SimdTarget target) {
  current().store(std::min(machine(), target), std::memory_order_relaxed);
  return simd_target();
}

}  // namespace strop
