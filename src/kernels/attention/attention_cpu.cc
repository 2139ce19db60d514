// Attention on the CPU: how the work is cut up. The SIMD part is in attention_cpu-inl.h, the contract and the maths in
// attention.h.
//
// A tile of queries belongs to one thread, with all the heads that share its keys, and tiles share nothing: results are
// bitwise the same whatever the number of threads and whatever shares the batch.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include "kernels/attention/attention_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::attn {
namespace HWY_NAMESPACE {

void attend(const Problem& p, std::int64_t b, std::int64_t kv, std::int64_t first, int rows, CpuScratch& scratch) {
  attend_tile(p, b, kv, first, rows, scratch);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::attn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstring>

#include "base/chunks.h"

namespace strop::attn {
namespace {

void clear_row(const Problem& p, std::int64_t row) {
  const std::int64_t bytes = p.dtype == DType::kFloat32 ? 4 : 2;
  for (std::int64_t h = 0; h < p.heads; ++h) {
    for (int c = 0; c < p.d; ++c) {
      const std::int64_t at = row * p.out.stride_l + h * p.out.stride_h + c * p.out.stride_d;
      std::memset(static_cast<char*>(p.out.data) + at * bytes, 0, static_cast<std::size_t>(bytes));
    }
  }
}

}  // namespace

Status run_cpu(const Problem& p) {
  constexpr std::int64_t kParallelProducts = 1 << 16;  // below, waking threads takes longer
  const auto tile = STROP_SIMD(attend);
  const std::int64_t tiles = (p.max_q * p.group() + kCpuRows - 1) / kCpuRows;
  const std::int64_t products = p.batch * p.heads * p.max_q * p.max_k * p.d;
  for_each_chunk(p.batch * p.kv_heads * tiles, products > kParallelProducts, [&](std::int64_t unit) {
    const std::int64_t b = unit / tiles / p.kv_heads, kv = unit / tiles % p.kv_heads;
    const std::int64_t first = unit % tiles * kCpuRows, rows = sequence_of(p, b).q * p.group() - first;
    static thread_local CpuScratch scratch;
    if (rows > 0) tile(p, b, kv, first, static_cast<int>(std::min<std::int64_t>(rows, kCpuRows)), scratch);
  });
  if (p.packed) {
    for (std::int64_t row = 0; row < p.cu_q.at(0); ++row) clear_row(p, row);
    for (std::int64_t row = p.cu_q.at(p.batch); row < p.total_q; ++row) clear_row(p, row);
  }
  return {};
}

}  // namespace strop::attn
#endif  // HWY_ONCE
