// Which of several blocks comes last, counted in 8 bytes of global memory that may hold anything before.
//
// Nobody waits: each block leaves its part of a result in memory and arrives, and the last one, which sees what all
// others did before they arrived, puts the parts together. In an order of its own choice, so that the result does not
// depend on who was last.
#pragma once

#include <cstdint>

#include "base/ptx/fences.cuh"

namespace strop {

inline constexpr std::uint64_t kArrivals = 0xffff;  // the bits that count; those above are the launch's tag

// By one thread of each of `blocks` blocks (65535 at most), after a barrier behind what it hands over; what it saw is
// the block's after a barrier. Counts of another tag are garbage (launch_tag.h). The last one leaves 0, so that a
// graph's replay, which has the same tag, counts anew.
__device__ __forceinline__ bool last_to_arrive(std::uint64_t* counter, std::uint64_t tag, unsigned blocks) {
  tag &= ~kArrivals;
  std::uint64_t found = 0, expected, next;
  do {
    expected = found;
    const std::uint64_t before = (expected & ~kArrivals) == tag ? expected & kArrivals : 0;
    next = before + 1 == blocks ? 0 : tag | (before + 1);
    found = ptx::compare_swap_u64(counter, expected, next);
  } while (found != expected);
  return next == 0;
}

}  // namespace strop
