#include <algorithm>

#include "kernels/ragged/pack_tokens.h"

namespace strop::ragged {
namespace {

void reference_starts(const MoveTokens& p) {
  std::fill(p.cu_out, p.cu_out + p.most + 1, static_cast<std::int32_t>(p.count));
  std::fill(p.first_out, p.first_out + p.most, 0);
  for (std::int64_t i = 0; i <= p.sequences; ++i) p.cu_out[i] = static_cast<std::int32_t>(p.cu.at(i));
  for (std::int64_t i = 0; i < p.sequences; ++i)
    p.first_out[i] = static_cast<std::int32_t>(std::min(p.cu.at(i), p.count - 1));
}

}  // namespace

void reference(const MoveTokens& p) {
  if (p.cu_out != nullptr) reference_starts(p);
  for (int k = 0; k < p.parts; ++k) {
    const TokenPart& part = p.part[k];
    for (std::int64_t i = 0; i < part.count; ++i) {
      std::int64_t row = part.indexed ? p.index[i] : i;
      while (part.repeated && row >= part.x_rows) row -= part.x_rows;
      const bool there = row >= 0 && row < part.x_rows;
      for (std::int64_t j = 0; j < part.row_bytes; ++j)
        part.out[i * part.row_bytes + j] = there ? part.x[row * part.stride_row + j] : 0;
    }
  }
}

}  // namespace strop::ragged
