// The mathematics of a token, and one tile of a policy loss: up to 8 tokens a thread of one row, loaded, computed and
// stored, element by element.
#pragma once

#include "base/convert.cuh"
#include "base/ptx/math.cuh"
#include "base/strided_load.cuh"
#include "kernels/policy_loss/policy_loss_tuning.h"

namespace strop::policy_loss {

struct Args {
  Problem p;
  Tuning tuning;
  MaskFormat mask;
  float segment_scale;  // 1 / B, or 1
  std::uint64_t tag;    // of the launch's messages
};

// exp(x): 2^(x log2(e)) times what the product lost to rounding. Fewer instructions than expf's.
__device__ __forceinline__ float exp_of(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
  const float y = x * kLog2E;
  const float lost = fminf(fmaf(x, kLog2E, -y), 1.f);  // not NaN where x is infinite
  return ptx::exp2_approx(y) * fmaf(lost, kLn2, 1.f);
}

// exp(x) - 1 without cancellation: x = j ln 2 + f, 2^j (exp(f) - 1) + (2^j - 1). Half of expm1f's instructions, no
// branch. The polynomial is expm1f's: minimax on |f| <= ln(2) / 2.
__device__ __forceinline__ float expm1_of(float x) {
  constexpr float kLog2E = 1.44269504f, kRounder = 12582912.f;  // 1.5 * 2^23: a sum's last bit is a unit
  x = ptx::max_nan(x, -100.f);                                  // -1 there, to the last bit
  const float j = fminf(fmaf(x, kLog2E, kRounder) - kRounder, 127.f);
  float f = fmaf(j, -0.693145752f, x);
  f = fmaf(j, -1.42860677e-6f, f);
  float q = fmaf(1.38795362e-3f, f, 8.38241261e-3f);
  q = fmaf(q, f, 4.16678302e-2f);
  q = fmaf(q, f, 0.166663975f);
  q = fmaf(q, f, 0.49999994f);
  q = fmaf(q * f, f, f);
  const float s = ptx::exp2_approx(j);
  return fmaf(q, s, s - 1.f);
}

// loss and d loss / d policy of one valid token, before the mean. NaN passes through every comparison.
template <bool kRef>
__device__ __forceinline__ float token_loss(float policy, float old, float ref, float a, const Problem& p,
                                            float& grad) {
  const float r = exp_of(policy - old);
  const float clipped = ptx::min_nan(ptx::max_nan(r, p.clip_low), p.clip_high);
  const float x = r * a, y = clipped * a;
  float loss = -ptx::min_nan(x, y);
  // Where they tie outside the clip range, PyTorch's minimum gives each half, and clip passes none on.
  grad = !(x >= y) || clipped == r ? -x : x == y ? -0.5f * x : 0.f;
  if (kRef) {
    const float d = ref - policy, e = expm1_of(d);  // exp(d) - 1 - d would cancel
    loss += p.beta * (e - d);
    grad -= p.beta * e;
  }
  return loss;
}

// Element t of row b of a matrix, `bytes` each.
__device__ __forceinline__ char* element(const Matrix& m, std::int64_t b, std::int64_t t, int bytes) {
  return static_cast<char*>(const_cast<void*>(m.data)) + (b * m.stride_b + t * m.stride_t) * bytes;
}

// Any strides and dtypes: thread `rank` of the group has tokens rank, rank + group, … of the tile.
struct StridedTile {
  static constexpr int kTokens = 8;
  std::int64_t b, t;  // this thread's first token
  unsigned inside;    // bit k: token t + k * group exists

  __device__ __forceinline__ StridedTile(const Args& a, std::int64_t row, std::int64_t chunk, int rank) : b(row) {
    const int group = a.tuning.group;
    t = chunk * group * kTokens + rank;
    inside = 0;
#pragma unroll
    for (int k = 0; k < kTokens; ++k) inside |= static_cast<unsigned>(t + k * group < a.p.tokens) << k;
  }

  struct Mask {
    unsigned bits;  // bit k: token k of this thread is valid
  };
  __device__ __forceinline__ void load(const Args& a, Mask& mask) const {
    mask.bits = load_strided_mask<kTokens>(element(a.p.mask, b, t, a.mask.bytes),
                                           a.p.mask.stride_t * a.tuning.group * a.mask.bytes, a.mask, inside);
  }
  __device__ __forceinline__ unsigned valid(const Args&, const Mask& mask) const { return mask.bits; }

  struct Raw {
    std::uint32_t policy[kTokens], old[kTokens], ref[kTokens], advantage[kTokens];
  };

  // Starts all loads but the mask's.
  __device__ __forceinline__ void load(const Args& a, Raw& raw) const {
    load(a, a.p.policy, raw.policy);
    load(a, a.p.old_policy, raw.old);
    if (a.p.beta != 0.f) load(a, a.p.ref, raw.ref);
    load(a, a.p.advantages, raw.advantage);
  }

  // The sum of the losses of this thread's valid tokens; stores the gradients times `weight`. kRef: beta is not 0.
  template <bool kStore, bool kRef>
  __device__ __forceinline__ float compute(const Args& a, const Raw& raw, unsigned valid, float weight) const {
    const int bytes = float_bytes(a.p.policy.dtype), group = a.tuning.group;
    char* p = static_cast<char*>(a.p.grad) + (b * a.p.tokens + t) * bytes;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kTokens; ++k, p += group * bytes) {
      float grad;
      const float loss = token_loss<kRef>(
          to_float(raw.policy[k], a.p.policy.dtype), to_float(raw.old[k], a.p.old_policy.dtype),
          to_float(raw.ref[k], a.p.ref.dtype), to_float(raw.advantage[k], a.p.advantages.dtype), a.p, grad);
      const bool v = valid >> k & 1;
      sum += v ? loss : 0.f;
      if (!kStore || !(inside >> k & 1)) continue;
      const std::uint32_t bits = from_float(v ? grad * weight : 0.f, a.p.policy.dtype);
      if (bytes == 4) {
        ptx::store_streaming_u32(p, bits);
      } else {
        ptx::store_streaming_u16(p, bits);
      }
    }
    return sum;
  }

 private:
  __device__ __forceinline__ void load(const Args& a, const Matrix& m, std::uint32_t (&raw)[kTokens]) const {
    const int bytes = float_bytes(m.dtype);
    load_strided(raw, element(m, b, t, bytes), m.stride_t * a.tuning.group * bytes, bytes, inside);
  }
};

// tile.compute, beta being looked at once, not a token.
template <bool kStore, class Tile>
__device__ __forceinline__ float compute(const Args& a, const Tile& tile, const typename Tile::Raw& raw, unsigned valid,
                                         float weight) {
  return a.p.beta != 0.f ? tile.template compute<kStore, true>(a, raw, valid, weight)
                         : tile.template compute<kStore, false>(a, raw, valid, weight);
}

}  // namespace strop::policy_loss
