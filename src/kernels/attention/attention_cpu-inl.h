// Attention on the CPU, the SIMD part: one tile of queries against all their keys. attention_cpu.cc cuts the work up
// and includes this once for each instruction set.
//
// Both products are small matrix products in fp32: scores = q (k transposed), and sums += weights v, with four rows
// and two vectors of columns in registers. Tiles are converted to fp32 when they are staged, k transposed on the way.
#if defined(STROP_ATTENTION_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_ATTENTION_CPU_INL_H_
#undef STROP_ATTENTION_CPU_INL_H_
#else
#define STROP_ATTENTION_CPU_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_tuning.h"

HWY_BEFORE_NAMESPACE();
namespace strop::attn {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr int kRows = kCpuRows, kKeys = kCpuKeys, kDepth = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// All of it fp32, a thread's own.
struct Scratch {
  HWY_ALIGN float q[kRows * kDepth], k[kDepth * kKeys], v[kKeys * kDepth];
  HWY_ALIGN float x[kRows * kKeys], sums[kRows * kDepth];
  HWY_ALIGN float line[kDepth + kKeys];
  HWY_ALIGN std::uint8_t admitted[kKeys];
  float largest[kRows];
  double weight[kRows];
};

// c[r][n] += sum over k of a[r][k] b[k][n], for `rows` rows, n a multiple of two vectors' lanes.
HWY_INLINE void multiply_add(const float* a, std::size_t lda, const float* b, std::size_t ldb, float* c,
                             std::size_t ldc, int rows, std::size_t depth, std::size_t n) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  for (int r = 0; r < rows; r += 4) {
    const float* a0 = a + r * lda;  // rows beyond the last repeat it, and are not stored
    const float *a1 = a + std::min(r + 1, rows - 1) * lda, *a2 = a + std::min(r + 2, rows - 1) * lda,
                *a3 = a + std::min(r + 3, rows - 1) * lda;
    for (std::size_t i = 0; i < n; i += 2 * lanes) {
      auto c00 = hn::Zero(f), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00, c31 = c00;
      for (std::size_t k = 0; k < depth; ++k) {
        const auto b0 = hn::Load(f, b + k * ldb + i), b1 = hn::Load(f, b + k * ldb + i + lanes);
        const auto s0 = hn::Set(f, a0[k]), s1 = hn::Set(f, a1[k]), s2 = hn::Set(f, a2[k]), s3 = hn::Set(f, a3[k]);
        c00 = hn::MulAdd(s0, b0, c00), c01 = hn::MulAdd(s0, b1, c01);
        c10 = hn::MulAdd(s1, b0, c10), c11 = hn::MulAdd(s1, b1, c11);
        c20 = hn::MulAdd(s2, b0, c20), c21 = hn::MulAdd(s2, b1, c21);
        c30 = hn::MulAdd(s3, b0, c30), c31 = hn::MulAdd(s3, b1, c31);
      }
      const auto add = [&](int row, FloatVec v0, FloatVec v1) HWY_ATTR {
        if (row >= rows) return;
        float* to = c + row * ldc + i;
        hn::Store(hn::Add(hn::Load(f, to), v0), f, to);
        hn::Store(hn::Add(hn::Load(f, to + lanes), v1), f, to + lanes);
      };
      add(r, c00, c01), add(r + 1, c10, c11), add(r + 2, c20, c21), add(r + 3, c30, c31);
    }
  }
}

// n biases of a row as floats; float64 one by one.
inline void load_bias(const Mask& m, std::int64_t offset, std::size_t n, float* to) {
  if (m.dtype != DType::kFloat64) return stage(m.data, m.dtype, offset, m.stride_k, n, to);
  for (std::size_t i = 0; i < n; ++i)
    to[i] = static_cast<float>(load_element(m.data, m.dtype, offset + static_cast<std::int64_t>(i) * m.stride_k));
}

// Row r's dots of keys [begin, begin + n) to weights, of which all kKeys are written; brings the row's sums to the
// new largest score.
HWY_INLINE void weigh(const Problem& p, Scratch& t, int r, std::int64_t b, std::int64_t h, std::int64_t i,
                      const Keys& keys, std::int64_t begin, int n) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  float* x = t.x + r * kKeys;
  const auto first = static_cast<int>(std::clamp<std::int64_t>(keys.begin - begin, 0, n));
  const auto end = static_cast<int>(std::clamp<std::int64_t>(keys.end - begin, first, n));
  std::fill(t.line, t.line + kKeys, 0.f);
  const auto place = [&](const Mask& m) {
    return b * m.stride_b + h * m.stride_h + i * m.stride_q + (begin + first) * m.stride_k;
  };
  const auto count = static_cast<std::size_t>(end - first);
  if (p.bias.data != nullptr) load_bias(p.bias, place(p.bias), count, t.line + first);
  const auto scale = hn::Set(f, p.scale);
  for (int j = 0; j < kKeys; j += static_cast<int>(lanes))
    hn::Store(hn::MulAdd(hn::Load(f, x + j), scale, hn::Load(f, t.line + j)), f, x + j);
  if (p.mask.data != nullptr) {
    stage_mask(p.mask.data, p.mask.dtype, place(p.mask), p.mask.stride_k, count, t.admitted);
    for (std::size_t j = 0; j < count; ++j)
      if (t.admitted[j] == 0) x[first + static_cast<int>(j)] = kNothing;
  }
  std::fill(x, x + first, kNothing), std::fill(x + end, x + kKeys, kNothing);

  auto most = hn::Set(f, t.largest[r]);
  for (int j = 0; j < kKeys; j += static_cast<int>(lanes)) {
    const auto v = hn::Load(f, x + j);
    most = hn::IfThenElse(hn::Gt(v, most), v, most);  // NaN is dropped here, and comes back in the weights
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(f, most));
  const float off = largest == kNothing ? 0.f : largest;
  const float before = t.largest[r] == kNothing ? 0.f : std::exp(t.largest[r] - off);
  auto sum = hn::Zero(f);
  for (int j = 0; j < kKeys; j += static_cast<int>(lanes)) {
    const auto w = exp_nonpositive(hn::Sub(hn::Load(f, x + j), hn::Set(f, off)));
    hn::Store(w, f, x + j);
    sum = hn::Add(sum, w);
  }
  t.weight[r] = t.weight[r] * static_cast<double>(before) + sum_lanes(sum);
  t.largest[r] = largest;
  if (before == 1.f) return;
  float* sums = t.sums + r * kDepth;
  for (int c = 0; c < kDepth; c += static_cast<int>(lanes))
    hn::Store(hn::Mul(hn::Load(f, sums + c), hn::Set(f, before)), f, sums + c);
}

// Rows [first, first + rows) of a sequence's queries times the heads that share key head `kv`.
inline void attend_tile(const Problem& p, std::int64_t b, std::int64_t kv, std::int64_t first, int rows, Scratch& t) {
  const Sequence s = sequence_of(p, b);
  const std::int64_t group = p.group();
  const auto at = [&](const Tensor& m, std::int64_t h, std::int64_t l) {
    return b * m.stride_b + h * m.stride_h + l * m.stride_l;
  };
  const auto query = [&](int r) { return (first + r) / group; };
  const auto head = [&](int r) { return kv * group + (first + r) % group; };
  // A multiple of the two vectors that multiply_add takes at a time; what is beyond d is 0.
  const std::size_t step = 2 * hn::Lanes(Float()), d = static_cast<std::size_t>(p.d),
                    wide = (d + step - 1) / step * step;
  std::memset(t.sums, 0, sizeof t.sums);
  std::memset(t.v, 0, sizeof t.v);
  for (int r = 0; r < rows; ++r) {
    stage(p.q.data, p.dtype, at(p.q, head(r), s.q_begin + query(r)), p.q.stride_d, d, t.q + r * kDepth);
    t.largest[r] = kNothing, t.weight[r] = 0;
  }
  const std::int64_t from = keys_of(p, s, query(0)).begin / kKeys * kKeys, to = keys_of(p, s, query(rows - 1)).end;
  for (std::int64_t begin = from; begin < to; begin += kKeys) {
    const int n = static_cast<int>(std::min<std::int64_t>(kKeys, s.k - begin));
    for (int j = 0; j < kKeys; ++j) {
      if (j < n) {
        stage(p.k.data, p.dtype, at(p.k, kv, s.k_begin + begin + j), p.k.stride_d, d, t.line);
        stage(p.v.data, p.dtype, at(p.v, kv, s.k_begin + begin + j), p.v.stride_d, d, t.v + j * kDepth);
      } else {
        std::fill(t.line, t.line + d, 0.f);
        std::fill(t.v + j * kDepth, t.v + j * kDepth + d, 0.f);  // a weight of 0 times garbage may be NaN
      }
      for (std::size_t c = 0; c < d; ++c) t.k[c * kKeys + static_cast<std::size_t>(j)] = t.line[c];
    }
    std::memset(t.x, 0, sizeof t.x);
    multiply_add(t.q, kDepth, t.k, kKeys, t.x, kKeys, rows, d, kKeys);
    for (int r = 0; r < rows; ++r) weigh(p, t, r, b, head(r), query(r), keys_of(p, s, query(r)), begin, n);
    multiply_add(t.x, kKeys, t.v, kDepth, t.sums, kDepth, rows, static_cast<std::size_t>(n), wide);
  }
  for (int r = 0; r < rows; ++r) {
    float* sums = t.sums + r * kDepth;
    const auto inverse = static_cast<float>(t.weight[r] == 0 ? 0 : 1 / t.weight[r]);  // NaN is not 0
    for (std::size_t c = 0; c < d; ++c) sums[c] *= inverse;
    unstage(sums, d, p.out.data, p.dtype, at(p.out, head(r), s.q_begin + query(r)), p.out.stride_d);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::attn
HWY_AFTER_NAMESPACE();

#endif  // STROP_ATTENTION_CPU_INL_H_
