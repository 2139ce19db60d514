#include <algorithm>

#include "kernels/ragged/pack_tokens.h"

namespace strop::ragged {

void reference(const PackTokens& p) {
  std::fill(p.cu_out, p.cu_out + p.most + 1, static_cast<std::int32_t>(p.count));
  std::fill(p.first_out, p.first_out + p.most, 0);
  for (std::int64_t i = 0; i <= p.sequences; ++i) p.cu_out[i] = static_cast<std::int32_t>(p.cu.at(i));
  for (std::int64_t i = 0; i < p.sequences; ++i)
    p.first_out[i] = static_cast<std::int32_t>(std::min(p.cu.at(i), p.count - 1));
  for (int k = 0; k < p.inputs; ++k) {
    const TokenInput& in = p.input[k];
    for (std::int64_t t = 0; t < p.count; ++t) {
      std::int64_t row = p.rows != nullptr ? p.rows[t] : t;
      while (in.repeated && row >= in.x_rows) row -= in.x_rows;
      for (std::int64_t j = 0; j < in.row_bytes; ++j) in.out[t * in.row_bytes + j] = in.x[row * in.stride_row + j];
    }
  }
}

}  // namespace strop::ragged
