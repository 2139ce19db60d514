// How many blocks of a kernel the current device holds at once, as cooperative launches need to know.
#pragma once

#include <cstddef>

#include "base/device.h"
#include "strop/status.h"

namespace strop {

// Also allows the kernel all the dynamic shared memory that a block may have. Asks the driver once a thread for each
// combination; the last few are remembered.
Status resident_blocks(const DeviceInfo& device, const void* kernel, int block, std::size_t shared_bytes, int* blocks);

}  // namespace strop
