// Where a suite runs: the CPU with each instruction set that the machine has, and CUDA where it was built in and a
// device is there.
#pragma once

#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

#include "base/simd_target.h"
#include "strop/tensor_view.h"

namespace strop::testing {

struct Backend {
  std::string name;
  DeviceType device = DeviceType::kCpu;
  SimdTarget simd = SimdTarget::kAvx512;  // the best one allowed, on the CPU

  bool cuda() const { return device == DeviceType::kCuda; }
};

std::ostream& operator<<(std::ostream& out, const Backend& backend);

// All of them, and one of each device: the CPU's best, and CUDA.
const std::vector<Backend>& all_backends();
const std::vector<Backend>& device_backends();

// Memory of the backend's device. Failures of the CUDA runtime are failures of the test.
void* allocate(const Backend& backend, std::size_t bytes);
void release(const Backend& backend, void* memory);
void copy_to(const Backend& backend, void* device, const void* host, std::size_t bytes);
void copy_from(const Backend& backend, void* host, const void* device, std::size_t bytes);
// Waits for the device and reports what went wrong on it.
void synchronize(const Backend& backend);

// While it lives, CPU calls run with the backend's instruction set.
class UseSimd {
 public:
  explicit UseSimd(const Backend& backend) : before_(simd_target()) { set_simd_target(backend.simd); }
  ~UseSimd() { set_simd_target(before_); }
  UseSimd(const UseSimd&) = delete;
  UseSimd& operator=(const UseSimd&) = delete;

 private:
  SimdTarget before_;
};

}  // namespace strop::testing
