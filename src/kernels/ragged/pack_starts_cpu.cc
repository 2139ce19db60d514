// Where packed sequences begin, on the CPU.
#include <cstdint>

#include "kernels/ragged/pack_starts.h"

namespace strop::ragged {

Status run_cpu(const PackStarts& p) {
  for (std::int64_t i = 0; i <= p.most; ++i) pack_start(p, i);
  return {};
}

}  // namespace strop::ragged
