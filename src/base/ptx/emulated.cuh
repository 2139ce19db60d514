// Whether kernels are compiled for the emulator, in which each wrapper of this folder has a second body.
#pragma once

#include <cuda_runtime.h>

#ifndef STROP_EMULATED
#define STROP_EMULATED 0
#endif

#if STROP_EMULATED
#include "emu/device.h"
#endif
