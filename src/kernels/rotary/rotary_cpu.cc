// Rotary position embedding on the CPU: tokens in chunks, each head's pairs in tiles that are brought to fp32 first, so
// that any dtype and stride takes the same SIMD loop. Nothing is summed: results do not depend on the threads.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rotary/rotary_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/rotary/rotary.h"

HWY_BEFORE_NAMESPACE();
namespace strop::rotary {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr std::int64_t kTile = 512;  // pairs

struct Tile {
  HWY_ALIGN float values[kTile + hn::MaxLanes(Float())];
};

// Tokens [first, end).
void rotary_tokens(const Problem& p, std::int64_t first, std::int64_t end) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  static thread_local Tile a = {}, b = {}, cos_a = {}, sin_a = {}, cos_b = {}, sin_b = {};  // zeros behind the last
  // Elements of pair i lie `step` i from the first pair's.
  const std::int64_t step = p.neighbours ? 2 : 1, column_step = p.shared_columns ? 1 : step;
  for (std::int64_t token = first; token < end; ++token) {
    const std::int64_t row = p.positions.data == nullptr ? token % p.rows : p.positions.at(token);
    for (std::int64_t begin = 0; begin < p.r / 2; begin += kTile) {
      const auto n = static_cast<std::size_t>(std::min(kTile, p.r / 2 - begin));
      const Pair pair = pair_of(p, begin);
      const auto load_table = [&](const Table& t, std::int64_t column, Tile& to) {
        stage(t.data, t.dtype, row * t.stride_row + column * t.stride, column_step * t.stride, n, to.values);
      };
      load_table(p.cos, pair.column_a, cos_a), load_table(p.sin, pair.column_a, sin_a);
      load_table(p.cos, pair.column_b, cos_b), load_table(p.sin, pair.column_b, sin_b);
      for (std::int64_t head = 0; head < p.heads; ++head) {
        const auto at = [&](const Heads& m, std::int64_t i) {
          return token * m.stride_token + head * m.stride_head + i * m.stride;
        };
        stage(p.x.data, p.dtype, at(p.x, pair.a), step * p.x.stride, n, a.values);
        stage(p.x.data, p.dtype, at(p.x, pair.b), step * p.x.stride, n, b.values);
        for (std::size_t i = 0; i < n; i += lanes) {
          const auto x = hn::Load(f, a.values + i), y = hn::Load(f, b.values + i);
          const auto turned_a =
              hn::NegMulAdd(y, hn::Load(f, sin_a.values + i), hn::Mul(x, hn::Load(f, cos_a.values + i)));
          const auto turned_b = hn::MulAdd(x, hn::Load(f, sin_b.values + i), hn::Mul(y, hn::Load(f, cos_b.values + i)));
          hn::Store(turned_a, f, a.values + i), hn::Store(turned_b, f, b.values + i);
        }
        unstage(a.values, n, p.out.data, p.dtype, at(p.out, pair.a), step * p.out.stride);
        unstage(b.values, n, p.out.data, p.dtype, at(p.out, pair.b), step * p.out.stride);
      }
    }
    if (p.out.data == p.x.data) continue;
    for (std::int64_t head = 0; head < p.heads; ++head) {
      for (std::int64_t begin = p.r; begin < p.d; begin += kTile) {
        const auto n = static_cast<std::size_t>(std::min(kTile, p.d - begin));
        const auto at = [&](const Heads& m) {
          return token * m.stride_token + head * m.stride_head + begin * m.stride;
        };
        stage(p.x.data, p.dtype, at(p.x), p.x.stride, n, a.values);
        unstage(a.values, n, p.out.data, p.dtype, at(p.out), p.out.stride);
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::rotary
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::rotary {

Status run_cpu(const Problem& p) {
  const auto tokens = STROP_SIMD(rotary_tokens);
  for_each_range(p.tokens, p.heads * p.d, [&](std::int64_t first, std::int64_t end) { tokens(p, first, end); });
  return {};
}

}  // namespace strop::rotary
#endif  // HWY_ONCE
