// Included before everything else in the bindings where kernel-builder compiles them: what CMake defines elsewhere.
// kernel-builder defines TORCH_EXTENSION_NAME, the name of module and operators, and CPU_KERNEL or CUDA_KERNEL.
#pragma once

#define STROP_MODULE TORCH_EXTENSION_NAME
#define STROP_OPS_NAMESPACE TORCH_EXTENSION_NAME
#define STROP_LOSSES_ONLY 1

#ifdef CUDA_KERNEL
#define STROP_WITH_CUDA 1
#define STROP_CUDA_ARCHITECTURES "80-real 90a-real 100a-real 120a-real 90-virtual"  // cuda-capabilities in build.toml
#define STROP_NVCC "unknown"
#else
#define STROP_WITH_CUDA 0
#define STROP_CUDA_ARCHITECTURES ""
#define STROP_NVCC ""
#endif

#define STROP_VERSION "{{ version }}"
#define STROP_COMPILER "kernel-builder's " __VERSION__
#define STROP_TORCH_VERSION_BUILT "unknown"

// The first that has the vector calls which the module is made of; kernel-builder asks for 3.
#undef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
