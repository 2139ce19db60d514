#include <cuda_runtime.h>

#include <array>
#include <mutex>

#include "base/device.h"

namespace strop {
namespace {

constexpr int kMaxDevices = 64;

Status cuda_status(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return Status(StatusCode::kRuntimeError, std::string(what) + ": " + cudaGetErrorString(error));
}

struct Entry {
  std::once_flag once;
  DeviceInfo info;
  Status status;
};

void read(int index, Entry& entry) {
  cudaDeviceProp p;
  entry.status = cuda_status("cudaGetDeviceProperties", cudaGetDeviceProperties(&p, index));
  if (!entry.status.ok()) return;
  entry.info = {index,
                10 * p.major + p.minor,
                p.multiProcessorCount,
                p.sharedMemPerBlockOptin,
                p.sharedMemPerMultiprocessor,
                static_cast<std::size_t>(p.l2CacheSize),
                p.name};
}

}  // namespace

int device_count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return n;
}

Status device_info(int index, const DeviceInfo** info) {
  static std::array<Entry, kMaxDevices> entries;
  *info = nullptr;
  if (index < 0 || index >= kMaxDevices) {
    return Status(StatusCode::kValueError, "no CUDA device " + std::to_string(index));
  }
  Entry& entry = entries[static_cast<std::size_t>(index)];
  std::call_once(entry.once, [&] { read(index, entry); });
  if (entry.status.ok()) *info = &entry.info;
  return entry.status;
}

Status current_device_info(const DeviceInfo** info) {
  int index = 0;
  *info = nullptr;
  if (Status s = cuda_status("cudaGetDevice", cudaGetDevice(&index)); !s.ok()) return s;
  return device_info(index, info);
}

Status clear_device_memory(void* p, std::size_t bytes, void* stream) {
  return cuda_status("cudaMemsetAsync", cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream)));
}

Status stream_is_capturing(void* stream, bool* capturing) {
  cudaStreamCaptureStatus state = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &state);
  *capturing = state != cudaStreamCaptureStatusNone;
  return cuda_status("cudaStreamIsCapturing", error);
}

DeviceGuard::DeviceGuard(int index) {
  int current = -1;
  status_ = cuda_status("cudaGetDevice", cudaGetDevice(&current));
  if (!status_.ok() || current == index) return;
  status_ = cuda_status("cudaSetDevice", cudaSetDevice(index));
  if (status_.ok()) previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) (void)cudaSetDevice(previous_);
}

}  // namespace strop
