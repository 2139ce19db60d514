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

// loss and d loss / d policy of one valid token, before the mean. NaN passes through every comparison.
__device__ __forceinline__ float token_loss(float policy, float old, float ref, float a, const Problem& p,
                                            float& grad) {
  const float r = expf(policy - old);
  const float clipped = ptx::min_nan(ptx::max_nan(r, p.clip_low), p.clip_high);
  const float x = r * a, y = clipped * a;
  float loss = -ptx::min_nan(x, y);
  // Where they tie outside the clip range, PyTorch's minimum gives each half, and clip passes none on.
  grad = !(x >= y) || clipped == r ? -x : x == y ? -0.5f * x : 0.f;
  if (p.beta != 0.f) {
    const float d = ref - policy, e = expm1f(d);  // exp(d) - 1 - d would cancel
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

  // The sum of the losses of this thread's valid tokens; stores the gradients times `weight`.
  template <bool kStore>
  __device__ __forceinline__ float compute(const Args& a, const Raw& raw, unsigned valid, float weight) const {
    const int bytes = float_bytes(a.p.policy.dtype), group = a.tuning.group;
    char* p = static_cast<char*>(a.p.grad) + (b * a.p.tokens + t) * bytes;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kTokens; ++k, p += group * bytes) {
      float grad;
      const float loss =
          token_loss(to_float(raw.policy[k], a.p.policy.dtype), to_float(raw.old[k], a.p.old_policy.dtype),
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

}  // namespace strop::policy_loss
