// Attention on the CPU, the SIMD part: one tile of queries against all their keys. attention_cpu.cc cuts the work up
// and includes this once for each instruction set.
//
// Scores are computed across: a row for each key, a column for each query. So keys and values are used as they lie,
// and the softmax, with queries in its lanes, has neither maxima nor sums over lanes; only q is transposed, once a
// tile. All is converted to fp32 when it is staged. A mask that is the same for all queries takes its keys out before
// anything is computed; what admits or adds by query is staged and transposed.
#if defined(STROP_ATTENTION_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_ATTENTION_CPU_INL_H_
#undef STROP_ATTENTION_CPU_INL_H_
#else
#define STROP_ATTENTION_CPU_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cpu_scratch.h"
#include "kernels/attention/attention_multiply_cpu-inl.h"
#include "kernels/attention/attention_stage_cpu-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop::attn {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

// Dots of n keys to scores, from begin on, and those to weights; what the rows' sums are to be multiplied with goes to
// t.before.
inline void weigh(const Tile& tile, std::int64_t begin, int n, bool bounded) {
  const Problem& p = tile.p;
  CpuScratch& t = tile.t;
  const Float f;
  const std::size_t lanes = hn::Lanes(f), pitch = tile.pitch;
  const bool biased = p.bias.data != nullptr, masked = p.mask.data != nullptr && !tile.by_key(p.mask);
  const bool line = biased && tile.by_key(p.bias);
  if (masked) stage_lines(tile, p.mask, begin, n, t.mask);
  if (biased && !line) stage_lines(tile, p.bias, begin, n, t.bias);
  if (line) stage_line(tile, p.bias, 0, begin, n, t.lines[0]);
  const auto scale = hn::Set(f, p.scale), nothing = hn::Set(f, kNothing);
  const int whole = (n + 3) / 4 * 4;
  for (std::size_t i = 0; i < pitch; i += lanes) {
    const auto old = hn::Load(f, t.largest + i), first = hn::Load(f, t.begin + i), end = hn::Load(f, t.end + i);
    auto most = old;
    for (int j = 0; j < n; ++j) {
      const std::size_t at = static_cast<std::size_t>(j) * pitch + i;
      auto x = hn::Load(f, t.x + at);
      if (biased) {
        x = hn::MulAdd(x, scale, line ? hn::Set(f, t.lines[0][j]) : hn::Load(f, t.bias + at));
      } else {
        x = hn::Mul(x, scale);
      }
      if (masked) x = hn::IfThenElse(hn::Eq(hn::Load(f, t.mask + at), hn::Zero(f)), nothing, x);
      if (bounded) {
        const auto key = hn::Set(f, static_cast<float>(t.keys[j]));
        x = hn::IfThenElse(hn::Or(hn::Lt(key, first), hn::Ge(key, end)), nothing, x);
      }
      hn::Store(x, f, t.x + at);
      most = at_least(most, x);  // NaN of x is dropped here, and comes back in the weights
    }
    for (int j = n; j < whole; ++j) hn::Store(nothing, f, t.x + static_cast<std::size_t>(j) * pitch + i);
    const auto off = hn::IfThenZeroElse(hn::Eq(most, nothing), most);
    hn::Store(most, f, t.largest + i);
    hn::Store(exp_nonpositive(hn::Sub(old, off)), f, t.before + i);
    auto s0 = hn::Zero(f), s1 = s0, s2 = s0, s3 = s0;  // chains of kKeys / 4
    const auto add = [&](int j, FloatVec& sum) HWY_ATTR {
      float* x = t.x + static_cast<std::size_t>(j) * pitch + i;
      const auto w = exp_nonpositive(hn::Sub(hn::Load(f, x), off));
      hn::Store(w, f, x);
      sum = hn::Add(sum, w);
    };
    for (int j = 0; j < whole; j += 4) add(j, s0), add(j + 1, s1), add(j + 2, s2), add(j + 3, s3);
    hn::Store(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), f, t.added + i);
  }
  for (std::size_t r = 0; r < pitch; ++r)
    t.weight[r] = t.weight[r] * static_cast<double>(t.before[r]) + static_cast<double>(t.added[r]);
}

inline void attend_tile(const Problem& p, std::int64_t b, std::int64_t kv, std::int64_t first, int rows,
                        CpuScratch& t) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f), step = std::max<std::size_t>(lanes, 4), d = static_cast<std::size_t>(p.d);
  const auto up = [](std::size_t n, std::size_t to) { return (n + to - 1) / to * to; };
  const Tile tile{
      p,        t, sequence_of(p, b), b, kv, first, rows, d, up(d, lanes), up(static_cast<std::size_t>(rows), step),
      p.group()};
  stage_queries(tile);
  std::fill(t.largest, t.largest + tile.pitch, kNothing);
  std::fill(t.weight, t.weight + tile.pitch, 0.0);
  const std::int64_t from = tile.keys(0).begin / kKeys * kKeys, to = tile.keys(rows - 1).end;
  bool any = false;
  for (std::int64_t begin = from; begin < to; begin += kKeys) {
    const int n = static_cast<int>(std::min<std::int64_t>(kKeys, to - begin)), count = find_keys(tile, begin, n);
    if (count == 0) continue;
    // The bounds of all other rows lie between those of the first and the last.
    const bool bounded = tile.keys(rows - 1).begin > begin || tile.keys(0).end < begin + n;
    for (int r = 0; bounded && r < static_cast<int>(tile.pitch); ++r) {
      const Keys keys = tile.keys(std::min(r, rows - 1));
      t.begin[r] = static_cast<float>(std::clamp<std::int64_t>(keys.begin - begin, 0, n));
      t.end[r] = static_cast<float>(std::clamp<std::int64_t>(keys.end - begin, 0, n));
    }
    stage_keys(tile, p.k, begin, count, t.k);
    multiply<false>({t.k, tile.wide, t.q, tile.pitch, t.x, tile.pitch, count, d, tile.pitch, nullptr});
    weigh(tile, begin, count, bounded);
    stage_keys(tile, p.v, begin, count, t.v);
    multiply<true>({t.x, tile.pitch, t.v, tile.wide, t.sums, tile.wide, rows, static_cast<std::size_t>(count),
                    tile.wide, any ? t.before : nullptr});
    any = true;
  }
  finish_rows(tile, any);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::attn
HWY_AFTER_NAMESPACE();

#endif  // STROP_ATTENTION_CPU_INL_H_
