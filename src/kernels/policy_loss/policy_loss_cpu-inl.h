// GRPO and BNPO on the CPU, the SIMD part: losses and gradients of tokens of one row. policy_loss_cpu.cc cuts the work
// up and includes this once for each instruction set.
#if defined(STROP_POLICY_LOSS_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_POLICY_LOSS_CPU_INL_H_
#undef STROP_POLICY_LOSS_CPU_INL_H_
#else
#define STROP_POLICY_LOSS_CPU_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/policy_loss/policy_loss.h"

HWY_BEFORE_NAMESPACE();
namespace strop::policy_loss {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr std::int64_t kStagedPiece = 512;  // tokens that are copied to the stack at a time, where inputs need it

// Tokens side by side in memory, ready for SIMD. `advantages` steps by advantages_step, 0 or 1, times the lanes.
template <class E>
struct Tokens {
  const typename E::Type *policy, *old_policy, *ref;
  const float* advantages;
  std::size_t advantages_step;
  const std::uint8_t* mask;
  typename E::Type* grad;
};

// Sum of the losses of n valid tokens, and the gradients; n a multiple of the lanes.
template <class E, bool kGrad, bool kBeta>
HWY_INLINE FloatVec whole_vectors(const Tokens<E>& in, std::size_t n, const Problem& p, float weight, FloatVec sum) {
  const E e;
  const Float f;
  const auto low = hn::Set(f, p.clip_low), high = hn::Set(f, p.clip_high);
  const auto beta = hn::Set(f, p.beta), scale = hn::Set(f, -weight), half = hn::Set(f, 0.5F);
  for (std::size_t i = 0; i < n; i += hn::Lanes(f)) {
    const auto bytes = hn::LoadU(hn::Rebind<std::uint8_t, Float>(), in.mask + i);
    const auto valid = hn::RebindMask(f, hn::Ne(hn::PromoteTo(Int(), bytes), hn::Zero(Int())));
    const auto policy = load(e, in.policy + i);
    const auto advantage = hn::LoadU(f, in.advantages + i * in.advantages_step);
    const auto r = exp(hn::Sub(policy, load(e, in.old_policy + i)));
    const auto clipped = at_most(at_least(r, low), high);
    const auto plain_term = hn::Mul(r, advantage), clipped_term = hn::Mul(clipped, advantage);
    // NaN fails both comparisons and so stays in loss and gradient.
    const auto above = hn::Gt(plain_term, clipped_term);
    auto gain = hn::IfThenElse(above, clipped_term, plain_term);  // minus the loss
    auto slope = hn::IfThenZeroElse(above, plain_term);           // minus its derivative
    if constexpr (kGrad) {
      const auto shared = hn::And(hn::Eq(plain_term, clipped_term), hn::Ne(r, clipped));
      slope = hn::IfThenElse(shared, hn::Mul(half, slope), slope);
    }
    if constexpr (kBeta) {
      const auto excess = expm1(hn::Sub(load(e, in.ref + i), policy));
      gain = hn::NegMulAdd(beta, excess.beyond_linear, gain);
      slope = hn::MulAdd(beta, excess.value, slope);
    }
    sum = hn::Sub(sum, hn::IfThenElseZero(valid, gain));
    if constexpr (kGrad) store(e, hn::IfThenElseZero(valid, hn::Mul(scale, slope)), in.grad + i);
  }
  return sum;
}

// The same for any n. The last tokens go through a vector's worth of memory whose mask is 0 beyond them.
template <class E, bool kGrad, bool kBeta>
double all_tokens(const Tokens<E>& in, std::size_t n, const Problem& p, float weight) {
  using T = typename E::Type;
  constexpr std::size_t kLanes = hn::MaxLanes(Float());
  const std::size_t lanes = hn::Lanes(Float());
  const std::size_t whole = n - n % lanes, rest = n - whole;
  FloatVec sum = whole_vectors<E, kGrad, kBeta>(in, whole, p, weight, hn::Zero(Float()));
  if (rest != 0) {
    T policy[kLanes] = {}, old_policy[kLanes] = {}, ref[kLanes] = {}, grad[kLanes];
    float advantages[kLanes] = {};
    std::uint8_t mask[kLanes] = {};
    std::memcpy(policy, in.policy + whole, rest * sizeof(T));
    std::memcpy(old_policy, in.old_policy + whole, rest * sizeof(T));
    if (kBeta) std::memcpy(ref, in.ref + whole, rest * sizeof(T));
    std::memcpy(advantages, in.advantages + whole * in.advantages_step, rest * sizeof(float));
    std::memcpy(mask, in.mask + whole, rest);
    const Tokens<E> last{policy, old_policy, ref, advantages, in.advantages_step, mask, grad};
    sum = whole_vectors<E, kGrad, kBeta>(last, lanes, p, weight, sum);
    if (kGrad) std::memcpy(in.grad + whole, grad, rest * sizeof(T));
  }
  return sum_lanes(sum);
}

template <class E>
double sum_tokens(const Tokens<E>& in, std::size_t n, const Problem& p, float weight) {
  if (p.grad != nullptr) {
    return p.beta != 0 ? all_tokens<E, true, true>(in, n, p, weight) : all_tokens<E, true, false>(in, n, p, weight);
  }
  return p.beta != 0 ? all_tokens<E, false, true>(in, n, p, weight) : all_tokens<E, false, false>(in, n, p, weight);
}

// Buffers for what cannot be read in place.
struct Stage {
  float policy[kStagedPiece], old_policy[kStagedPiece], ref[kStagedPiece], advantages[kStagedPiece];
  float grad[kStagedPiece];
};

// Sum of the losses of tokens [first, end) of a row, and their gradients. With kStaged, E is F32 and the logprobs and
// the gradient go through the stage; without, they are of dtype E and lie side by side.
template <class E, bool kStaged>
double sum_row(const Problem& p, std::int64_t b, std::int64_t first, std::int64_t end, float weight) {
  Stage stage_;
  std::uint8_t mask[kStagedPiece];
  float advantage[hn::MaxLanes(Float())];
  const bool token_advantages = p.advantages.stride_t != 0;
  const bool staged_advantages = p.advantages.stride_t != 1 || p.advantages.dtype != DType::kFloat32;
  const bool staged_mask = p.mask.stride_t != 1 || dtype_size(p.mask.dtype) != 1;
  if (!token_advantages) {
    std::fill_n(advantage, hn::MaxLanes(Float()),
                static_cast<float>(load_element(p.advantages.data, p.advantages.dtype, b * p.advantages.stride_b)));
  }
  const bool small_pieces = kStaged || staged_mask || (token_advantages && staged_advantages);
  const auto chain = static_cast<std::int64_t>(max_chain());
  const std::int64_t piece = small_pieces ? std::min(kStagedPiece, chain) : chain;
  const auto offset = [b](const Matrix& m, std::int64_t t) { return b * m.stride_b + t * m.stride_t; };
  double sum = 0;
  for (std::int64_t t = first; t < end; t += piece) {
    const auto n = static_cast<std::size_t>(std::min(piece, end - t));
    const auto input = [&](const Matrix& m, float* to) -> const typename E::Type* {
      if (m.data == nullptr) return nullptr;
      if constexpr (kStaged) {
        if (m.stride_t != 1 || m.dtype != DType::kFloat32) {
          stage(m.data, m.dtype, offset(m, t), m.stride_t, n, to);
          return to;
        }
      }
      return element<E>(m.data, offset(m, t));
    };
    Tokens<E> in{};
    in.policy = input(p.policy, stage_.policy);
    in.old_policy = input(p.old_policy, stage_.old_policy);
    if (p.beta != 0) in.ref = input(p.ref, stage_.ref);
    in.advantages = advantage;
    in.advantages_step = token_advantages ? 1 : 0;
    if (token_advantages && staged_advantages) {
      stage(p.advantages.data, p.advantages.dtype, offset(p.advantages, t), p.advantages.stride_t, n,
            stage_.advantages);
      in.advantages = stage_.advantages;
    } else if (token_advantages) {
      in.advantages = element<F32>(p.advantages.data, offset(p.advantages, t));
    }
    in.mask = static_cast<const std::uint8_t*>(p.mask.data) + offset(p.mask, t);
    if (staged_mask) {
      stage_mask(p.mask.data, p.mask.dtype, offset(p.mask, t), p.mask.stride_t, n, mask);
      in.mask = mask;
    }
    if constexpr (kStaged) {
      in.grad = stage_.grad;
    } else if (p.grad != nullptr) {
      in.grad = element<E>(p.grad, b * p.tokens + t);
    }
    sum += sum_tokens(in, n, p, weight);
    if (kStaged && p.grad != nullptr) unstage(stage_.grad, n, p.grad, p.policy.dtype, b * p.tokens + t, 1);
  }
  return sum;
}

// Valid tokens among [first, end) of a row.
inline std::int64_t count_valid(const Problem& p, std::int64_t b, std::int64_t first, std::int64_t end) {
  const std::int64_t row = b * p.mask.stride_b;
  if (p.mask.stride_t == 1 && dtype_size(p.mask.dtype) == 1) {
    return count_nonzero(static_cast<const std::uint8_t*>(p.mask.data) + row + first,
                         static_cast<std::size_t>(end - first));
  }
  std::uint8_t bytes[kStagedPiece];
  std::int64_t count = 0;
  for (std::int64_t t = first; t < end; t += kStagedPiece) {
    const auto n = static_cast<std::size_t>(std::min(kStagedPiece, end - t));
    stage_mask(p.mask.data, p.mask.dtype, row + t * p.mask.stride_t, p.mask.stride_t, n, bytes);
    count += count_nonzero(bytes, n);
  }
  return count;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::policy_loss
HWY_AFTER_NAMESPACE();

#endif  // STROP_POLICY_LOSS_CPU_INL_H_
