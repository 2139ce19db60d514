// Rows taken by number on the CPU: whole rows by memcpy, which has all that SIMD could give, and others by elements.
#include <cstdint>
#include <cstring>

#include "base/chunks.h"
#include "kernels/ragged/take_rows.h"

namespace strop::ragged {
namespace {

// Rows [first, end), of elements of T's size.
template <class T>
void take(const TakeRows& p, std::int64_t first, std::int64_t end) {
  const bool whole = (p.x.stride == 1 && p.out.stride == 1) || p.n == 1;
  const auto n = static_cast<std::size_t>(p.n);
  for (std::int64_t i = first; i < end; ++i) {
    const std::int64_t row = p.row(i);
    const bool there = row >= 0 && row < p.x_rows;
    T* const to = static_cast<T*>(p.out.data) + i * p.out.stride_row;
    if (!there) {
      if (whole) {
        std::memset(to, 0, n * sizeof(T));
      } else {
        for (std::int64_t j = 0; j < p.n; ++j) to[j * p.out.stride] = 0;
      }
      continue;
    }
    const T* const from = static_cast<const T*>(p.x.data) + row * p.x.stride_row;
    if (whole) {
      std::memcpy(to, from, n * sizeof(T));
    } else {
      for (std::int64_t j = 0; j < p.n; ++j) to[j * p.out.stride] = from[j * p.x.stride];
    }
  }
}

}  // namespace

Status run_cpu(const TakeRows& p) {
  const auto take_some = p.bytes == 1   ? take<std::uint8_t>
                         : p.bytes == 2 ? take<std::uint16_t>
                         : p.bytes == 4 ? take<std::uint32_t>
                                        : take<std::uint64_t>;
  for_each_range(p.rows, p.n, [&](std::int64_t first, std::int64_t end) { take_some(p, first, end); });
  return {};
}

}  // namespace strop::ragged
