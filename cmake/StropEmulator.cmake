# Compiles CUDA kernels for the emulator (strop/emu.h): part of this build, and installed for those of users.
#
#   strop_emulate(target [source.cu …])
#
# makes `target` an emulated program: its .cu files (those given are added) are compiled as C++ against the emulator's
# stand-ins for CUDA's headers, with a call before every access to memory, and it is linked to strop::emulator. Call it
# in the folder that defines the target. GCC or Clang, on Linux.

# -O1: lines stay where they are, and it is fast enough. -O0 shows every variable in gdb. The calls before accesses are those of
# -fsanitize=thread; the emulator answers them, ThreadSanitizer's library is not linked.
set(STROP_EMULATED_OPTIMIZATION -O1 CACHE STRING "How much the compiler optimises emulated kernels")
set(STROP_EMULATED_OPTIONS
    ${STROP_EMULATED_OPTIMIZATION} -g -fno-omit-frame-pointer -fsanitize=thread -ffp-contract=off -Wno-unknown-pragmas
    $<$<CXX_COMPILER_ID:GNU>:--param=tsan-instrument-func-entry-exit=0>
    $<$<CXX_COMPILER_ID:GNU>:--param=tsan-distinguish-volatile=1>
    $<$<CXX_COMPILER_ID:GNU>:-fno-tree-sra>
    $<$<CXX_COMPILER_ID:GNU>:-fno-ipa-sra>
    $<$<CXX_COMPILER_ID:GNU>:-fno-tree-loop-distribute-patterns>
    $<$<CXX_COMPILER_ID:Clang>:SHELL:-mllvm -tsan-instrument-func-entry-exit=0>
    $<$<CXX_COMPILER_ID:Clang>:SHELL:-mllvm -tsan-distinguish-volatile=1>)

function(strop_emulate target)
  if(ARGN)
    target_sources(${target} PRIVATE ${ARGN})
  endif()
  target_compile_definitions(${target} PRIVATE STROP_EMULATED=1 STROP_WITH_CUDA=1)
  target_link_libraries(${target} PRIVATE strop::emulator)
  get_target_property(sources ${target} SOURCES)
  foreach(source ${sources})
    if(source MATCHES "\\.cu$")
      set_source_files_properties(${source} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${STROP_EMULATED_OPTIONS}")
    endif()
  endforeach()
endfunction()
