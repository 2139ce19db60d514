# Google Highway's headers: portable SIMD. Its library, which chooses an instruction set at run time, is not used: see
# src/base/simd_target.h.
#
# Defines the target Highway::hwy. Set CMAKE_PREFIX_PATH where it is not in a system folder.

find_path(Highway_INCLUDE_DIR hwy/highway.h)
if(Highway_INCLUDE_DIR AND EXISTS ${Highway_INCLUDE_DIR}/hwy/base.h)
  foreach(part MAJOR MINOR PATCH)
    set(Highway_version_${part} "")
    foreach(header base.h highway.h detect_targets.h)
      if(Highway_version_${part} STREQUAL "" AND EXISTS ${Highway_INCLUDE_DIR}/hwy/${header})
        file(STRINGS ${Highway_INCLUDE_DIR}/hwy/${header} line REGEX "^#define HWY_${part} [0-9]+" LIMIT_COUNT 1)
        if(line MATCHES "([0-9]+)$")
          set(Highway_version_${part} ${CMAKE_MATCH_1})
        endif()
      endif()
    endforeach()
  endforeach()
  set(Highway_VERSION ${Highway_version_MAJOR}.${Highway_version_MINOR}.${Highway_version_PATCH})
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  Highway
  REQUIRED_VARS Highway_INCLUDE_DIR
  VERSION_VAR Highway_VERSION)
mark_as_advanced(Highway_INCLUDE_DIR)

if(Highway_FOUND AND NOT TARGET Highway::hwy)
  add_library(Highway::hwy INTERFACE IMPORTED)
  set_target_properties(Highway::hwy PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${Highway_INCLUDE_DIR})
endif()
