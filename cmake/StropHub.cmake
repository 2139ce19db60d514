# _C_hub_cpu and, with CUDA, _C_hub_cuda: the Python module once more for the Hugging Face Hub, built on demand
# (tools/assemble_hub). The Hub loads versions of a kernel side by side, so the module and the namespace of its
# operators are both called _strop_<backend>_<id>. The one for the CPU has no CUDA in it, which makes it small. Both have
# the losses alone, nothing of rewritten models.

set(STROP_HUB_ID "" CACHE STRING "What tells this version of the sources from others; without it nothing is built")
mark_as_advanced(STROP_HUB_ID)
if(NOT STROP_HUB_ID)
  return()
endif()

# What they are compiled from; tools/assemble_hub reads it here.
set(strop_hub_bindings "bindings/torch/[^/]+")
set(strop_hub_api "include/strop/(launch|losses|parallel|status|tensor_view)[.]h|src/losses[.]cc")
set(strop_hub_kernels "src/(base|kernels/policy_loss|kernels/reverse_kl)/.*")

set(strop_hub_binding_sources ${strop_binding_sources})
list(FILTER strop_hub_binding_sources INCLUDE REGEX "/(${strop_hub_bindings})$")

function(strop_hub_module backend)
  set(target _C_hub_${backend})
  set(name _strop_${backend}_${STROP_HUB_ID})
  add_library(${target} MODULE EXCLUDE_FROM_ALL ${strop_hub_binding_sources})
  if(backend STREQUAL "cpu")
    set(STROP_WITH_CUDA OFF)  # in this function and those that it calls
    # An archive, of which the module takes what it calls.
    set(api ${strop_api_sources})
    list(FILTER api INCLUDE REGEX "/(${strop_hub_api})$")
    add_library(strop_hub_core STATIC EXCLUDE_FROM_ALL ${api} $<TARGET_OBJECTS:strop_objects>)
    target_compile_features(strop_hub_core PUBLIC cxx_std_20)
    target_include_directories(
      strop_hub_core
      PUBLIC ${PROJECT_SOURCE_DIR}/include
      PRIVATE ${PROJECT_SOURCE_DIR}/src)
    set_target_properties(strop_hub_core PROPERTIES POSITION_INDEPENDENT_CODE ON)
    strop_compile_options(strop_hub_core)
    target_link_libraries(${target} PRIVATE strop_hub_core Threads::Threads)
  else()
    target_link_libraries(${target} PRIVATE strop)
  endif()
  strop_binding(${target})
  target_compile_definitions(${target} PRIVATE STROP_MODULE=${name} STROP_OPS_NAMESPACE=${name} STROP_LOSSES_ONLY=1)
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
