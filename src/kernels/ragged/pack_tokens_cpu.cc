// A call's tokens where a graph reads them, on the CPU.
#include <cstdint>
#include <cstring>

#include "kernels/ragged/pack_tokens.h"

namespace strop::ragged {

Status run_cpu(const PackTokens& p) {
  for (std::int64_t i = 0; i <= p.most; ++i) p.start(i);
  for (int k = 0; k < p.inputs; ++k) {
    const TokenInput& in = p.input[k];
    for (std::int64_t t = 0; t < p.count; ++t) {
      const char* const from = in.x + p.row(in, t) * in.stride_row;
      std::memcpy(in.out + t * in.row_bytes, from, static_cast<std::size_t>(in.row_bytes));
    }
  }
  return {};
}

}  // namespace strop::ragged
