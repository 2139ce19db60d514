// A call's tokens where a graph reads them, and its results from there, on the CPU.
#include <cstdint>
#include <cstring>

#include "kernels/ragged/pack_tokens.h"

namespace strop::ragged {

Status run_cpu(const MoveTokens& p) {
  for (std::int64_t i = 0; p.cu_out != nullptr && i <= p.most; ++i) p.start(i);
  for (int k = 0; k < p.parts; ++k) {
    const TokenPart& part = p.part[k];
    const auto bytes = static_cast<std::size_t>(part.row_bytes);
    for (std::int64_t i = 0; i < part.count; ++i) {
      const std::int64_t row = p.row(part, i);
      if (row >= 0 && row < part.x_rows) {
        std::memcpy(part.out + i * part.row_bytes, part.x + row * part.stride_row, bytes);
      } else {
        std::memset(part.out + i * part.row_bytes, 0, bytes);
      }
    }
  }
  return {};
}

}  // namespace strop::ragged
