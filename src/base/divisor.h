// Division by a number that is known before a kernel starts, in a multiplication and a shift.
#pragma once

#include <bit>
#include <cstdint>

namespace strop {

// n / d = n (2^s / d + 1) / 2^s for n < 2^31 and 1 <= d <= 2^31, with s = 31 + log2(d) rounded up (Granlund,
// Montgomery 1994, doi:10.1145/178243.178249).
struct Divisor {
  std::uint32_t inverse = 1u << 31 | 1, shift = 31;

  constexpr Divisor() = default;
  explicit constexpr Divisor(std::uint32_t d)
      : inverse(static_cast<std::uint32_t>((std::uint64_t{1} << (31 + std::bit_width(d - 1))) / d + 1)),
        shift(31 + static_cast<std::uint32_t>(std::bit_width(d - 1))) {}

  constexpr std::uint32_t divide(std::uint32_t n) const {
    return static_cast<std::uint32_t>(std::uint64_t{n} * inverse >> shift);
  }
};

}  // namespace strop
