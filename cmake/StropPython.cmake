# The Python module strop._C: one file for every Python >= 3.10, every torch >= 2.11, with and without CUDA.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)

# Headers of the limited API, which are the same for every version from 3.10 on. Not find_package's Development
# component: the headers may lie in a folder of the project instead of beside the interpreter.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['include'])"
  OUTPUT_VARIABLE strop_python_include OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_path(
  STROP_PYTHON_INCLUDE_DIR Python.h
  HINTS ${strop_python_include}
  PATH_SUFFIXES python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}
  REQUIRED)

# torch is only looked at, not imported: that takes seconds.
execute_process(
  COMMAND
    ${Python_EXECUTABLE} -c
    "import importlib.metadata as m, importlib.util as u
print(u.find_spec('torch').submodule_search_locations[0], m.version('torch'), sep=';', end='')"
  OUTPUT_VARIABLE strop_torch RESULT_VARIABLE strop_torch_result)
if(NOT strop_torch_result EQUAL 0)
  message(FATAL_ERROR "STROP_PYTHON needs torch in the environment of ${Python_EXECUTABLE}")
endif()
list(POP_FRONT strop_torch STROP_TORCH_DIR STROP_TORCH_VERSION)
if(STROP_TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "strop needs torch >= 2.11, ${Python_EXECUTABLE} has ${STROP_TORCH_VERSION}")
endif()
message(STATUS "strop: Python module for torch >= 2.11, built against ${STROP_TORCH_VERSION} in ${STROP_TORCH_DIR}")

add_library(_C MODULE ${strop_binding_sources})
target_link_libraries(_C PRIVATE strop ${STROP_TORCH_DIR}/lib/libtorch_cpu.so)
if(STROP_WITH_CUDA)
  target_link_libraries(_C PRIVATE CUDA::cudart_static)
endif()
target_include_directories(_C PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_include_directories(
  _C SYSTEM PRIVATE ${STROP_TORCH_DIR}/include ${STROP_TORCH_DIR}/include/torch/csrc/api/include
                    ${STROP_PYTHON_INCLUDE_DIR} ${STROP_PYTHON_INCLUDE_DIR}/..)
target_compile_definitions(_C PRIVATE Py_LIMITED_API=0x030A0000 TORCH_TARGET_VERSION=0x020b000000000000)
strop_compile_options(_C)

# What strop._C.build_info() tells.
set(strop_nvcc "")
set(strop_architectures "")
if(STROP_WITH_CUDA)
  set(strop_nvcc "${CMAKE_CUDA_COMPILER_VERSION}")
  string(REPLACE ";" " " strop_architectures "${CMAKE_CUDA_ARCHITECTURES}")
endif()
target_compile_definitions(
  _C
  PRIVATE STROP_VERSION="${PROJECT_VERSION}"
          STROP_CUDA_ARCHITECTURES="${strop_architectures}"
          STROP_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
          STROP_NVCC="${strop_nvcc}"
          STROP_TORCH_VERSION_BUILT="${STROP_TORCH_VERSION}")

# No rpath to torch: libtorch_cpu.so is loaded already when the module is, and found by its soname.
set_target_properties(
  _C
  PROPERTIES PREFIX ""
             SUFFIX ".abi3.so"
             SKIP_BUILD_RPATH ON
             LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/python/strop)
target_link_options(_C PRIVATE -Wl,--exclude-libs,ALL -Wl,--gc-sections)
install(TARGETS _C LIBRARY DESTINATION strop COMPONENT python)
