# _C_manylinux: the module's own objects in a second link that asks for nothing newer than manylinux_2_28 has, whatever
# the system has that builds it (tools/link_stubs says how). Built on demand, for `make wheel`.

set(strop_stubs ${PROJECT_BINARY_DIR}/manylinux/stubs)
add_custom_command(
  OUTPUT ${strop_stubs}/libc.so
  COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tools/link_stubs ${CMAKE_CXX_COMPILER} ${strop_stubs}
  DEPENDS ${PROJECT_SOURCE_DIR}/tools/link_stubs
  COMMENT "Writing libraries of manylinux_2_28 to link with"
  VERBATIM)

add_library(_C_manylinux MODULE EXCLUDE_FROM_ALL $<TARGET_OBJECTS:_C> ${PROJECT_SOURCE_DIR}/bindings/manylinux.cc
                                                 ${strop_stubs}/libc.so)
get_target_property(strop_libraries _C LINK_LIBRARIES)
get_target_property(strop_link_options _C LINK_OPTIONS)
target_link_directories(_C_manylinux BEFORE PRIVATE ${strop_stubs})
target_link_libraries(_C_manylinux PRIVATE ${strop_libraries})
target_link_options(_C_manylinux PRIVATE ${strop_link_options})
set_target_properties(
  _C_manylinux
  PROPERTIES PREFIX ""
             OUTPUT_NAME _C
             SUFFIX ".abi3.so"
             SKIP_BUILD_RPATH ON
             CXX_VISIBILITY_PRESET hidden
             LINK_DEPENDS "${strop_stubs}/libc.so;${PROJECT_SOURCE_DIR}/cmake/exports.map"
             LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/manylinux/strop)
install(TARGETS _C_manylinux LIBRARY DESTINATION strop COMPONENT manylinux EXCLUDE_FROM_ALL)
