// LayerNorm and RMSNorm on the CPU: how the work is cut up. The SIMD part is in norm_cpu-inl.h, the contract and the
// maths in norm.h.
//
// A row belongs to one thread, and nothing is summed over rows, so results are bitwise the same whatever the number of
// threads. Rows go in chunks, so that weight and bias become fp32 once a chunk.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include "kernels/norm/norm_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::norm {
namespace HWY_NAMESPACE {

void norm_rows(const Problem& p, std::int64_t first, std::int64_t end) { norm_rows_of(p, first, end); }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::norm
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::norm {

Status run_cpu(const Problem& p) {
  const auto rows = STROP_SIMD(norm_rows);
  for_each_range(p.rows, p.n, [&](std::int64_t first, std::int64_t end) { rows(p, first, end); });
  return {};
}

}  // namespace strop::norm
#endif  // HWY_ONCE
