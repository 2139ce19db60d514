// Where the real tokens of a mask are, on the CPU: positions in chunks, counted first, so that each chunk knows the
// tokens before it when it is written. The mask is read twice; counts are integers, so nothing depends on the threads.
#include "base/simd_target.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ragged/token_index_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, as it is compiled for each instruction set.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/ragged/token_index.h"

HWY_BEFORE_NAMESPACE();
namespace strop::ragged {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr std::int64_t kTile = 4096;  // positions

// Calls f(sequence, l, n, bytes) for runs of positions of one sequence, a tile at most, that make up [begin, end).
template <class F>
HWY_INLINE void for_each_tile(const Problem& p, std::int64_t begin, std::int64_t end, F&& f) {
  std::uint8_t bytes[kTile];
  std::int64_t sequence = begin / p.length, l = begin % p.length;
  for (std::int64_t n; begin < end; begin += n) {
    n = std::min({kTile, end - begin, p.length - l});
    stage_mask(p.mask.data, p.mask.dtype, sequence * p.mask.stride_sequence + l * p.mask.stride, p.mask.stride,
               static_cast<std::size_t>(n), bytes);
    f(sequence, l, n, bytes);
    l += n;
    if (l == p.length) l = 0, ++sequence;
  }
}

std::int64_t count_tokens(const Problem& p, std::int64_t begin, std::int64_t end) {
  std::int64_t count = 0;
  for_each_tile(p, begin, end, [&](std::int64_t, std::int64_t, std::int64_t n, const std::uint8_t* bytes) {
    count += count_nonzero(bytes, static_cast<std::size_t>(n));
  });
  return count;
}

// cu, where and rows of positions [begin, end), of which the first real one is token t.
void write_tokens(const Problem& p, std::int64_t begin, std::int64_t end, std::int64_t t) {
  std::int32_t found[kTile];  // places of a tile's tokens: all are written without a branch, so not into rows at once
  for_each_tile(p, begin, end, [&](std::int64_t sequence, std::int64_t l, std::int64_t n, const std::uint8_t* bytes) {
    if (l == 0) p.cu[sequence] = static_cast<std::int32_t>(t);
    const std::int64_t first = sequence * p.length + l;
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const bool real = bytes[i] != 0;
      found[count] = static_cast<std::int32_t>(first + i);
      p.where[first + i] = real ? static_cast<std::int32_t>(t + count) : -1;
      count += real;
    }
    std::copy(found, found + count, p.rows + t);
    t += count;
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::ragged
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/chunks.h"

namespace strop::ragged {

Status run_cpu(const Problem& p) {
  constexpr std::int64_t kMaxChunks = 64, kPositionsAChunk = 16384;
  const auto count = STROP_SIMD(count_tokens);
  const auto write = STROP_SIMD(write_tokens);
  const std::int64_t positions = p.positions();
  const std::int64_t chunks = std::min(kMaxChunks, (positions + kPositionsAChunk - 1) / kPositionsAChunk);
  const auto begin = [&](std::int64_t chunk) { return positions * chunk / chunks; };
  std::int64_t first[kMaxChunks + 1] = {};  // token of each chunk; at first, one place further, how many it has
  for_each_chunk(chunks, true, [&](std::int64_t k) { first[k + 1] = count(p, begin(k), begin(k + 1)); });
  for (std::int64_t k = 0; k < chunks; ++k) first[k + 1] += first[k];
  const std::int64_t total = first[chunks];
  for_each_chunk(chunks, true, [&](std::int64_t k) {
    write(p, begin(k), begin(k + 1), first[k]);
    const std::int64_t padding = std::max(begin(k), total);  // this chunk's part of what lies behind the last token
    if (padding < begin(k + 1)) std::fill(p.rows + padding, p.rows + begin(k + 1), 0);
  });
  if (positions == 0) std::fill(p.cu, p.cu + p.sequences, 0);
  p.cu[p.sequences] = static_cast<std::int32_t>(total);
  std::int64_t longest = 0;
  unsigned flags = 0;
  for (std::int64_t b = 0; b < p.sequences; ++b) {
    const std::int64_t n = p.cu[b + 1] - p.cu[b];
    longest = std::max(longest, n);
    flags |= sequence_flags(p.rows, p.cu[b], n, b * p.length);
  }
  p.summary[0] = total, p.summary[1] = longest;
  p.summary[2] = (flags & kStartsWithPadding) != 0, p.summary[3] = (flags & kHasHoles) != 0;
  return {};
}

}  // namespace strop::ragged
#endif  // HWY_ONCE
