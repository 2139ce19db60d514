#include <algorithm>

#include "base/element.h"
#include "kernels/ragged/token_index.h"

namespace strop::ragged {

// Nothing here is shared with the backends: what they read off rows is counted run by run.
void reference(const Problem& p) {
  std::int64_t t = 0;
  for (int i = 0; i < 4; ++i) p.summary[i] = 0;
  for (std::int64_t b = 0; b < p.sequences; ++b) {
    p.cu[b] = static_cast<std::int32_t>(t);
    const std::int64_t before = t;
    int runs = 0;
    bool last = false;
    for (std::int64_t l = 0; l < p.length; ++l) {
      const std::int64_t position = b * p.length + l;
      const bool real = load_nonzero(p.mask.data, p.mask.dtype, b * p.mask.stride_sequence + l * p.mask.stride);
      p.where[position] = real ? static_cast<std::int32_t>(t) : -1;
      if (real) p.rows[t++] = static_cast<std::int32_t>(position);
      if (real && !last) ++runs;
      if (l == 0 && !real) p.summary[2] = 1;
      last = real;
    }
    if (p.length == 0) p.summary[2] = 1;
    if (runs > 1) p.summary[3] = 1;
    p.summary[1] = std::max(p.summary[1], t - before);
  }
  p.cu[p.sequences] = static_cast<std::int32_t>(t);
  p.summary[0] = t;
  for (; t < p.positions(); ++t) p.rows[t] = 0;
}

}  // namespace strop::ragged
