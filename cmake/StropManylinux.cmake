# Programs and modules that run where manylinux_2_28 does, whatever the system has that builds them: their own objects in
# a second link against libraries that have nothing newer (tools/link_stubs). The target manylinux, for `make wheel`.

set(strop_stubs ${PROJECT_BINARY_DIR}/manylinux/stubs)
add_custom_command(
  OUTPUT ${strop_stubs}/libc.so
  COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/link_stubs ${CMAKE_CXX_COMPILER} ${strop_stubs}
  DEPENDS ${PROJECT_SOURCE_DIR}/tools/link_stubs
  COMMENT "Writing libraries of manylinux_2_28 to link with"
  VERBATIM)
add_custom_target(strop_stubs DEPENDS ${strop_stubs}/libc.so)
add_custom_target(manylinux)

# Links `target` again as `target`_manylinux, into manylinux/`folder` of the build tree.
function(strop_manylinux target folder)
  set(again ${target}_manylinux)
  set(sources $<TARGET_OBJECTS:${target}> ${PROJECT_SOURCE_DIR}/cmake/manylinux.cc)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE)
    add_executable(${again} EXCLUDE_FROM_ALL ${sources})
    target_compile_definitions(${again} PRIVATE STROP_MANYLINUX_PROGRAM)
  else()
    add_library(${again} MODULE EXCLUDE_FROM_ALL ${sources})
  endif()
  set_target_properties(${again} PROPERTIES OUTPUT_NAME ${target})
  foreach(property LINK_LIBRARIES LINK_OPTIONS LINK_DEPENDS OUTPUT_NAME PREFIX SUFFIX)
    get_target_property(value ${target} ${property})
    if(NOT value MATCHES "NOTFOUND$")
      set_property(TARGET ${again} PROPERTY ${property} "${value}")
    endif()
  endforeach()
  set_property(TARGET ${again} APPEND PROPERTY LINK_DEPENDS ${strop_stubs}/libc.so)
  target_link_directories(${again} BEFORE PRIVATE ${strop_stubs})
  # What comes out of libstdc++.a stays inside. The emulator's reports need its symbols.
  target_link_options(${again} PRIVATE -Wl,--exclude-libs,ALL $<$<STREQUAL:${type},EXECUTABLE>:-Wl,--wrap=main>
                      $<$<STREQUAL:${type},MODULE_LIBRARY>:-s>)
  set_target_properties(
    ${again}
    PROPERTIES SKIP_BUILD_RPATH ON
               CXX_VISIBILITY_PRESET hidden
               LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/manylinux/${folder}
               RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/manylinux/${folder})
  add_dependencies(${again} strop_stubs)
  add_dependencies(manylinux ${again})
  # As a file, not as a target, which would be stripped.
  install(PROGRAMS $<TARGET_FILE:${again}> DESTINATION ${folder} COMPONENT manylinux EXCLUDE_FROM_ALL)
endfunction()

strop_manylinux(_C strop)
if(TARGET strop_emu)
  strop_manylinux(strop_emu strop/bin)
endif()
