// Planted: operations of a warp for which its lanes do not meet, or meet with different ideas.
#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr unsigned kFullWarp = 0xffffffffu, kLowHalf = 0x0000ffffu, kHighHalf = 0xffff0000u;

template <bool kBroken>
__global__ void shuffle_after_return(const float* in, float* out, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (kBroken && t >= n) return;
  const float v = t < n ? in[t] : 0;
  const float next = __shfl_down_sync(kFullWarp, v, 1);  // planted: shuffle_after_return
  if (t < n) out[t] = next;
}
PLANT(shuffle_after_return, kWarp, kSynccheck,
      "Lanes without an element have returned, but the mask still names them.") {
  Buffer<float> in(20, index), out(20);
  (void)launch("planted", shuffle_after_return<kBroken>, {.block = 32}, in, out, 20);
  return out.holds([](int i) { return i < 19 ? i + 1 : 0; });
}

template <bool kBroken>
__global__ void partial_warp(const float* in, float* out) {
  const unsigned mask = kBroken || threadIdx.x < 32 ? kFullWarp : kLowHalf;
  out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], 1);  // planted: partial_warp
}
PLANT(partial_warp, kWarp, kSynccheck, "The last warp of a block of 48 threads has 16 lanes, not 32.") {
  Buffer<float> in(48, index), out(48);
  (void)launch("planted", partial_warp<kBroken>, {.block = 48}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

template <bool kBroken>
__global__ void shuffle_masks_differ(const float* in, float* out) {
  const unsigned t = threadIdx.x, mask = t < 16 ? kLowHalf : kBroken ? kFullWarp : kHighHalf;
  out[t] = __shfl_xor_sync(mask, in[t], 1);  // planted: shuffle_masks_differ
}
PLANT_THAT_HANGS(shuffle_masks_differ, kWarp, kSynccheck,
                 "Half of the lanes wait for all, the other half for each other.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", shuffle_masks_differ<kBroken>, {.block = 32}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

template <bool kBroken>
__global__ void shuffle_from_outside(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  float sum = in[t];
  if (t < 16) {
    for (int d = kBroken ? 16 : 8; d > 0; d /= 2) {
      sum += __shfl_xor_sync(kLowHalf, sum, d);  // planted: shuffle_from_outside
    }
  }
  out[t] = sum;
}
PLANT(shuffle_from_outside, kWarp, kNone,
      "Sixteen lanes add up as if they were 32: what lanes outside of the mask give is undefined.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", shuffle_from_outside<kBroken>, {.block = 32}, in, out);
  return out.holds([](int i) { return i < 16 ? 120 : i; });
}

template <bool kBroken>
__global__ void lanes_disagree(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  if (!kBroken || t < 16) {
    out[t] = __shfl_xor_sync(kFullWarp, in[t], 1);  // planted: lanes_disagree
  } else {
    out[t] = __shfl_up_sync(kFullWarp, in[t], 1);  // planted: lanes_disagree
  }
}
PLANT_THAT_HANGS(lanes_disagree, kWarp, kSynccheck, "The lanes of a warp take part in two different shuffles.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", lanes_disagree<kBroken>, {.block = 32}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

template <bool kBroken>
__global__ void ballot_in_a_branch(const float* in, unsigned* out) {
  const unsigned t = threadIdx.x;
  const bool large = in[t] >= 10;
  unsigned lanes = 0;
  if (!kBroken || large) lanes = __ballot_sync(kFullWarp, large);  // planted: ballot_in_a_branch
  __syncthreads();                                                 // for the other lanes to have somewhere to wait
  out[t] = lanes;
}
PLANT_THAT_HANGS(
    ballot_in_a_branch, kWarp, kSynccheck,
    "A ballot of the full warp in a branch that some lanes do not take; they wait for the others elsewhere.") {
  Buffer<float> in(32, index);
  Buffer<unsigned> out(32);
  (void)launch("planted", ballot_in_a_branch<kBroken>, {.block = 32}, in, out);
  return out.holds([](int) { return ~0u << 10; });
}

template <bool kBroken>
__global__ void not_in_the_mask(const float* in, float* out) {
  __shared__ float s[32];
  const unsigned t = threadIdx.x;
  s[t] = in[t];
  __syncwarp(kBroken || t < 16 ? kLowHalf : kHighHalf);  // planted: not_in_the_mask
  out[t] = s[t ^ 1];
}
PLANT(not_in_the_mask, kWarp, kSynccheck, "Lanes call __syncwarp with a mask in which they are not.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", not_in_the_mask<kBroken>, {.block = 32}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

template <bool kBroken>
__global__ void activemask_taken_for_all(const float* in, float* out) {
  const unsigned t = threadIdx.x, mask = kBroken ? __activemask() : kFullWarp;
  out[t] = __shfl_xor_sync(mask, in[t], 1);  // planted: activemask_taken_for_all
}
PLANT(activemask_taken_for_all, kWarp, kNone,
      "__activemask is whoever happens to be there: it need not be all who take the branch.") {
  Buffer<float> in(32, index), out(32);
  (void)launch("planted", activemask_taken_for_all<kBroken>, {.block = 32}, in, out);
  return out.holds([](int i) { return i ^ 1; });
}

}  // namespace
}  // namespace strop::planted
