// Broken kernels, each with a twin that differs in one line and is right. The emulator must find every mistake at its
// line, whatever the schedule, and nothing in the twins (main.cc; `make emu`). The same sources make a program for a
// GPU, to see what compute-sanitizer makes of them.
//
// A kernel is a template <bool kBroken>. The lines that a report must name end in "// planted: NAME".
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <initializer_list>
#include <vector>

#include "strop/emu.h"
#include "strop/launch.h"

namespace strop::planted {

// Of compute-sanitizer: which one is for mistakes of this kind.
enum class Tool : unsigned char { kNone, kMemcheck, kInitcheck, kRacecheck, kSynccheck };

struct Plant {
  const char* name;
  emu::Kind kind;  // of the report
  Tool tool;
  bool hangs;           // it may hang a GPU
  const char* mistake;  // and what comes of it on a GPU
  bool (*broken)();     // whether the result is right
  bool (*twin)();
  const char* file;
  int line;
};

// All that are linked in, by file and line.
std::vector<Plant>& plants();

struct Planted {
  explicit Planted(const Plant& plant) { plants().push_back(plant); }
};

// PLANT(name, kind, tool, mistake) { … } defines how to run kernel `name`<kBroken> and check its result.
#define STROP_PLANT(name, kind, tool, hangs, mistake)                                                                 \
  template <bool kBroken>                                                                                             \
  bool run_##name();                                                                                                  \
  const Planted planted_##name(                                                                                       \
      {#name, emu::Kind::kind, Tool::tool, hangs, mistake, run_##name<true>, run_##name<false>, __FILE__, __LINE__}); \
  template <bool kBroken>                                                                                             \
  bool run_##name()
#define PLANT(name, kind, tool, mistake) STROP_PLANT(name, kind, tool, false, mistake)
#define PLANT_THAT_HANGS(name, kind, tool, mistake) STROP_PLANT(name, kind, tool, true, mistake)

// Device memory that is freed with it.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t n) : n_(n) { (void)cudaMalloc(&data_, n * sizeof(T)); }  // uninitialised
  template <class F>
  Buffer(std::size_t n, F&& element) : Buffer(n) {
    std::vector<T> values;
    for (std::size_t i = 0; i < n; ++i) values.push_back(static_cast<T>(element(static_cast<int>(i))));
    (void)cudaMemcpy(data_, values.data(), n * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Buffer() { free(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void free() { (void)cudaFree(data_), n_ = 0; }
  void fill(int byte) { (void)cudaMemset(data_, byte, n_ * sizeof(T)); }
  operator T*() const { return data_; }

  // Whether element i is element(i), after everything that was launched.
  template <class F>
  bool holds(F&& element) const {
    std::vector<T> values(n_);
    if (cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost) != cudaSuccess) return false;
    for (std::size_t i = 0; i < n_; ++i) {
      if (values[i] != static_cast<T>(element(static_cast<int>(i)))) return false;
    }
    return true;
  }

 private:
  T* data_ = nullptr;
  std::size_t n_;
};

inline int zero(int) { return 0; }
inline int index(int i) { return i; }

// Only the emulator asks for names.
#if STROP_EMULATED
using emu::Names;
#else
struct Names {
  Names(std::initializer_list<emu::NamedView>) {}
};
#endif

}  // namespace strop::planted
