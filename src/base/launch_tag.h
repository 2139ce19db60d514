// Tags by which the messages of a launch are known (message.cuh).
#pragma once

#include <cstdint>

namespace strop {

// 64 bits that look random, not 0, and another value at each call in this process. Any thread.
std::uint64_t launch_tag();

}  // namespace strop
