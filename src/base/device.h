// What a launcher needs to know of the GPU, read once a device and kept.
#pragma once

#include <cstddef>
#include <string>

#include "strop/status.h"

namespace strop {

struct DeviceInfo {
  int index = 0;
  int capability = 0;  // 10 * major + minor: 80, 90, 100, 120
  int multiprocessors = 0;
  std::size_t shared_bytes_per_block = 0;           // the most that one block may opt into
  std::size_t shared_bytes_per_multiprocessor = 0;  // what the blocks resident on one share
  std::size_t l2_bytes = 0;
  std::string name;
};

// Devices that the CUDA runtime sees; 0 without a driver.
int device_count();
// The device, or null and a status (kRuntimeError).
Status device_info(int index, const DeviceInfo** info);
// The current device of the calling thread.
Status current_device_info(const DeviceInfo** info);

// Sets bytes to 0, on the stream.
Status clear_device_memory(void* p, std::size_t bytes, void* stream);

// Whether work on the stream is recorded into a CUDA graph instead of being done.
Status stream_is_capturing(void* stream, bool* capturing);

// Makes `index` the calling thread's device for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const Status& status() const { return status_; }

 private:
  int previous_ = -1;  // -1: nothing to restore
  Status status_;
};

}  // namespace strop
