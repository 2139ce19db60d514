#include <algorithm>

#include "kernels/ragged/pack_starts.h"

namespace strop::ragged {

void reference(const PackStarts& p) {
  std::fill(p.cu_out, p.cu_out + p.most + 1, static_cast<std::int32_t>(p.count));
  std::fill(p.first_out, p.first_out + p.most, 0);
  for (std::int64_t i = 0; i <= p.sequences; ++i) p.cu_out[i] = static_cast<std::int32_t>(p.cu.at(i));
  for (std::int64_t i = 0; i < p.sequences; ++i)
    p.first_out[i] = static_cast<std::int32_t>(std::min(p.cu.at(i), p.count - 1));
}

}  // namespace strop::ragged
