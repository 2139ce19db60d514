# nlohmann/json's headers, which read the text of a plan.
#
# Defines the target nlohmann_json::nlohmann_json. Set CMAKE_PREFIX_PATH where it is not in a system folder.

find_path(NlohmannJson_INCLUDE_DIR nlohmann/json.hpp)
if(NlohmannJson_INCLUDE_DIR)
  foreach(part MAJOR MINOR PATCH)
    set(NlohmannJson_version_${part} "")
    # Version 3.11 keeps its number in a header of its own.
    foreach(header detail/abi_macros.hpp json.hpp)
      if(NlohmannJson_version_${part} STREQUAL "" AND EXISTS ${NlohmannJson_INCLUDE_DIR}/nlohmann/${header})
        file(STRINGS ${NlohmannJson_INCLUDE_DIR}/nlohmann/${header} line
             REGEX "^#define NLOHMANN_JSON_VERSION_${part} [0-9]+" LIMIT_COUNT 1)
        if(line MATCHES "VERSION_${part} ([0-9]+)")
          set(NlohmannJson_version_${part} ${CMAKE_MATCH_1})
        endif()
      endif()
    endforeach()
  endforeach()
  set(NlohmannJson_VERSION
      ${NlohmannJson_version_MAJOR}.${NlohmannJson_version_MINOR}.${NlohmannJson_version_PATCH})
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  NlohmannJson
  REQUIRED_VARS NlohmannJson_INCLUDE_DIR
  VERSION_VAR NlohmannJson_VERSION)
mark_as_advanced(NlohmannJson_INCLUDE_DIR)

if(NlohmannJson_FOUND AND NOT TARGET nlohmann_json::nlohmann_json)
  add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
  set_target_properties(nlohmann_json::nlohmann_json PROPERTIES INTERFACE_INCLUDE_DIRECTORIES
                                                                ${NlohmannJson_INCLUDE_DIR})
endif()
