// What blocks tell each other: counts of valid tokens, and losses, by messages.
#pragma once

#include "base/message.cuh"
#include "base/reduce.cuh"
#include "kernels/policy_loss/policy_loss_tile.cuh"

namespace strop::policy_loss {

struct Exchange {  // in the workspace
  Message losses[kMaxBlocks], counts[kMaxBlocks];
};
static_assert(sizeof(Exchange) <= 96 * 1024, "the workspace is too small");

struct Shared {
  float losses[32];
  std::uint32_t counts[32];
  unsigned long long totals[32];
};

// d (mean) / d (sum) of a segment.
__device__ __forceinline__ float weight_of(const Args& a, unsigned long long count) {
  return a.segment_scale / static_cast<float>(count > 0 ? count : 1);
}

// The count of a segment, in every block of it, from each block's: `first` is the first of them.
__device__ __forceinline__ unsigned long long count_of_segment(const Args& a, Shared& shared, Exchange& exchange,
                                                               unsigned first, unsigned long long own) {
  if (threadIdx.x == 0) send(&exchange.counts[blockIdx.x], own, a.tag);
  // Each count once a block: if every warp read them all, the chip would queue at their few lines of L2.
  unsigned long long count = 0;
  for (int i = threadIdx.x; i < a.tuning.splits; i += blockDim.x) count += receive(&exchange.counts[first + i], a.tag);
  return block_sum(count, shared.totals);
}

// Every block sends its loss; the last one receives them all and writes the call's. `weighted`: they are parts of it
// already; else each is a sum over `count` tokens of one of `splits` blocks of a segment.
__device__ __forceinline__ void finish(const Args& a, Shared& shared, Exchange& exchange, float loss,
                                       std::uint32_t count, bool weighted, bool counts_sent) {
  Message* const losses = exchange.losses;
  if (threadIdx.x == 0) send(&losses[blockIdx.x], std::uint64_t{count} << 32 | __float_as_uint(loss), a.tag);
  if (blockIdx.x != gridDim.x - 1) return;
  const int blocks = gridDim.x, splits = weighted ? blocks : a.tuning.splits, segments = blocks / splits;
  const int width = segments == 1 ? blockDim.x : 32;  // threads a segment
  float sum = 0;
  for (int segment = threadIdx.x / width; segment < segments; segment += blockDim.x / width) {
    float part = 0;
    unsigned long long n = 0;
    for (int i = segment * splits + threadIdx.x % width; i < (segment + 1) * splits; i += width) {
      const std::uint64_t p = receive(&losses[i], a.tag);
      part += __uint_as_float(static_cast<std::uint32_t>(p)), n += p >> 32;
      clear(&losses[i]);
    }
    if (!weighted) {
      n = segments == 1 ? block_sum(n, shared.totals) : warp_sum(n);
      part *= weight_of(a, n);
    }
    sum += part;
  }
  sum = block_sum(sum, shared.losses);
  if (threadIdx.x == 0) *a.p.loss = sum;
  // Every block has sent its loss, so none still reads counts. (A block_sum lies between.)
  for (int i = threadIdx.x; counts_sent && i < blocks; i += blockDim.x) clear(&exchange.counts[i]);
}

}  // namespace strop::policy_loss
