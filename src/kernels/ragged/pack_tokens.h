// What a call's tokens are, put where a CUDA graph reads it, and its results taken from there: the contract between the
// public API and the backends.
//
// Maths. Of each part, out[i] = x[index[i]] for i < count, index[i] modulo x's rows where x repeats, zeros where there
// is no such row; without an index, i itself. Packing, the index is the tokens' places; unpacking, the places' tokens.
// With a packing come starts: cu_out[i] = cu[i] for the numbers that there are, `count` behind. first_out[i] =
// min(cu[i], count - 1) for a sequence that there is, 0 behind.
//
// Bytes. Each part's rows twice, the index, cu and 8 of each sequence. 8192 tokens with ids, kinds and positions of 8
// bytes: 0.5 MB, 0.2 us at 3 TB/s: latency is all. 8192 results of 768 halves: 25 MB, 8.4 us.
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

// Parts of one call.
inline constexpr int kMostParts = 8;

// One of them; strides and sizes in bytes, out contiguous.
struct TokenPart {
  const char* x = nullptr;
  char* out = nullptr;
  std::int64_t stride_row = 0, row_bytes = 0;
  std::int64_t x_rows = 0;  // others give zeros
  std::int64_t count = 0;   // rows of out
  bool indexed = false, repeated = false;
};

// A checked call.
struct MoveTokens {
  const std::int32_t* index = nullptr;
  int parts = 0;
  TokenPart part[kMostParts];
  // Starts, where cu_out is not null.
  std::int64_t count = 0;
  std::int64_t sequences = 0, most = 0;  // of cu, and of the outputs
  Integers cu;
  std::int32_t *cu_out = nullptr, *first_out = nullptr;  // most + 1 and most

  // The row of x for row i of a part's out, or one outside of it.
  STROP_BOTH constexpr std::int64_t row(const TokenPart& part, std::int64_t i) const {
    const std::int64_t at = part.indexed ? index[i] : i;
    return part.repeated && at >= part.x_rows && part.x_rows > 0 ? at % part.x_rows : at;
  }

  // Number i of both outputs.
  STROP_BOTH void start(std::int64_t i) const {
    const std::int64_t at = i <= sequences ? cu.at(i) : count;
    cu_out[i] = static_cast<std::int32_t>(at);
    if (i < most) first_out[i] = i < sequences ? static_cast<std::int32_t>(at < count ? at : count - 1) : 0;
  }
};

// The oracle: by whole ranges, one thread.
void reference(const MoveTokens& problem);

// Host memory.
Status run_cpu(const MoveTokens& problem);

// Device memory, one kernel on `stream`. The current device must be the inputs'.
Status run_cuda(const MoveTokens& problem, void* stream);

}  // namespace strop::ragged

#undef STROP_BOTH
