// Where instructions that take addresses in shared memory find it.
#pragma once

#include <cstdint>

namespace strop::ptx {

// The address in the window of shared memory that a pointer into it stands for.
__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

}  // namespace strop::ptx
