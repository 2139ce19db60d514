// Attention on the CPU: what a tile of queries is, and its inputs as fp32 where the products want them. Compiled once
// for each instruction set.
#if defined(STROP_ATTENTION_STAGE_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_ATTENTION_STAGE_CPU_INL_H_
#undef STROP_ATTENTION_STAGE_CPU_INL_H_
#else
#define STROP_ATTENTION_STAGE_CPU_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cpu_scratch.h"

HWY_BEFORE_NAMESPACE();
namespace strop::attn {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr int kRows = kCpuRows, kKeys = kCpuKeys, kDepth = CpuScratch::kDepth;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// One tile: rows [first, first + rows) of a sequence's queries times the heads that share key head `kv`.
struct Tile {
  const Problem& p;
  CpuScratch& t;
  Sequence s;
  std::int64_t b, kv, first;
  int rows;
  std::size_t d, wide, pitch;  // of a head, whole vectors of it; whole vectors of rows
  std::int64_t group;          // p.group(): divisions take as long as a row's copy

  std::int64_t query(int r) const { return group == 1 ? first + r : (first + r) / group; }
  std::int64_t head(int r) const { return group == 1 ? kv : kv * group + (first + r) % group; }
  Keys keys(int r) const { return keys_of(p, s, query(r)); }
  std::int64_t at(const Tensor& m, std::int64_t h, std::int64_t l) const {
    return b * m.stride_b + h * m.stride_h + l * m.stride_l;
  }
  std::int64_t at(const Mask& m, int r, std::int64_t j) const {
    return b * m.stride_b + head(r) * m.stride_h + query(r) * m.stride_q + j * m.stride_k;
  }
  // The same for all rows.
  bool by_key(const Mask& m) const { return m.stride_q == 0 && (m.stride_h == 0 || group == 1); }
};

// f(F32()), f(F16()) or f(BF16()).
template <class F>
HWY_INLINE void with_kind(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) return f(F32());
  if (dtype == DType::kFloat16) return f(F16());
  return f(BF16());
}

inline void stage_queries(const Tile& tile) {
  const Problem& p = tile.p;
  CpuScratch& t = tile.t;
  with_kind(p.dtype, [&](auto kind) HWY_ATTR {
    using E = decltype(kind);
    for (std::size_t r = 0; r < tile.pitch; r += 4) {
      if (std::is_same_v<E, F32> && tile.group == 1 && p.q.stride_d == 1 && static_cast<int>(r) + 4 <= tile.rows) {
        const std::int64_t from = tile.at(p.q, tile.kv, tile.s.q_begin + tile.first + static_cast<std::int64_t>(r));
        const void* data = p.q.data;
        transpose_four(element<F32>(data, from), p.q.stride_l, tile.d, t.q + r, tile.pitch);
        continue;
      }
      for (std::size_t i = 0; i < 4; ++i) {
        const int row = static_cast<int>(r + i);
        if (row >= tile.rows) {
          std::fill(t.lines[i], t.lines[i] + tile.d, 0.f);
        } else {
          const std::int64_t from = tile.at(p.q, tile.head(row), tile.s.q_begin + tile.query(row));
          stage(kind, element<E>(static_cast<const void*>(p.q.data), from), p.q.stride_d, tile.d, t.lines[i]);
        }
      }
      transpose_four(t.lines[0], kDepth, tile.d, t.q + r, tile.pitch);
    }
  });
}

// Sums over their weights, to out; zeros where no key was there.
inline void finish_rows(const Tile& tile, bool any) {
  const Problem& p = tile.p;
  CpuScratch& t = tile.t;
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  if (!any) std::fill(t.sums, t.sums + static_cast<std::size_t>(tile.rows) * tile.wide, 0.f);
  with_kind(p.dtype, [&](auto kind) HWY_ATTR {
    using E = decltype(kind);
    for (int r = 0; r < tile.rows; ++r) {
      float* sums = t.sums + static_cast<std::size_t>(r) * tile.wide;
      const auto inverse = hn::Set(f, static_cast<float>(t.weight[r] == 0 ? 0 : 1 / t.weight[r]));  // NaN is not 0
      auto* to = element<E>(p.out.data, tile.at(p.out, tile.head(r), tile.s.q_begin + tile.query(r)));
      const bool dense = p.out.stride_d == 1 && tile.d == tile.wide;
      for (std::size_t c = 0; c < tile.wide; c += lanes) {
        const auto value = hn::Mul(hn::Load(f, sums + c), inverse);
        if (dense) {
          store(kind, value, to + c);
        } else {
          hn::Store(value, f, sums + c);
        }
      }
      if (!dense) unstage(kind, sums, tile.d, to, p.out.stride_d);
    }
  });
}

// The first n of t.keys, from key `begin` on, as rows of `wide` elements, zeros behind d.
inline void stage_keys(const Tile& tile, const Tensor& m, std::int64_t begin, int n, float* to) {
  with_kind(tile.p.dtype, [&](auto kind) HWY_ATTR {
    using E = decltype(kind);
    const auto* from = element<E>(m.data, tile.at(m, tile.kv, tile.s.k_begin + begin));
    for (int j = 0; j < n; ++j, to += tile.wide) {
      stage(kind, from + tile.t.keys[j] * m.stride_l, m.stride_d, tile.d, to);
      for (std::size_t c = tile.d; c < tile.wide; ++c) to[c] = 0;
    }
  });
}

// Biases or a mask (0 and 1) of row r and the first n of t.keys.
inline void stage_line(const Tile& tile, const Mask& m, int r, std::int64_t begin, int n, float* to) {
  const int* keys = tile.t.keys;
  const auto count = static_cast<std::size_t>(n > 0 ? keys[n - 1] + 1 : 0);
  const std::int64_t from = tile.at(m, r, begin);
  if (m.dtype == DType::kBool) {
    stage_mask(m.data, m.dtype, from, m.stride_k, count, tile.t.admitted);
    for (std::size_t j = 0; j < count; ++j) to[j] = tile.t.admitted[j];
  } else if (m.dtype == DType::kFloat64) {
    for (std::size_t j = 0; j < count; ++j)
      to[j] = static_cast<float>(load_element(m.data, m.dtype, from + static_cast<std::int64_t>(j) * m.stride_k));
  } else {
    stage(m.data, m.dtype, from, m.stride_k, count, to);
  }
  if (static_cast<std::size_t>(n) == count) return;
  for (int j = 0; j < n; ++j) to[j] = to[keys[j]];
}

// The same for all rows, [key][row].
inline void stage_lines(const Tile& tile, const Mask& m, std::int64_t begin, int n, float* to) {
  for (std::size_t r = 0; r < tile.pitch; r += 4) {
    for (int i = 0; i < 4; ++i)  // rows beyond the last repeat it
      stage_line(tile, m, std::min(static_cast<int>(r) + i, tile.rows - 1), begin, n, tile.t.lines[i]);
    transpose_four(tile.t.lines[0], kDepth, static_cast<std::size_t>((n + 3) / 4 * 4), to + r, tile.pitch);
  }
}

// Which of the n keys from `begin` on are there, in t.keys: without those that a mask takes from all rows.
inline int find_keys(const Tile& tile, std::int64_t begin, int n) {
  CpuScratch& t = tile.t;
  const Mask& m = tile.p.mask;
  const bool masked = m.data != nullptr && tile.by_key(m);
  if (masked) stage_mask(m.data, m.dtype, tile.at(m, 0, begin), m.stride_k, static_cast<std::size_t>(n), t.admitted);
  int count = 0;
  for (int j = 0; j < n; ++j) {
    t.keys[count] = j;
    count += !masked || t.admitted[j] != 0;
  }
  return count;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::attn
HWY_AFTER_NAMESPACE();

#endif  // STROP_ATTENTION_STAGE_CPU_INL_H_
