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
  std::int64_t t;  // the first token of this thread's first vector
  int v, step;     // that vector; from a vector to the next
  Row row;         // of policy_logprobs; the others' are cut alike

  __device__ __forceinline__ DenseTile(const Args& a, std::int64_t row_index, std::int64_t chunk, int rank)
      : b(row_index), v(static_cast<int>(chunk) * a.tuning.group * kVectors + rank), step(a.tuning.group) {
    row = Row::make<kE>(element(a.p.policy, b, 0, kBytes), kBytes, a.p.tokens, kBytes, true);
    t = row.first_of<kE>(v);
  }

  // Where vector j of this thread lies: in the row whole, cut by one of its ends, or (neither) outside.
  __device__ __forceinline__ bool is_full(int j) const {
    const int i = v + j * step;
    return i >= row.full_begin && i < row.full_end;
  }
  __device__ __forceinline__ bool is_cut(int j) const { return !is_full(j) && token(j) < row.elements; }
  __device__ __forceinline__ std::int64_t token(int j) const { return t + j * step * kE; }
  // Whether a cut vector can be loaded whole: the rest is of the row beside it.
  __device__ __forceinline__ bool is_loadable(const Args& a, const Matrix& m, int j) const {
    const std::int64_t begin = b * a.p.tokens + token(j);
    return m.stride_b == a.p.tokens && begin >= 0 && begin + kE <= a.p.batch * a.p.tokens;
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
      if (is_full(j)) {
        mask.words[j] = ptx::load_once_u32(p + token(j));
      } else if (is_cut(j)) {
        mask.words[j] =
            is_loadable(a, a.p.mask, j) ? ptx::load_once_u32(p + token(j)) : load_mask_cut(p, token(j), row.elements);
      }
    }
  }
  // Bit k: token k of this thread is valid.
  __device__ __forceinline__ unsigned valid(const Args&, const Mask& mask) const {
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      bits |= static_cast<unsigned>((mask.words[k / kE] >> 8 * (k % kE) & 0xff) != 0) << k;
    }
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (is_cut(j)) bits &= ~(0xfu << j * kE) | inside_bits(token(j), row.elements) << j * kE;
    }
    return bits;
  }

  struct Raw {
    V policy[kVectors], old[kVectors], ref[kVectors];
    std::uint32_t advantage;
  };

  // Starts all loads but the mask's.
  __device__ __forceinline__ void load(const Args& a, Raw& raw) const {
    const char* const policy = element(a.p.policy, b, 0, kBytes) + t * kBytes;
    const char* const old = element(a.p.old_policy, b, 0, kBytes) + t * kBytes;
    const char* const ref = element(a.p.ref, b, 0, kBytes) + t * kBytes;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (is_full(j)) {
        const int offset = j * step * static_cast<int>(sizeof(V));
        raw.policy[j].load(policy + offset), raw.old[j].load(old + offset);
        if (a.p.beta != 0.f) raw.ref[j].load(ref + offset);
      } else if (is_cut(j)) {
        raw.policy[j] = load_cut(a, a.p.policy, j), raw.old[j] = load_cut(a, a.p.old_policy, j);
        if (a.p.beta != 0.f) raw.ref[j] = load_cut(a, a.p.ref, j);
      }
    }
    const int bytes = float_bytes(a.p.advantages.dtype);
    const char* p = element(a.p.advantages, b, 0, bytes);
    raw.advantage = bytes == 4 ? ptx::load_once_u32(p) : ptx::load_once_u16(p);
  }

  // The sum of the losses of this thread's valid tokens; stores the gradients times `weight`. kRef: beta is not 0.
  template <bool kStore, bool kRef>
  __device__ __forceinline__ float compute(const Args& a, const Raw& raw, unsigned valid, float weight) const {
    const float advantage = to_float(raw.advantage, a.p.advantages.dtype);
    char* const grad_row = static_cast<char*>(a.p.grad) + b * a.p.tokens * kBytes;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      float x[kE], y[kE], z[kE] = {};
      raw.policy[j].to_floats(x, a.p.policy.dtype);
      raw.old[j].to_floats(y, a.p.old_policy.dtype);
      if (kRef) raw.ref[j].to_floats(z, a.p.ref.dtype);
#pragma unroll
      for (int e = 0; e < kE; ++e) {
        float grad;
        const float loss = token_loss<kRef>(x[e], y[e], z[e], advantage, a.p, grad);
        const bool v = valid >> (j * kE + e) & 1;
        sum += v ? loss : 0.f;
        x[e] = v ? grad * weight : 0.f;
      }
      if (kStore) {
        V out;
        out.from_floats(x, a.p.policy.dtype);
        if (is_full(j)) {
          out.store(grad_row + token(j) * kBytes);
        } else if (is_cut(j)) {
          Row r = row;
          r.data = grad_row;
          store_elements(out, r, token(j), a.p.policy.dtype);
        }
      }
    }
    return sum;
  }

 private:
  __device__ __forceinline__ V load_cut(const Args& a, const Matrix& m, int j) const {
    Row r = row;
    r.data = element(m, b, 0, kBytes);
    if (!is_loadable(a, m, j)) return load_elements<V>(r, token(j), m.dtype, 0.f);
    V vector;
    vector.load(r.data + token(j) * kBytes);
    return vector;
  }
};

}  // namespace strop::policy_loss
