// Where packed sequences begin, as a larger batch has it: the contract between the public API and the backends.
//
// Maths. cu_out[i] = cu[i] for the numbers that there are, `count` behind. first_out[i] = min(cu[i], count - 1) for a
// sequence that there is, 0 behind.
//
// Bytes. cu once, 8 of each sequence: latency is all.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"

namespace strop::ragged {

// A checked call.
struct PackStarts {
  std::int64_t sequences = 0, most = 0;  // of cu, and of the outputs
  std::int64_t count = 0;
  Integers cu;
  std::int32_t *cu_out = nullptr, *first_out = nullptr;  // most + 1 and most
};

// Number i of both outputs.
#ifdef __CUDACC__
__host__ __device__
#endif
    inline void
    pack_start(const PackStarts& p, std::int64_t i) {
  const std::int64_t at = i <= p.sequences ? p.cu.at(i) : p.count;
  p.cu_out[i] = static_cast<std::int32_t>(at);
  if (i < p.most) p.first_out[i] = i < p.sequences ? static_cast<std::int32_t>(at < p.count ? at : p.count - 1) : 0;
}

// The oracle: by whole ranges, one thread.
void reference(const PackStarts& problem);

// Host memory.
Status run_cpu(const PackStarts& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const PackStarts& problem, void* stream);

}  // namespace strop::ragged
