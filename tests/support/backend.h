// Where a suite runs: the CPU with each instruction set that the machine has, and CUDA where it was built in and a
// device is there. Compiled for the emulator: on emulated devices alone, of several kinds.
#pragma once

#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

#include "base/simd_target.h"
#include "strop/tensor_view.h"

namespace strop::testing {

#if STROP_EMULATED
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif
// The emulator needs about a microsecond an access: there, smaller shapes that still take every path.
template <class T>
constexpr T sized(T native, T emulated) {
  return kEmulated ? emulated : native;
}

struct Backend {
  std::string name;
  DeviceType device = DeviceType::kCpu;
  int device_index = 0;
  SimdTarget simd = SimdTarget::kAvx512;  // the best one allowed, on the CPU

  bool cuda() const { return device == DeviceType::kCuda; }
};

std::ostream& operator<<(std::ostream& out, const Backend& backend);

// All of them, and one of each device: the CPU's best, and CUDA. The emulated ones are in both.
const std::vector<Backend>& all_backends();
const std::vector<Backend>& device_backends();
// Of the emulated devices the large one, and the old one, whose shared memory is too small for kernels that use the
// tensor cores; else one of each device.
std::vector<Backend> few_backends();
// In the emulator all but one of `n` turns, so that what is combined takes turns.
inline bool left_out(int& turn, int n) { return kEmulated && ++turn % n != 0; }

// Memory of the backend's device. Failures of the CUDA runtime are failures of the test.
void* allocate(const Backend& backend, std::size_t bytes);
void release(const Backend& backend, void* memory);
void copy_to(const Backend& backend, void* device, const void* host, std::size_t bytes);
void copy_from(const Backend& backend, void* host, const void* device, std::size_t bytes);
// Waits for the device and reports what went wrong on it.
void synchronize(const Backend& backend);

// While it lives, CPU calls run with the backend's instruction set, and its CUDA device is the current one.
class UseBackend {
 public:
  explicit UseBackend(const Backend& backend);
  ~UseBackend();
  UseBackend(const UseBackend&) = delete;
  UseBackend& operator=(const UseBackend&) = delete;

 private:
  SimdTarget before_;
  int device_before_ = -1;  // none was set
};

}  // namespace strop::testing
