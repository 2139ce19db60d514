// How many bytes of rows are moved at once.
#pragma once

#include <cstdint>

namespace strop::ragged {

// The largest power of two, at most 16, that divides all the numbers whose bits `together` has: addresses, and bytes
// from row to row and of a row.
inline int unit_dividing(std::uintptr_t together) {
  int unit = 16;
  while (together % static_cast<std::uintptr_t>(unit) != 0) unit /= 2;
  return unit;
}

}  // namespace strop::ragged
