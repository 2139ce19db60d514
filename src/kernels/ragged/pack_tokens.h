// What a call's tokens are, put where a CUDA graph reads it: the contract between the public API and the backends.
//
// Maths. Of each input, out[t] = x[rows[t]] for the tokens t < count, rows[t] modulo x's rows where x repeats; without
// `rows`, t itself. cu_out[i] = cu[i] for the numbers that there are, `count` behind. first_out[i] = min(cu[i],
// count - 1) for a sequence that there is, 0 behind.
//
// Bytes. Each input's tokens twice, rows, cu and 8 of each sequence. 8192 tokens with ids, kinds and positions of 8
// bytes: 0.5 MB, 0.2 us at 3 TB/s: latency is all.
#pragma once

#include <cstdint>

#include "base/integers.h"
#include "strop/status.h"

#ifdef __CUDACC__
#define STROP_BOTH __host__ __device__
#else
#define STROP_BOTH
#endif

namespace strop::ragged {

// Inputs of one call.
inline constexpr int kMostInputs = 8;

// One of them; strides and sizes in bytes, out contiguous.
struct TokenInput {
  const char* x = nullptr;
  char* out = nullptr;
  std::int64_t stride_row = 0, row_bytes = 0;
  std::int64_t x_rows = 0;  // others give zeros
  bool repeated = false;
};

// A checked call.
struct PackTokens {
  std::int64_t count = 0;
  const std::int32_t* rows = nullptr;  // null: token t is row t
  int inputs = 0;
  TokenInput input[kMostInputs];
  std::int64_t sequences = 0, most = 0;  // of cu, and of the outputs
  Integers cu;
  std::int32_t *cu_out = nullptr, *first_out = nullptr;  // most + 1 and most

  // Token t's row of an input, or one outside of it.
  STROP_BOTH constexpr std::int64_t row(const TokenInput& in, std::int64_t t) const {
    const std::int64_t at = rows != nullptr ? rows[t] : t;
    return in.repeated && at >= in.x_rows && in.x_rows > 0 ? at % in.x_rows : at;
  }

  // Number i of both outputs.
  STROP_BOTH void start(std::int64_t i) const {
    const std::int64_t at = i <= sequences ? cu.at(i) : count;
    cu_out[i] = static_cast<std::int32_t>(at);
    if (i < most) first_out[i] = i < sequences ? static_cast<std::int32_t>(at < count ? at : count - 1) : 0;
  }
};

// The oracle: by whole ranges, one thread.
void reference(const PackTokens& problem);

// Host memory.
Status run_cpu(const PackTokens& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const PackTokens& problem, void* stream);

}  // namespace strop::ragged

#undef STROP_BOTH
