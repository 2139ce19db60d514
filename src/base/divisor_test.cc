#include "base/divisor.h"

#include <gtest/gtest.h>

namespace strop {
namespace {

TEST(DivisorSmall, IsDivision) {
  constexpr std::uint32_t kMost = 0x7fffffff;
  for (std::uint32_t d : {1u, 2u, 3u, 5u, 7u, 12u, 64u, 641u, 65535u, 65536u, 65537u, 1u << 30, kMost - 1, kMost}) {
    const Divisor by(d);
    for (std::uint32_t k : {0u, 1u, 2u, 3u, 100u, kMost / d / 2, kMost / d}) {
      for (std::int64_t n : {std::int64_t{k} * d - 1, std::int64_t{k} * d, std::int64_t{k} * d + 1}) {
        if (n < 0 || n > kMost) continue;
        EXPECT_EQ(by.divide(static_cast<std::uint32_t>(n)), static_cast<std::uint32_t>(n) / d) << n << " / " << d;
      }
    }
  }
  EXPECT_EQ(Divisor().divide(kMost), kMost);
}

}  // namespace
}  // namespace strop
