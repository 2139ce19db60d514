// What code compiled with a newer glibc's headers takes from glibc and 2.28 does not have. Only the wheel's links have
// it: cmake/StropManylinux.cmake.
#include <sys/stat.h>

#include <cstddef>

extern "C" {

// Whether the process has one thread, so that libstdc++ may count references without atomics. 0, "maybe not", is always
// right.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;

// Until 2.33 these were inline functions around versioned ones.
#ifdef __x86_64__
constexpr int kStatVersion = 1;
#else
constexpr int kStatVersion = 0;
#endif
int __xstat(int version, const char* path, struct stat* out);
int __lxstat(int version, const char* path, struct stat* out);
int __fxstat(int version, int file, struct stat* out);
int stat(const char* path, struct stat* out) noexcept { return __xstat(kStatVersion, path, out); }
int lstat(const char* path, struct stat* out) noexcept { return __lxstat(kStatVersion, path, out); }
int fstat(int file, struct stat* out) noexcept { return __fxstat(kStatVersion, file, out); }

#ifdef STROP_MANYLINUX_PROGRAM
// Until 2.33 a program's constructors were called by code that was linked into it, from 2.34 on glibc calls them. A
// program linked with a newer glibc's crt1.o has nothing that would call them on an older system: its main does, which
// the linker puts in front of the real one (--wrap).
using Constructor = void (*)(int, char**, char**);
extern const Constructor __init_array_start[];
extern const Constructor __init_array_end[];
int __real_main(int argc, char** argv, char** environment);

static bool constructed = false;
[[gnu::constructor]] static void construct() { constructed = true; }

int __wrap_main(int argc, char** argv, char** environment) {
  if (!constructed) {
    const std::ptrdiff_t count = __init_array_end - __init_array_start;
    for (std::ptrdiff_t i = 0; i < count; ++i) __init_array_start[i](argc, argv, environment);
  }
  return __real_main(argc, argv, environment);
}
#endif

}  // extern "C"
