// Linear layers on the CPU: how the work is cut up. The SIMD part is in linear_cpu-inl.h, the contract and the maths in
// linear.h.
//
// A tile of results belongs to one thread with all of K, and tiles share nothing: results are bitwise the same whatever
// the number of threads and, above and below kFewCpuRows, whatever shares the batch.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/linear/linear_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include "kernels/linear/linear_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::lin {
namespace HWY_NAMESPACE {

void multiply(const Problem& p, std::int64_t first, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  static thread_local Scratch scratch;
  multiply_tile(p, first, rows, column, columns, scratch);
}

void finish(const Epilogue& e, const Matrix (&y)[2], std::int64_t first, std::int64_t end) {
  static thread_local EpilogueLine line;
  for (std::int64_t row = first; row < end; ++row) {
    for (std::int64_t column = 0; column < e.n; column += kLine)
      epilogue_line(e, y, row, column, static_cast<std::size_t>(std::min(kLine, e.n - column)), line);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::lin
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::lin {

Status run_cpu(const Problem& p) {
  constexpr std::int64_t kParallelProducts = 1 << 16;  // below, waking threads takes longer
  const auto tile = STROP_SIMD(multiply);
  const std::int64_t m = p.epilogue.m, n = p.epilogue.n;
  const std::int64_t wide = m <= kFewCpuRows ? kFewCpuColumns : kCpuColumns, tiles = ceil_div(n, wide);
  const std::int64_t rows = ceil_div(m, ceil_div(m, kCpuRows));  // of tiles that are all as high
  for_each_chunk(tiles * ceil_div(m, rows), m * n * p.k > kParallelProducts, [&](std::int64_t unit) {
    const std::int64_t first = unit / tiles * rows, column = unit % tiles * wide;
    tile(p, first, std::min(rows, m - first), column, std::min(wide, n - column));
  });
  return {};
}

Status run_epilogue_cpu(const Epilogue& e, const Matrix (&y)[2]) {
  const auto rows = STROP_SIMD(finish);
  for_each_range(e.m, e.n, [&](std::int64_t begin, std::int64_t end) { rows(e, y, begin, end); });
  return {};
}

}  // namespace strop::lin
#endif  // HWY_ONCE
