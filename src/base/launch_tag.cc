#include "base/launch_tag.h"

#include <atomic>
#include <random>

namespace strop {

std::uint64_t launch_tag() {
  static std::atomic<std::uint64_t> next = [] {
    std::random_device random;
    return static_cast<std::uint64_t>(random()) << 32 | random();
  }();
  for (;;) {
    // SplitMix64 (Steele, Lea and Flood 2014): one to one, so tags differ as the counter does.
    std::uint64_t z = next.fetch_add(0x9e3779b97f4a7c15u, std::memory_order_relaxed);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    if (z != 0) return z;
  }
}

}  // namespace strop
