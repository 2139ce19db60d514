// How the States of a row's parts meet, and the losses of all rows: between warps in shared memory, between blocks by
// messages.
#pragma once

#include "base/message.cuh"
#include "base/ptx/mbarrier.cuh"
#include "kernels/reverse_kl/reverse_kl_online.cuh"
#include "kernels/reverse_kl/reverse_kl_rows.cuh"

namespace strop::reverse_kl {

inline constexpr int kRows = 4;  // on their way between warps and blocks; a row's number modulo this is its place

struct alignas(128) Shared {  // the rings come behind it, in whole lines
  ValidRows valid;
  State warps[kRows][kMaxWarps];                       // of this part
  Gradient rows[kRows];                                // of all parts
  std::uint64_t warps_there[kRows], row_there[kRows];  // mbarriers: the above may be read
  unsigned counts[32];
  float losses[32];
};

struct StateMessage {
  Message parts[3];
};
struct Exchange {                          // in the workspace
  StateMessage states[kRows][kMaxBlocks];  // of each part, to the row's first part
  StateMessage rows[kRows][kMaxBlocks];    // of all parts, from it
  Message losses[2][kMaxGroups];           // of each block's two exchanging warps
};
static_assert(sizeof(Exchange) <= 96 * 1024 && kMaxBlocks <= kMaxGroups, "the workspace is too small");

__device__ __forceinline__ std::uint64_t pack(float x, float y) {
  return std::uint64_t{__float_as_uint(y)} << 32 | __float_as_uint(x);
}
__device__ __forceinline__ void send_state(StateMessage* to, const State& s, std::uint64_t tag) {
  send(&to->parts[0], pack(s.xmax, s.sx), tag);
  send(&to->parts[1], pack(s.ymax, s.sy), tag);
  send(&to->parts[2], pack(s.t, 0), tag);
}
__device__ __forceinline__ State receive_state(const StateMessage* from, std::uint64_t tag) {
  Message m[3];
  do {  // all polled at once: one trip, not three
#pragma unroll
    for (int i = 0; i < 3; ++i) m[i] = ptx::poll_b128(&from->parts[i]);
  } while (m[0].high != tag || m[1].high != tag || m[2].high != tag);
  const auto low = [](const Message& v) { return __uint_as_float(static_cast<std::uint32_t>(v.low)); };
  const auto high = [](const Message& v) { return __uint_as_float(static_cast<std::uint32_t>(v.low >> 32)); };
  return {low(m[0]), high(m[0]), low(m[2]), low(m[1]), high(m[1])};
}

// One of the block's last two warps: the States of the rows with number `first`, `first` + 2, … from all parts to the
// other warps; and the loss.
__device__ __forceinline__ void exchange_rows(const Args& a, Shared& shared, int first, int rank, int group,
                                              float weight) {
  Exchange& exchange = *static_cast<Exchange*>(a.p.workspace);
  const int lane = threadIdx.x % 32, warps = a.tuning.threads / 32, parts = a.tuning.parts;
  const bool fused = a.p.grad.data != nullptr;  // else the first part alone needs the sum
  Rows rows(a, shared.valid, group);
  unsigned row;
  float loss = 0;
  for (int i = 0; rows.next(a, shared.valid, row); ++i) {
    if ((i & 1) != first) continue;
    const int place = i % kRows;
    ptx::mbarrier_wait(&shared.warps_there[place], i / kRows & 1);  // read after write: the warps' States
    State s = warp_merge(lane < warps ? shared.warps[place][lane] : State{});
    if (parts > 1) {
      // By way of the first part: if all polled all, the polls would take a good part of L2's bandwidth. Write after
      // read: these places are written again for row i + 4, by a part that has received this row's sum from the first,
      // which therefore has read the part's; and by the first when every part has sent row i + 2, or here i + 4.
      StateMessage* const states = exchange.states[place];
      StateMessage* const total = &exchange.rows[place][group];
      if (rank > 0) {
        if (lane == 0) {
          if (!fused && i >= kRows) receive_state(total, a.tag + i - kRows);
          send_state(&states[blockIdx.x], s, a.tag + i);
          if (fused) s = receive_state(total, a.tag + i);
        }
      } else {
        if (lane > 0) s = State{};
#pragma unroll 1
        for (int p = lane; p < parts; p += 32)
          if (p > 0) merge(s, receive_state(&states[blockIdx.x + p], a.tag + i));
        s = warp_merge(s);
        if (lane == 0) send_state(total, s, a.tag + i);
      }
    }
    __syncwarp();  // write after read: all lanes have read the warps' States before lane 0 says that they may go on
    if (lane == 0) {
      shared.rows[place] = Gradient(s, weight);
      ptx::mbarrier_arrive(&shared.row_there[place]);
    }
    if (rank == 0) loss += divergence(s);
  }
  if (lane == 0) send(&exchange.losses[first][blockIdx.x], pack(loss, 0), a.tag);
}

// The last block, all of it: the loss from what every block has sent.
__device__ __forceinline__ void finish(const Args& a, Shared& shared, float weight) {
  Exchange& exchange = *static_cast<Exchange*>(a.p.workspace);
  float sum = 0;
  for (unsigned b = threadIdx.x; b < 2 * gridDim.x; b += blockDim.x) {
    Message* const loss = &exchange.losses[b & 1][b >> 1];
    sum += __uint_as_float(static_cast<std::uint32_t>(receive(loss, a.tag)));
    clear(loss);
  }
  sum = block_sum(sum, shared.losses);
  if (threadIdx.x == 0) *a.p.loss = sum * weight;
  // Every warp that exchanges has sent its loss, so none still reads anything. (A block_sum lies between.)
  for (unsigned b = threadIdx.x; a.tuning.parts > 1 && b < gridDim.x; b += blockDim.x) {
#pragma unroll 1
    for (int k = 0; k < 3 * kRows; ++k) {
      clear(&exchange.states[k / 3][b].parts[k % 3]);
      if (b < static_cast<unsigned>(a.groups)) clear(&exchange.rows[k / 3][b].parts[k % 3]);
    }
  }
}

}  // namespace strop::reverse_kl
