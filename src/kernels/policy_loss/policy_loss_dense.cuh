// A tile of a policy loss in 16-byte vectors, for tensors as they usually are.
#pragma once

#include "base/row_vector.cuh"
#include "kernels/policy_loss/policy_loss_tile.cuh"

namespace strop::policy_loss {

inline constexpr int kVectorElements = 4;

// Of tokens t, t + 1, … those among the row's `tokens`: bytes of the mask, or a bit for each that is there.
__device__ __noinline__ std::uint32_t load_mask_cut(const char* row, std::int64_t t, std::int64_t tokens) {
  std::uint32_t word = 0;
#pragma unroll
  for (int e = 0; e < kVectorElements; ++e) {
    if (t + e >= 0 && t + e < tokens) word |= static_cast<std::uint32_t>(row[t + e] != 0) << 8 * e;
  }
  return word;
}
__device__ __noinline__ unsigned inside_bits(std::int64_t t, std::int64_t tokens) {
  unsigned bits = 0;
#pragma unroll
  for (int e = 0; e < kVectorElements; ++e) bits |= static_cast<unsigned>(t + e >= 0 && t + e < tokens) << e;
  return bits;
}

// Dense rows of kBytes logprobs with byte masks and advantages of shape (B,), the rows' vectors starting at the same
// tokens in every tensor (is_dense): thread `rank` of the group has vectors rank, rank + group, … of the tile.
template <int kBytes, int kVectors>
struct DenseTile {
  static constexpr int kE = kVectorElements, kTokens = kVectors * kE;
  using V = Vector<kE, kBytes>;
  std::int64_t b;
  int v;    // this thread's first vector
  Row row;  // of policy_logprobs; the others' are cut alike

  __device__ __forceinline__ DenseTile(const Args& a, std::int64_t row_index, std::int64_t chunk, int rank)
      : b(row_index), v(static_cast<int>(chunk) * a.tuning.group * kVectors + rank) {
    row = Row::make<kE>(element(a.p.policy, b, 0, kBytes), kBytes, a.p.tokens, kBytes, true);
  }

  // Where vector j of this thread lies: in the row whole, cut by one of its ends, or (neither) outside.
  __device__ __forceinline__ bool is_full(const Args& a, int j) const {
    const int i = v + j * a.tuning.group;
    return i >= row.full_begin && i < row.full_end;
  }
  __device__ __forceinline__ bool is_cut(const Args& a, int j) const {
    return !is_full(a, j) && token(a, j, 0) < row.elements;
  }
  // Element e of vector j of this thread, and whether it is in the row.
  __device__ __forceinline__ std::int64_t token(const Args& a, int j, int e) const {
    return row.first_of<kE>(v + j * a.tuning.group) + e;
  }
  // Whether vector j can be loaded whole: also where a row ends within it and the rest is of the row beside it.
  __device__ __forceinline__ bool is_loadable(const Args& a, const Matrix& m, int j) const {
    if (is_full(a, j)) return true;
    const std::int64_t begin = b * a.p.tokens + token(a, j, 0);
    return is_cut(a, j) && m.stride_b == a.p.tokens && begin >= 0 && begin + kE <= a.p.batch * a.p.tokens;
  }

  // Bytes of the mask, 4 a vector.
  struct Mask {
    std::uint32_t words[kVectors];
  };
  __device__ __forceinline__ void load(const Args& a, Mask& mask) const {
    const char* p = element(a.p.mask, b, 0, 1);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      mask.words[j] = 0;
      if (is_loadable(a, a.p.mask, j)) {
        mask.words[j] = ptx::load_once_u32(p + token(a, j, 0));
      } else if (is_cut(a, j)) {
        mask.words[j] = load_mask_cut(p, token(a, j, 0), row.elements);
      }
    }
  }
  // Bit k: token k of this thread is valid.
  __device__ __forceinline__ unsigned valid(const Args& a, const Mask& mask) const {
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      bits |= static_cast<unsigned>((mask.words[k / kE] >> 8 * (k % kE) & 0xff) != 0) << k;
    }
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (is_cut(a, j)) bits &= ~(0xfu << j * kE) | inside_bits(token(a, j, 0), row.elements) << j * kE;
    }
    return bits;
  }

  struct Raw {
    V policy[kVectors], old[kVectors], ref[kVectors];
    std::uint32_t advantage;
  };

  // Starts all loads but the mask's.
  __device__ __forceinline__ void load(const Args& a, Raw& raw) const {
    load(a, a.p.policy, raw.policy);
    load(a, a.p.old_policy, raw.old);
    if (a.p.beta != 0.f) load(a, a.p.ref, raw.ref);
    const int bytes = float_bytes(a.p.advantages.dtype);
    const char* p = element(a.p.advantages, b, 0, bytes);
    raw.advantage = bytes == 4 ? ptx::load_once_u32(p) : ptx::load_once_u16(p);
  }

  // The sum of the losses of this thread's valid tokens; stores the gradients times `weight`.
  template <bool kStore>
  __device__ __forceinline__ float compute(const Args& a, const Raw& raw, unsigned valid, float weight) const {
    const float advantage = to_float(raw.advantage, a.p.advantages.dtype);
    Row grad_row = row;
    grad_row.data = static_cast<char*>(a.p.grad) + b * a.p.tokens * kBytes;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      float x[kE], y[kE], z[kE] = {};
      raw.policy[j].to_floats(x, a.p.policy.dtype);
      raw.old[j].to_floats(y, a.p.old_policy.dtype);
      if (a.p.beta != 0.f) raw.ref[j].to_floats(z, a.p.ref.dtype);
#pragma unroll
      for (int e = 0; e < kE; ++e) {
        float grad;
        const float loss = token_loss(x[e], y[e], z[e], advantage, a.p, grad);
        const bool v = valid >> (j * kE + e) & 1;
        sum += v ? loss : 0.f;
        x[e] = v ? grad * weight : 0.f;
      }
      if (kStore) store(a, grad_row, j, x);
    }
    return sum;
  }

 private:
  __device__ __forceinline__ void load(const Args& a, const Matrix& m, V (&out)[kVectors]) const {
    Row r = row;
    r.data = element(m, b, 0, kBytes);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (is_loadable(a, m, j)) {
        out[j].load(r, v + j * a.tuning.group);
      } else if (is_cut(a, j)) {
        out[j] = load_elements<V>(r, token(a, j, 0), m.dtype, 0.f);
      }
    }
  }

  __device__ __forceinline__ void store(const Args& a, const Row& r, int j, const float (&f)[kE]) const {
    V out;
    out.from_floats(f, a.p.policy.dtype);
    if (is_full(a, j)) {
      out.store(r, v + j * a.tuning.group);
    } else if (is_cut(a, j)) {
      store_elements(out, r, token(a, j, 0), a.p.policy.dtype);
    }
  }
};

}  // namespace strop::policy_loss
