// The two matrix products of attention on the CPU, in fp32. Compiled once for each instruction set.
//
// A block of results stays in registers: 8 rows and 2 vectors of columns with AVX-512, whose 16 sums hide the latency
// of a multiply-add and leave 10 loads to 16 of them; 4 rows where there are 16 registers.
#if defined(STROP_ATTENTION_MULTIPLY_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_ATTENTION_MULTIPLY_CPU_INL_H_
#undef STROP_ATTENTION_MULTIPLY_CPU_INL_H_
#else
#define STROP_ATTENTION_MULTIPLY_CPU_INL_H_
#endif

#include <algorithm>
#include <cstddef>

#include "base/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::attn {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

#undef STROP_ATTENTION_ROWS
#if HWY_TARGET == HWY_AVX3
#define STROP_ATTENTION_ROWS 8
#else
#define STROP_ATTENTION_ROWS 4
#endif

// What is multiplied: c[r][i] = sum over k of a(r, k) b[k][i], for `rows` rows and n columns, a multiple of a vector's
// lanes; b and c are aligned to vectors. Where `scale` is given, c's own value times scale[r] is added.
struct Product {
  const float* a;
  std::size_t a_pitch;  // from row to row, or from k to k
  const float* b;
  std::size_t b_pitch;
  float* c;
  std::size_t c_pitch;
  int rows;
  std::size_t depth, n;
  const float* scale;
};

// Rows [r, r + kRows) and kVectors vectors of columns from i on. kAcross: a(r, k) = a[k][r], else a[r][k].
template <int kRows, int kVectors, bool kAcross>
HWY_INLINE void multiply_block(const Product& p, int r, std::size_t i) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  const float* a[kRows];  // rows beyond the last repeat it, and are not stored
  for (int m = 0; m < kRows; ++m) {
    const auto row = static_cast<std::size_t>(std::min(r + m, p.rows - 1));
    a[m] = p.a + (kAcross ? row : row * p.a_pitch);
  }
  FloatVec c[kRows][kVectors];
  for (auto& row : c)
    for (auto& v : row) v = hn::Zero(f);
  const float* b = p.b + i;
  const std::size_t step = kAcross ? p.a_pitch : 1;
  for (std::size_t k = 0, at = 0; k < p.depth; ++k, at += step, b += p.b_pitch) {
    FloatVec column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = hn::Load(f, b + static_cast<std::size_t>(v) * lanes);
    for (int m = 0; m < kRows; ++m) {
      const auto s = hn::Set(f, a[m][at]);
      for (int v = 0; v < kVectors; ++v) c[m][v] = hn::MulAdd(s, column[v], c[m][v]);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    if (r + m >= p.rows) break;
    float* to = p.c + static_cast<std::size_t>(r + m) * p.c_pitch + i;
    for (int v = 0; v < kVectors; ++v, to += lanes) {
      if (p.scale != nullptr) c[m][v] = hn::MulAdd(hn::Load(f, to), hn::Set(f, p.scale[r + m]), c[m][v]);
      hn::Store(c[m][v], f, to);
    }
  }
}

template <bool kAcross>
inline void multiply(const Product& p) {
  const std::size_t lanes = hn::Lanes(Float());
  for (int r = 0; r < p.rows; r += STROP_ATTENTION_ROWS) {
    std::size_t i = 0;
    for (; i + 2 * lanes <= p.n; i += 2 * lanes) multiply_block<STROP_ATTENTION_ROWS, 2, kAcross>(p, r, i);
    if (i < p.n) multiply_block<STROP_ATTENTION_ROWS, 1, kAcross>(p, r, i);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::attn
HWY_AFTER_NAMESPACE();

#endif  // STROP_ATTENTION_MULTIPLY_CPU_INL_H_
