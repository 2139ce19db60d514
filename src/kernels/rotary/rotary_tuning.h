// How a rotary embedding is cut over the chip: a pure function of a token's size.
#pragma once

#include <algorithm>
#include <cstdint>

namespace strop::rotary {

struct Tuning {
  int block = 128;         // threads
  int tokens_a_block = 1;  // at a time
};

// `slots`: pieces of work a token, one for a thread at a time.
inline Tuning tune(int slots) {
  Tuning t;
  t.block = slots > 128 ? 256 : 128;
  t.tokens_a_block = std::max(1, t.block / slots);
  return t;
}

}  // namespace strop::rotary
