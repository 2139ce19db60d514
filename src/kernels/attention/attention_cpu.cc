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
#include "base/chunks.h"

namespace strop::attn {

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
  return {};
}

}  // namespace strop::attn
#endif  // HWY_ONCE
