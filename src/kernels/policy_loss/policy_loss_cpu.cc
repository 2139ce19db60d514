// GRPO and BNPO on the CPU: how the work is cut up. The SIMD part is in policy_loss_cpu-inl.h, the contract and the
// maths in policy_loss.h.
//
// A chunk is some rows or, where rows are few and long, a part of one. The number of valid tokens is in every weight,
// so masks are counted first: a byte a token, which then lies in cache. Chunks depend on the shape alone, and each has
// a slot for its sum, so results are bitwise the same whatever the number of threads.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/policy_loss/policy_loss_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include "kernels/policy_loss/policy_loss_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::policy_loss {
namespace HWY_NAMESPACE {

std::int64_t count_span(const Problem& p, std::int64_t b, std::int64_t first, std::int64_t end) {
  return count_valid(p, b, first, end);
}

// Sum of the losses of tokens [first, end) of row b, not weighted; gradients, weighted.
double sum_span(const Problem& p, std::int64_t b, std::int64_t first, std::int64_t end, float weight) {
  const auto in_place = [&](const Matrix& m) { return m.stride_t == 1 && m.dtype == p.policy.dtype; };
  if (!in_place(p.policy) || !in_place(p.old_policy) || (p.beta != 0 && !in_place(p.ref))) {
    return sum_row<F32, true>(p, b, first, end, weight);
  }
  if (p.policy.dtype == DType::kFloat32) return sum_row<F32, false>(p, b, first, end, weight);
  if (p.policy.dtype == DType::kFloat16) return sum_row<F16, false>(p, b, first, end, weight);
  return sum_row<BF16, false>(p, b, first, end, weight);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::policy_loss
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::policy_loss {
namespace {

constexpr std::int64_t kMaxChunks = 256;
constexpr std::int64_t kPart = 8192;  // tokens of a chunk that is a part of a row
// Below these, some 15 us, waking threads costs more than they save.
constexpr std::int64_t kParallelTokens = 24576;
constexpr std::int64_t kParallelMaskBytes = 1 << 19;

struct Plan {
  std::int64_t parts, groups;  // chunks a row, and row groups

  explicit Plan(const Problem& p)
      : parts(p.batch * 4 <= kMaxChunks ? std::clamp<std::int64_t>(p.tokens / kPart, 1, kMaxChunks / p.batch) : 1),
        groups(std::min(p.batch, kMaxChunks)) {}
  std::int64_t chunks() const { return parts * groups; }
  // Calls f(row, first token, end token) for the rows of a chunk.
  template <class F>
  void visit(const Problem& p, std::int64_t chunk, F&& f) const {
    const std::int64_t group = chunk / parts, part = chunk % parts;
    const std::int64_t first = p.tokens * part / parts, end = p.tokens * (part + 1) / parts;
    for (std::int64_t b = p.batch * group / groups; b < p.batch * (group + 1) / groups; ++b) f(b, first, end);
  }
};

double inverse(std::int64_t count) { return 1.0 / static_cast<double>(std::max<std::int64_t>(1, count)); }

}  // namespace

Status run_cpu(const Problem& p) {
  if (p.batch == 0 || p.tokens == 0) {
    *p.loss = 0;
    return {};
  }
  const auto count = STROP_SIMD(count_span);
  const auto sum = STROP_SIMD(sum_span);
  const Plan plan(p);
  const std::int64_t chunks = plan.chunks();
  const bool parallel = p.batch * p.tokens > kParallelTokens;
  const bool by_sequence = p.reduction == Reduction::kSequenceMean;

  // A weight for each group of rows, where it is not the chunk's own business: the whole batch, or a row cut in parts.
  std::int64_t counts[kMaxChunks] = {};
  double weights[kMaxChunks];
  if (!by_sequence || plan.parts > 1) {
    const bool parallel_count = p.batch * p.tokens * dtype_size(p.mask.dtype) > kParallelMaskBytes;
    for_each_chunk(chunks, parallel_count, [&](std::int64_t k) {
      plan.visit(p, k,
                 [&](std::int64_t b, std::int64_t first, std::int64_t end) { counts[k] += count(p, b, first, end); });
    });
    const std::int64_t segment = by_sequence ? plan.parts : chunks;
    for (std::int64_t k = 0; k < chunks; k += segment) {
      std::int64_t n = 0;
      for (std::int64_t i = k; i < k + segment; ++i) n += counts[i];
      std::fill(weights + k, weights + k + segment, inverse(n));
    }
  }

  const double per_segment = by_sequence ? 1.0 / static_cast<double>(p.batch) : 1.0;
  double sums[kMaxChunks];
  for_each_chunk(chunks, parallel, [&](std::int64_t k) {
    double chunk_sum = 0;
    plan.visit(p, k, [&](std::int64_t b, std::int64_t first, std::int64_t end) {
      const bool own_weight = by_sequence && plan.parts == 1;
      const double weight = per_segment * (own_weight ? inverse(count(p, b, first, end)) : weights[k]);
      chunk_sum += weight * sum(p, b, first, end, static_cast<float>(weight));
    });
    sums[k] = chunk_sum;
  });
  double loss = 0;
  for (std::int64_t k = 0; k < chunks; ++k) loss += sums[k];
  *p.loss = static_cast<float>(loss);
  return {};
}

}  // namespace strop::policy_loss
#endif  // HWY_ONCE
