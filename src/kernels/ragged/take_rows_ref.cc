#include <cstring>

#include "kernels/ragged/take_rows.h"

namespace strop::ragged {

void reference(const TakeRows& p) {
  for (std::int64_t i = 0; i < p.rows; ++i) {
    std::int64_t row = p.index.at(i);
    while (p.repeated && p.x_rows > 0 && row >= p.x_rows) row -= p.x_rows;
    for (std::int64_t j = 0; j < p.n; ++j) {
      char* const to = static_cast<char*>(p.out.data) + (i * p.out.stride_row + j * p.out.stride) * p.bytes;
      if (row < 0 || row >= p.x_rows) {
        std::memset(to, 0, static_cast<std::size_t>(p.bytes));
      } else {
        const char* const from = static_cast<const char*>(p.x.data) + (row * p.x.stride_row + j * p.x.stride) * p.bytes;
        std::memcpy(to, from, static_cast<std::size_t>(p.bytes));
      }
    }
  }
}

}  // namespace strop::ragged
