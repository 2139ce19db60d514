// One tile of a policy loss: up to 8 tokens a thread of one row, loaded, computed and stored.
#pragma once

#include "base/convert.cuh"
#include "base/strided_load.cuh"
#include "kernels/policy_loss/policy_loss_tuning.h"

namespace strop::policy_loss {

struct Args {
  Problem p;
  Tuning tuning;
  MaskFormat mask;
  float segment_scale;  // 1 / B, or 1
};

struct Tokens {  // of one thread in one tile
  float loss = 0;
  std::uint32_t count = 0;
  float grad[kTokensPerThread];
};

// loss and d loss / d policy of one valid token, before the mean. Comparisons are written so that NaN passes through.
__device__ __forceinline__ float token_loss(float policy, float old, float ref, float a, const Problem& p,
                                            float& grad) {
  const float r = expf(policy - old);
  const float clipped = r < p.clip_low ? p.clip_low : (r > p.clip_high ? p.clip_high : r);
  const float x = r * a, y = clipped * a;
  float loss = -(y < x || y != y ? y : x);
  grad = x > y ? 0.f : -x;
  if (x == y && clipped != r) grad *= 0.5f;  // a tie outside the clip range: PyTorch's minimum shares it
  if (p.beta != 0.f) {
    const float d = ref - policy, e = expm1f(d);  // exp(d) - 1 - d would cancel
    loss += p.beta * (e - d);
    grad -= p.beta * e;
  }
  return loss;
}

// Element t of row b of a matrix, `bytes` each.
__device__ __forceinline__ const char* element(const Matrix& m, std::int64_t b, std::int64_t t, int bytes) {
  return static_cast<const char*>(m.data) + (b * m.stride_b + t * m.stride_t) * bytes;
}

// One group's view of the tile `chunk` of row `b`.
struct Tile {
  std::int64_t b, t;  // this thread's first token
  unsigned inside;    // bit k: token t + k * group exists

  __device__ __forceinline__ Tile(const Args& a, std::int64_t row, std::int64_t chunk, int rank) : b(row) {
    const int group = a.tuning.group;
    t = chunk * group * kTokensPerThread + rank;
    inside = 0;
#pragma unroll
    for (int k = 0; k < kTokensPerThread; ++k) inside |= static_cast<unsigned>(t + k * group < a.p.tokens) << k;
  }

  __device__ __forceinline__ unsigned valid(const Args& a) const {
    return load_strided_mask<kTokensPerThread>(element(a.p.mask, b, t, a.mask.bytes),
                                               a.p.mask.stride_t * a.tuning.group * a.mask.bytes, a.mask, inside);
  }

  __device__ __forceinline__ void load(const Args& a, const Matrix& m, std::uint32_t (&raw)[kTokensPerThread]) const {
    const int bytes = float_bytes(m.dtype);
    load_strided(raw, element(m, b, t, bytes), m.stride_t * a.tuning.group * bytes, bytes, inside);
  }

  // Adds this thread's losses and valid tokens to `out`, and leaves the unscaled gradients in out.grad.
  __device__ __forceinline__ void compute(const Args& a, Tokens& out) const {
    std::uint32_t policy[kTokensPerThread], old[kTokensPerThread], ref[kTokensPerThread] = {}, adv[kTokensPerThread];
    load(a, a.p.policy, policy);
    load(a, a.p.old_policy, old);
    if (a.p.beta != 0.f) load(a, a.p.ref, ref);
    load(a, a.p.advantages, adv);
    const unsigned is_valid = valid(a);
#pragma unroll
    for (int k = 0; k < kTokensPerThread; ++k) {
      float grad;
      const float loss = token_loss(to_float(policy[k], a.p.policy.dtype), to_float(old[k], a.p.old_policy.dtype),
                                    to_float(ref[k], a.p.ref.dtype), to_float(adv[k], a.p.advantages.dtype), a.p, grad);
      const bool v = is_valid >> k & 1;
      out.loss += v ? loss : 0.f;
      out.grad[k] = v ? grad : 0.f;
    }
    out.count += __popc(is_valid);
  }

  __device__ __forceinline__ void store(const Args& a, const Tokens& tokens, float weight) const {
    const int bytes = float_bytes(a.p.policy.dtype), group = a.tuning.group;
    char* p = static_cast<char*>(a.p.grad) + (b * a.p.tokens + t) * bytes;
#pragma unroll
    for (int k = 0; k < kTokensPerThread; ++k, p += group * bytes) {
      if (!(inside >> k & 1)) continue;
      const std::uint32_t bits = from_float(tokens.grad[k] * weight, a.p.policy.dtype);
      if (bytes == 4) {
        *reinterpret_cast<std::uint32_t*>(p) = bits;
      } else {
        *reinterpret_cast<std::uint16_t*>(p) = static_cast<std::uint16_t>(bits);
      }
    }
  }
};

}  // namespace strop::policy_loss
