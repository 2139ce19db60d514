// Where the real tokens of a mask are, on CUDA; the maths is in token_index.h.
//
// Purpose   Tokens packed without a copy to the host: what a sort, a cumulative sum and a nonzero take many launches
//           for, in one.
// Design    A warp takes 512 positions as 16 words of 32 bits, which its lanes then go through together, so that
//           stores to where and rows are neighbours; words come from ballots or, of masks of bytes, from one vector a
//           lane. A block adds up its warps' counts once a pass. One block does it all for up to 64 K positions,
//           where meeting others would cost what they save. Beyond, blocks count their parts, meet, and then write; a
//           part's count lies where its first `where` belongs, since a launcher has no scratch.
// Bytes     token_index.h; with several blocks the mask is read again, from L2.
// Floor     The launch, and four trips to memory one after the other: mask, stores, cu, rows.
#pragma once

#include "base/ptx/grid.cuh"
#include "base/reduce.cuh"
#include "kernels/ragged/token_words.cuh"
#include "strop/launch.h"

namespace strop::ragged {

struct Shared {
  std::uint32_t counts[2][32];  // of warps, in even and odd passes
  std::uint32_t sums[32];
  unsigned longest[32], flags[32];
};

// where, rows and cu of the warp's positions from `first` on, of which the first real one is token t. Not where[skip].
__device__ __forceinline__ void write_tokens(const Args& a, std::int64_t first, std::uint32_t words, std::uint32_t t,
                                             std::int64_t skip) {
  const Problem& p = a.p;
  const unsigned lane = threadIdx.x % 32;
  Place place = Place::of(first + lane, p);
#pragma unroll 4
  for (int k = 0; k < kWords; ++k, place.advance(32, p)) {
    const std::uint32_t word = __shfl_sync(kFullWarp, words, k);
    const std::uint32_t token = t + static_cast<std::uint32_t>(__popc(word & ((1u << lane) - 1)));
    const std::int64_t position = first + 32 * k + lane;
    t += static_cast<std::uint32_t>(__popc(word));
    if (position >= p.positions()) continue;
    const bool real = word >> lane & 1;
    if (real) p.rows[token] = static_cast<std::int32_t>(position);
    if (position != skip) p.where[position] = real ? static_cast<std::int32_t>(token) : -1;
    if (place.l == 0) p.cu[place.sequence] = static_cast<std::int32_t>(token);
  }
}

// By one block, from cu and rows.
__device__ __forceinline__ void summarize(const Problem& p, std::uint32_t total, Shared& shared) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned longest = 0, flags = 0;
  for (std::int64_t b = threadIdx.x; b < p.sequences; b += blockDim.x) {
    const std::int64_t first = p.cu[b], n = p.cu[b + 1] - first;
    longest = max(longest, static_cast<unsigned>(n));
    flags |= sequence_flags(p.rows, first, n, b * p.length);
  }
  longest = __reduce_max_sync(kFullWarp, longest), flags = __reduce_or_sync(kFullWarp, flags);
  if (lane == 0) shared.longest[warp] = longest, shared.flags[warp] = flags;
  __syncthreads();  // read after write: every warp's finding is there
  if (warp != 0) return;
  const bool used = lane < blockDim.x / 32;
  longest = __reduce_max_sync(kFullWarp, used ? shared.longest[lane] : 0);
  flags = __reduce_or_sync(kFullWarp, used ? shared.flags[lane] : 0);
  if (lane == 0) {
    p.summary[0] = total, p.summary[1] = longest;
    p.summary[2] = (flags & kStartsWithPadding) != 0, p.summary[3] = (flags & kHasHoles) != 0;
  }
}

__global__ void __launch_bounds__(kMaxThreads) token_index_kernel(const __grid_constant__ Args a) {
  ptx::wait_for_previous_kernel();
  Shared& shared = dynamic_shared<Shared>();
  const Problem& p = a.p;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t pass = std::int64_t{blockDim.x} * kPositionsAThread, begin = blockIdx.x * a.part;
  const std::int64_t end = min(p.positions(), begin + a.part), of_warp = warp * kWarpPositions;
  const bool parts = gridDim.x > 1;
  std::uint32_t t = 0, total = 0;  // tokens before the block's next pass, and all of them
  if (parts) {
    for (std::int64_t at = begin; at < end; at += pass)
      t += static_cast<std::uint32_t>(__popc(load_words(a, at + of_warp)));
    t = block_sum(t, shared.sums);
    if (threadIdx.x == 0) p.where[begin] = static_cast<std::int32_t>(t);
    ptx::grid_barrier();  // read after write: every part's count is at its beginning
    const unsigned part = threadIdx.x;
    const auto count = part < gridDim.x ? static_cast<std::uint32_t>(p.where[part * a.part]) : 0;
    t = block_sum(part < blockIdx.x ? count : 0, shared.sums), total = block_sum(count, shared.sums);
  }
  std::int32_t first_where = -1;  // thread 0's, for where[begin], in which the count may still be read
  unsigned parity = 0;
  for (std::int64_t at = begin; at < end; at += pass, parity ^= 1) {
    const std::uint32_t words = load_words(a, at + of_warp);
    const std::uint32_t found = warp_sum(static_cast<std::uint32_t>(__popc(words)));
    if (at == begin && (words & 1) != 0) first_where = static_cast<std::int32_t>(t);
    if (lane == 0) shared.counts[parity][warp] = found;
    // Read after write: every warp's count is there. Write after read: counts of the pass before the last, which these
    // replace, were read by all before they came to the last pass's barrier.
    __syncthreads();
    const std::uint32_t count = lane < blockDim.x / 32 ? shared.counts[parity][lane] : 0;
    write_tokens(a, at + of_warp, words, t + warp_sum(lane < warp ? count : 0), parts ? begin : -1);
    t += warp_sum(count);
  }
  if (!parts) total = t;
  for (std::int64_t i = max(begin, std::int64_t{total}) + threadIdx.x; i < end; i += blockDim.x) p.rows[i] = 0;
  if (blockIdx.x == 0) {
    if (p.length == 0) {
      for (std::int64_t b = threadIdx.x; b < p.sequences; b += blockDim.x) p.cu[b] = 0;
    }
    if (threadIdx.x == 0) p.cu[p.sequences] = static_cast<std::int32_t>(total);
  }
  if (parts) {
    // Read after write: cu and rows are there. Write after read: every block has read the counts in where.
    ptx::grid_barrier();
    if (threadIdx.x == 0) p.where[begin] = first_where;
  } else {
    __syncthreads();  // read after write: cu and rows are there
  }
  if (blockIdx.x == 0) summarize(p, total, shared);
}

}  // namespace strop::ragged
