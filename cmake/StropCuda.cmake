# Decides STROP_WITH_CUDA from STROP_CUDA and enables the language.

set(STROP_WITH_CUDA OFF)
if(STROP_CUDA STREQUAL "OFF")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Machine code for A100, H100/H200, B200 and RTX Blackwell, PTX of sm_90 for what comes later. The letter a opens
  # instructions of one architecture alone (sm_90a: wgmma; sm_100a, sm_120a: block-scaled matrix products).
  set(strop_architectures "80-real;90a-real;100a-real;120a-real;90-virtual")
  if(PROJECT_IS_TOP_LEVEL)
    set(CMAKE_CUDA_ARCHITECTURES "${strop_architectures}"
        CACHE STRING "CUDA architectures, as CMake's property of the same name")
  else()
    set(CMAKE_CUDA_ARCHITECTURES "${strop_architectures}")  # of this folder
  endif()
endif()

include(CheckLanguage)
if(STROP_CUDA STREQUAL "AUTO")
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "strop: no nvcc found, building the CPU backend alone")
    return()
  endif()
  # sm_100a and sm_120a need 12.8; a distribution's own nvcc may be older.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE strop_nvcc_says)
  string(REGEX MATCH "release ([0-9.]+)" strop_nvcc_says "${strop_nvcc_says}")
  if(CMAKE_MATCH_1 VERSION_LESS 12.8)
    message(STATUS "strop: nvcc ${CMAKE_MATCH_1} is older than 12.8, building the CPU backend alone")
    return()
  endif()
endif()

enable_language(CUDA)
find_package(CUDAToolkit 12.8 REQUIRED)
set(STROP_WITH_CUDA ON)
