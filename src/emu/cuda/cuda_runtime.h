// The part of CUDA that kernels and launchers of this library use, for the emulator. A kernel is compiled against this
// folder instead of CUDA's headers.
#pragma once

#include "cuda_runtime_api.h"
#include "device_functions.h"
#include "device_math.h"
#include "host_defines.h"
#include "vector_types.h"
