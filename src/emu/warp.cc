// What a warp's lanes get where they meet: shuffles and votes.
#include <algorithm>

#include "cuda_runtime.h"
#include "emu/launch.h"

namespace strop::emu {

void complete_shuffle(void* const* payloads, unsigned mask) {
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto& s = *static_cast<Shuffle*>(payloads[lane]);
    const bool there = (mask >> s.source & 1) != 0;
    s.result = there ? static_cast<const Shuffle*>(payloads[s.source])->value : s.value;
    s.missing = !there;
  }
}

void complete_ballot(void* const* payloads, unsigned mask) {
  const auto each = [&](auto&& f) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane & 1) != 0) f(lane, *static_cast<Ballot*>(payloads[lane]));
    }
  };
  bool first = true;
  std::uint64_t sum = 0, ballot = 0;
  each([&](unsigned lane, const Ballot& b) {
    const auto s = static_cast<std::int64_t>(sum), v = static_cast<std::int64_t>(b.value);
    if (b.value != 0) ballot |= std::uint64_t{1} << lane;
    switch (b.vote) {
      case Vote::kAdd:
        sum += b.value;
        break;
      case Vote::kMin:
        sum = first ? b.value : std::min(sum, b.value);
        break;
      case Vote::kMax:
        sum = first ? b.value : std::max(sum, b.value);
        break;
      case Vote::kMinSigned:
        sum = static_cast<std::uint64_t>(first ? v : std::min(s, v));
        break;
      case Vote::kMaxSigned:
        sum = static_cast<std::uint64_t>(first ? v : std::max(s, v));
        break;
      case Vote::kAnd:
        sum = first ? b.value : sum & b.value;
        break;
      case Vote::kOr:
        sum |= b.value;
        break;
      case Vote::kXor:
        sum ^= b.value;
        break;
      default:
        break;
    }
    first = false;
  });
  each([&](unsigned, Ballot& b) {
    b.result = sum;
    if (b.vote == Vote::kBallot) b.result = ballot;
    if (b.vote != Vote::kMatch && b.vote != Vote::kMatchAll) return;
    std::uint64_t same = 0;
    each([&](unsigned lane, const Ballot& other) { same |= other.value == b.value ? std::uint64_t{1} << lane : 0; });
    b.result = b.vote == Vote::kMatchAll && same != mask ? 0 : same;
  });
}

}  // namespace strop::emu
