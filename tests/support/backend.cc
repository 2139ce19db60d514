#include "tests/support/backend.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#if STROP_EMULATED
#include "strop/emu.h"
#include "tests/support/random.h"
#endif

#ifndef STROP_WITH_CUDA
#define STROP_WITH_CUDA 0
#endif
#if STROP_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace strop::testing {
namespace {

[[maybe_unused]] bool cuda_device_present() {
#if STROP_WITH_CUDA
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
#else
  return false;
#endif
}

#if STROP_WITH_CUDA
void expect_success(cudaError_t error, const char* what) {
  EXPECT_EQ(error, cudaSuccess) << what << ": " << cudaGetErrorString(error);
}
#endif

#if STROP_EMULATED
// A large device; a small one, on which several blocks share a row and have several rows; and one of the oldest kind.
std::vector<Backend> find_backends(bool) {
  emu::set_devices({{90, 4, 227 * 1024, 228 * 1024}, {90, 6, 12 * 1024, 40 * 1024}, {80, 6, 12 * 1024, 40 * 1024}});
  emu::set_schedule({emu::Order::kRandom, test_seed()});
  const SimdTarget best = simd_target();
  return {{"emulated-sm_90", DeviceType::kCuda, 0, best},
          {"emulated-sm_90-small", DeviceType::kCuda, 1, best},
          {"emulated-sm_80-small", DeviceType::kCuda, 2, best}};
}
#else
std::vector<Backend> find_backends(bool every_simd) {
  std::vector<Backend> backends;
  const SimdTarget best = simd_target();
  for (int i = every_simd ? 0 : static_cast<int>(best); i <= static_cast<int>(best); ++i) {
    const auto target = static_cast<SimdTarget>(i);
    backends.push_back({std::string("cpu-") + simd_target_name(target), DeviceType::kCpu, 0, target});
  }
  if (cuda_device_present()) backends.push_back({"cuda", DeviceType::kCuda, 0, best});
  return backends;
}
#endif

}  // namespace

std::ostream& operator<<(std::ostream& out, const Backend& backend) { return out << backend.name; }

const std::vector<Backend>& all_backends() {
  static const std::vector<Backend> backends = find_backends(true);
  return backends;
}

const std::vector<Backend>& device_backends() {
  static const std::vector<Backend> backends = find_backends(false);
  return backends;
}

std::vector<Backend> few_backends() {
  if (!kEmulated) return device_backends();
  return {device_backends().front(), device_backends().back()};
}

UseBackend::UseBackend(const Backend& backend) : before_(simd_target()) {
  set_simd_target(backend.simd);
#if STROP_WITH_CUDA
  if (!backend.cuda()) return;
  expect_success(cudaGetDevice(&device_before_), "cudaGetDevice");
  expect_success(cudaSetDevice(backend.device_index), "cudaSetDevice");
#endif
}

UseBackend::~UseBackend() {
  set_simd_target(before_);
#if STROP_WITH_CUDA
  if (device_before_ >= 0) expect_success(cudaSetDevice(device_before_), "cudaSetDevice");
#endif
}

void* allocate(const Backend& backend, std::size_t bytes) {
#if STROP_WITH_CUDA
  if (backend.cuda()) {
    void* memory = nullptr;
    expect_success(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
  }
#endif
  (void)backend;
  return std::malloc(bytes);
}

void release(const Backend& backend, void* memory) {
#if STROP_WITH_CUDA
  if (backend.cuda()) return expect_success(cudaFree(memory), "cudaFree");
#endif
  (void)backend;
  std::free(memory);
}

void copy_to(const Backend& backend, void* device, const void* host, std::size_t bytes) {
#if STROP_WITH_CUDA
  if (backend.cuda()) return expect_success(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
#endif
  (void)backend;
  if (bytes > 0) std::memcpy(device, host, bytes);  // memcpy takes no null pointer, as empty memory has
}

void copy_from(const Backend& backend, void* host, const void* device, std::size_t bytes) {
#if STROP_WITH_CUDA
  if (backend.cuda()) return expect_success(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
#endif
  (void)backend;
  if (bytes > 0) std::memcpy(host, device, bytes);
}

void synchronize(const Backend& backend) {
#if STROP_WITH_CUDA
  if (backend.cuda()) expect_success(cudaDeviceSynchronize(), "kernel");
#endif
  (void)backend;
}

}  // namespace strop::testing
