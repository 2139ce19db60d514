# _C_hub_cpu and, with CUDA, _C_hub_cuda: the Python module once more for the Hugging Face Hub, built on demand
# (tools/assemble_hub). The Hub loads versions of a kernel side by side, so the module and the namespace of its
# operators are both called _strop_<backend>_<id>. The one for the CPU has no CUDA in it, which makes it small. Neither
# has the operators of rewritten models (inference*.cc), as the Hub's copy has the losses alone.

set(STROP_HUB_ID "" CACHE STRING "What tells this version of the sources from others; without it nothing is built")
mark_as_advanced(STROP_HUB_ID)
if(NOT STROP_HUB_ID)
  return()
endif()

set(strop_hub_sources ${strop_binding_sources})
list(FILTER strop_hub_sources EXCLUDE REGEX "/inference[^/]*$")

function(strop_hub_module backend)
  set(target _C_hub_${backend})
  set(name _strop_${backend}_${STROP_HUB_ID})
  add_library(${target} MODULE EXCLUDE_FROM_ALL ${strop_hub_sources})
  if(backend STREQUAL "cpu")
    set(STROP_WITH_CUDA OFF)  # in this function and those that it calls
    target_sources(${target} PRIVATE ${strop_api_sources} $<TARGET_OBJECTS:strop_objects>)
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/include)
    target_link_libraries(${target} PRIVATE Threads::Threads)
    target_compile_features(${target} PRIVATE cxx_std_20)
  else()
    target_link_libraries(${target} PRIVATE strop)
  endif()
  strop_binding(${target})
  target_compile_definitions(${target} PRIVATE STROP_MODULE=${name} STROP_OPS_NAMESPACE=${name})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${name} LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/hub)
  # The Hub asks for manylinux_2_28 too: see StropManylinux.cmake.
  target_sources(${target} PRIVATE cmake/manylinux.cc)
  target_link_directories(${target} BEFORE PRIVATE ${strop_stubs})
  target_link_options(${target} PRIVATE -Wl,--exclude-libs,ALL)
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS ${strop_stubs}/libc.so)
  add_dependencies(${target} strop_stubs)
  add_dependencies(strop_hub ${target})
endfunction()

add_custom_target(strop_hub)
strop_hub_module(cpu)
if(STROP_WITH_CUDA)
  strop_hub_module(cuda)
endif()
