# Flags that every target of the project shares.

set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_EXTENSIONS OFF)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  if(PROJECT_IS_TOP_LEVEL)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, RelWithDebInfo or Debug" FORCE)
  else()
    set(CMAKE_BUILD_TYPE Release)  # of this folder: the project around it keeps what it has
  endif()
endif()

# CUDA for four architectures takes minutes; ccache, where there is one, makes it once.
find_program(STROP_CCACHE ccache)
mark_as_advanced(STROP_CCACHE)
if(PROJECT_IS_TOP_LEVEL AND STROP_CCACHE)
  foreach(language CXX CUDA)
    if(NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER ${STROP_CCACHE})
    endif()
  endforeach()
endif()

if(STROP_SANITIZE)
  # Before anything is compiled: a program may not mix code with and without it.
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${STROP_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>)
  add_link_options(-fsanitize=${STROP_SANITIZE})
endif()

function(strop_compile_options target)
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON)
  # Private: installed headers do not depend on it.
  target_compile_definitions(${target} PRIVATE STROP_WITH_CUDA=$<BOOL:${STROP_WITH_CUDA}>)
  target_compile_options(
    ${target}
    PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall>
            $<$<COMPILE_LANGUAGE:CXX>:-Wextra>
            $<$<COMPILE_LANGUAGE:CXX>:-Wpedantic>
            # Pedantic is not for what nvcc generates.
            $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
  if(STROP_WERROR)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                                             $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Werror>)
  endif()
  if(STROP_WITH_CUDA)
    # -lineinfo lets profilers and compute-sanitizer name source lines; it costs no speed.
    # CMake 3.25 does not know nvcc's C++20 flag, so it is given by hand.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>
                                             $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo>
                                             # nvcc takes `status = f();` for a Status thrown away.
                                             $<$<COMPILE_LANGUAGE:CUDA>:-diag-suppress=2810>
                                             $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
    # C++ files of the core and the tests may include CUDA's headers.
    target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
    # One file for every machine: the runtime goes in, so that the library loads where there is no CUDA at all.
    set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  endif()
endfunction()
