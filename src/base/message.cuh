// Messages between the blocks of a launch: 8 bytes in 16 of global memory, with a tag that says that they are there.
//
// Payload and tag are written and read as one, so a message needs no fence, no counter and no atomic operation: it
// costs one trip to L2 and back (0.9 us on an H100, a grid barrier 1.6; lab/003-launch-floor). The memory may hold
// anything before. Three rules make that safe:
// - A tag is 64 bits that no other launch of the process uses and nobody can hit upon but by chance (launch_tag.h).
// - A graph replays a launch with its tag: the launch clears what it sent once all of it has been received.
// - Who waits must not keep senders from running: either one block waits and no other does, or the launch is
// cooperative.
#pragma once

#include <cstdint>

#include "base/ptx/memory.cuh"

namespace strop {

using Message = ptx::Bits128;  // low: payload, high: tag

__device__ __forceinline__ void send(Message* to, std::uint64_t payload, std::uint64_t tag) {
  ptx::send_b128(to, {payload, tag});
}
__device__ __forceinline__ std::uint64_t receive(const Message* from, std::uint64_t tag) {
  Message m;
  do m = ptx::poll_b128(from);
  while (m.high != tag);
  return m.low;
}
__device__ __forceinline__ void clear(Message* m) { ptx::send_b128(m, {0, 0}); }

}  // namespace strop
