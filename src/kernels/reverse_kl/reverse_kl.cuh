// Reverse KL and its gradient in one launch, each logit read once.
//
// Purpose   reverse_kl.h has the maths, reverse_kl_online.cuh the recurrence.
// Design    `parts` blocks share a row and walk their rows together, one block a multiprocessor. Threads copy logits
//           into rings in shared memory ahead of time (reverse_kl_ring.cuh). The States of a part's warps meet in
//           shared memory, those of the parts by messages, which the block's two last warps exchange, one for even rows
//           and one for odd ones. The other warps go on meanwhile: they read row i + 1 before they write the gradient
//           of row i, from the same ring, when its State has come. Nobody else waits for another block.
// Bytes     2 reads and 1 write an element: at (8, 1024, 248320) bf16 12.2 GB fused.
// Floor     bytes over the copy rate: 4.04 ms there on an H100, of which it reaches 95 %. Instructions come close to
// it:
//           280 a step to read, 200 to write, some hundreds a row and warp (lab/004-reverse-kl-ring).
#pragma once

#include "base/ptx/mbarrier.cuh"
#include "kernels/reverse_kl/reverse_kl_exchange.cuh"
#include "kernels/reverse_kl/reverse_kl_ring.cuh"
#include "kernels/reverse_kl/reverse_kl_stream.cuh"
#include "strop/launch.h"

namespace strop::reverse_kl {

// Reads the whole mask, which is cheaper in every block than asking another.
__device__ __forceinline__ void read_mask(const Args& a, Shared& shared) {
  constexpr int kWords = 4;  // of 32 rows, on their way at once
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  unsigned n = 0;
  for (unsigned first = warp * 32 * kWords; first < a.rows; first += blockDim.x * kWords) {
    const Words<kWords> words = valid_rows<kWords>(a, first);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (lane == w) {
        n += __popc(words.word[w]);
        if (first / 32 + w < ValidRows::kWords) shared.valid.words[first / 32 + w] = words.word[w];
      }
    }
  }
  n = block_sum(n, shared.counts);
  if (threadIdx.x == 0) shared.valid.count = n;
  __syncthreads();  // read after write: what all have found
}

// Logits of the two tensors in vectors X and Y of as many elements.
template <class X, class Y, bool kFused>
__global__ void __launch_bounds__(32 * (kMaxWarps + 2), 1) reverse_kl_kernel(const __grid_constant__ Args a) {
  static_assert(X::kE == Y::kE);
  Shared& shared = dynamic_shared<Shared>();
  const int rank = blockIdx.x % a.tuning.parts, group = blockIdx.x / a.tuning.parts;
  if (threadIdx.x == 0) {
    for (int place = 0; place < kRows; ++place) {
      ptx::mbarrier_init(&shared.warps_there[place], a.tuning.threads / 32);
      ptx::mbarrier_init(&shared.row_there[place], 1);
    }
  }
  read_mask(a, shared);  // its barriers are the mbarriers' initialisation's as well
  const float weight = 1.f / static_cast<float>(max(shared.valid.count, 1u));
  if (static_cast<int>(threadIdx.x) < a.tuning.threads) {
    Ring<X, Y> ring(a, shared.valid, reinterpret_cast<char*>(&shared + 1), rank, group,
                    kFused && !a.tuning.held ? 2 : 1);
    ring.start();
    stream_rows<X, Y, kFused>(a, shared, ring, rank, group);
  } else {
    exchange_rows(a, shared, threadIdx.x / 32 - a.tuning.threads / 32, rank, group, weight);
  }
  if (blockIdx.x == gridDim.x - 1) finish(a, shared, weight);
}

}  // namespace strop::reverse_kl
