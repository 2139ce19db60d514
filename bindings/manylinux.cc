// What this system's headers take from glibc and 2.28 does not have. Only the wheel has it: cmake/StropManylinux.cmake.

// Whether the process has one thread, so that libstdc++ may count references without atomics. 0, "maybe not", is always
// right.
extern "C" {
char __libc_single_threaded = 0;
}
