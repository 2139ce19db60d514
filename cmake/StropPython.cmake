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

# How the bindings are compiled and linked: for _C, and for its copies for the Hub (StropHub.cmake).
function(strop_binding target)
  target_link_libraries(${target} PRIVATE ${STROP_TORCH_DIR}/lib/libtorch_cpu.so)
  if(STROP_WITH_CUDA)
    target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  endif()
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/bindings/torch)
  target_include_directories(
    ${target} SYSTEM PRIVATE ${STROP_TORCH_DIR}/include ${STROP_TORCH_DIR}/include/torch/csrc/api/include
                             ${STROP_PYTHON_INCLUDE_DIR} ${STROP_PYTHON_INCLUDE_DIR}/..)
  target_compile_definitions(${target} PRIVATE Py_LIMITED_API=0x030A0000 TORCH_TARGET_VERSION=0x020b000000000000)
  strop_compile_options(${target})

  # What build_info() tells.
  set(nvcc "")
  set(architectures "")
  if(STROP_WITH_CUDA)
    set(nvcc "${CMAKE_CUDA_COMPILER_VERSION}")
    string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
  endif()
  target_compile_definitions(
    ${target}
    PRIVATE STROP_VERSION="${PROJECT_VERSION}"
            STROP_CUDA_ARCHITECTURES="${architectures}"
            STROP_COMPILER="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
            STROP_NVCC="${nvcc}"
            STROP_TORCH_VERSION_BUILT="${STROP_TORCH_VERSION}")

  # No rpath to torch: libtorch_cpu.so is loaded already when the module is, and found by its soname.
  set_target_properties(
    ${target}
    PROPERTIES PREFIX ""
               SUFFIX ".abi3.so"
               SKIP_BUILD_RPATH ON
               LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/exports.map)
  target_link_options(${target} PRIVATE -Wl,--version-script,${PROJECT_SOURCE_DIR}/cmake/exports.map -Wl,--gc-sections)
endfunction()

add_library(_C MODULE ${strop_binding_sources})
target_link_libraries(_C PRIVATE strop)
strop_binding(_C)
set_target_properties(_C PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/python/strop)
install(TARGETS _C LIBRARY DESTINATION strop COMPONENT python)

include(StropManylinux)
include(StropHub)
