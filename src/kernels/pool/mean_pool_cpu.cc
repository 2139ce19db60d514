// Mean pooling on the CPU: a sequence's columns in tiles, each summed over its tokens by one thread. Sums are of 64
// tokens each and then of those, which keeps the chains of fp32 additions short.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pool/mean_pool_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/pool/mean_pool.h"

HWY_BEFORE_NAMESPACE();
namespace strop::pool {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr std::int64_t kTile = 256;   // columns
constexpr std::int64_t kTokens = 64;  // summed at a time

struct Tile {
  HWY_ALIGN float values[kTile + hn::MaxLanes(Float())];
};

float weight_of(const Weights& m, std::int64_t sequence, std::int64_t t) {
  if (m.data == nullptr) return 1;
  const double w = load_element(m.data, m.dtype, sequence * m.stride_sequence + t * m.stride);
  return m.dtype == DType::kBool ? static_cast<float>(w != 0) : static_cast<float>(w);
}

// sums += w * x for n neighbouring elements at `from`. What does not fill a vector goes through `rest`, so that every
// element meets the same instructions.
template <class E>
HWY_INLINE void add(E e, const typename E::Type* from, float w, std::size_t n, float* sums) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  const auto weight = hn::Set(f, w);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::Store(hn::MulAdd(weight, load(e, from + i), hn::Load(f, sums + i)), f, sums + i);
  if (i == n) return;
  HWY_ALIGN typename E::Type rest[hn::MaxLanes(Float())] = {};
  std::copy(from + i, from + n, rest);
  hn::Store(hn::MulAdd(weight, load(e, rest), hn::Load(f, sums + i)), f, sums + i);
}

HWY_INLINE void add_token(const Problem& p, std::int64_t at, float w, std::size_t n, float* scratch, float* sums) {
  if (p.stride != 1) {
    stage(p.x, p.dtype, at, p.stride, n, scratch);
    return add(F32(), scratch, w, n, sums);
  }
  if (p.dtype == DType::kFloat32) return add(F32(), element<F32>(p.x, at), w, n, sums);
  if (p.dtype == DType::kFloat16) return add(F16(), element<F16>(p.x, at), w, n, sums);
  return add(BF16(), element<BF16>(p.x, at), w, n, sums);
}

// Columns [begin, begin + n) of a sequence.
void pool_columns(const Problem& p, std::int64_t sequence, std::int64_t begin, std::size_t n) {
  const Float f;
  const std::size_t lanes = hn::Lanes(f);
  Tile total = {}, part, scratch;
  float weights = 0;
  const Span span = span_of(p, sequence);
  for (std::int64_t first = 0; first < span.n; first += kTokens) {
    std::fill(part.values, part.values + n + lanes, 0.F);
    float part_weights = 0;
    for (std::int64_t t = first; t < std::min(span.n, first + kTokens); ++t) {
      const float w = weight_of(p.mask, sequence, t);
      if (w == 0) continue;
      part_weights += w;
      add_token(p, span.first + t * p.stride_token + begin * p.stride, w, n, scratch.values, part.values);
    }
    weights += part_weights;
    for (std::size_t i = 0; i < n; i += lanes)
      hn::Store(hn::Add(hn::Load(f, total.values + i), hn::Load(f, part.values + i)), f, total.values + i);
  }
  if (p.cu.data == nullptr || span.n != 0) {  // an empty packed sequence has its zeros, whatever `least`
    const auto divisor = hn::Set(f, weights < p.least ? p.least : weights);
    for (std::size_t i = 0; i < n; i += lanes)
      hn::Store(hn::Div(hn::Load(f, total.values + i), divisor), f, total.values + i);
  }
  unstage(total.values, n, p.out, p.dtype, sequence * p.out_stride_row + begin * p.out_stride, p.out_stride);
}

// Tiles [first, end) of all sequences' columns.
void pool_tiles(const Problem& p, std::int64_t first, std::int64_t end) {
  const std::int64_t tiles = (p.n + kTile - 1) / kTile;
  for (std::int64_t i = first; i < end; ++i) {
    const std::int64_t begin = i % tiles * kTile;
    pool_columns(p, i / tiles, begin, static_cast<std::size_t>(std::min(kTile, p.n - begin)));
  }
}

std::int64_t tile_columns() { return kTile; }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::pool
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::pool {

Status run_cpu(const Problem& p) {
  const auto pool = STROP_SIMD(pool_tiles);
  const std::int64_t columns = STROP_SIMD(tile_columns)(), tiles = (p.n + columns - 1) / columns;
  const std::int64_t tokens = p.cu.data == nullptr ? p.length : p.length / p.sequences + 1;
  for_each_range(p.sequences * tiles, tokens * std::min(p.n, columns),
                 [&](std::int64_t first, std::int64_t end) { pool(p, first, end); });
  return {};
}

}  // namespace strop::pool
#endif  // HWY_ONCE
