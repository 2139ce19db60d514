// The CUDA runtime's functions on the emulated device (cuda/cuda_runtime_api.h).
#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "cuda_runtime_api.h"
#include "emu/launch.h"

namespace strop::emu {
namespace {

constexpr std::size_t kSharedBytes = 48 * 1024;  // of a block, without opting into more
constexpr unsigned kPortableCluster = 8, kLargestCluster = 16;

thread_local cudaError_t last_error = cudaSuccess;

struct KernelAttributes {
  std::size_t shared_bytes = kSharedBytes;
  bool any_cluster = false;
};
// Of a kernel, on the current device.
KernelAttributes& attributes(const void* kernel) {
  static std::map<std::pair<int, const void*>, KernelAttributes> attributes;
  return attributes[{settings().device, kernel}];
}

cudaError_t done(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t refuse(cudaError_t error, const void* kernel, const std::string& why) {
  report_refused(kernel, why);
  return done(error);
}

bool is_device(int index) { return index >= 0 && index < static_cast<int>(devices().size()); }

// The region that holds [data, data + bytes), or null.
Region* region_of(const void* data, std::size_t bytes) {
  const auto a = reinterpret_cast<std::uintptr_t>(data);
  Region* r = heap().find(a);
  return r != nullptr && r->has(a) && a + bytes <= r->end() ? r : nullptr;
}

std::size_t blocks_a_multiprocessor(int threads, std::size_t shared_bytes) {
  const Device& d = device();
  if (threads <= 0 || threads > 1024 || shared_bytes > d.shared_bytes_per_block) return 0;
  return std::min({std::size_t{2048} / static_cast<std::size_t>((threads + 31) / 32 * 32), std::size_t{32},
                   d.shared_bytes_per_multiprocessor / (shared_bytes + 1024)});
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& c, const void* kernel, void (*invoke)(void*), void* arguments,
                   std::size_t bytes) {
  const Device& d = device();
  LaunchSpec spec;
  spec.grid = {c.gridDim.x, c.gridDim.y, c.gridDim.z};
  spec.block = {c.blockDim.x, c.blockDim.y, c.blockDim.z};
  spec.shared_bytes = c.dynamicSmemBytes;
  spec.kernel = kernel, spec.invoke = invoke, spec.arguments = arguments, spec.arguments_bytes = bytes;
  for (unsigned i = 0; i < c.numAttrs; ++i) {
    if (c.attrs[i].id == cudaLaunchAttributeCooperative) spec.cooperative = c.attrs[i].val.cooperative != 0;
    if (c.attrs[i].id == cudaLaunchAttributeClusterDimension) spec.cluster = c.attrs[i].val.clusterDim.x;
  }
  const auto lock = lock_device();
  const KernelAttributes& a = attributes(kernel);
  const std::uint64_t threads = std::uint64_t{spec.block.x} * spec.block.y * spec.block.z;
  const std::uint64_t blocks = std::uint64_t{spec.grid.x} * spec.grid.y * spec.grid.z;
  if (threads == 0 || threads > 1024)
    return refuse(cudaErrorInvalidConfiguration, kernel,
                  "a block of " + std::to_string(threads) + " threads; 1 to 1024");
  if (blocks == 0 || blocks >= std::uint64_t{1} << 31)
    return refuse(cudaErrorInvalidConfiguration, kernel, "a grid of " + std::to_string(blocks) + " blocks");
  if (spec.shared_bytes > a.shared_bytes) {
    return refuse(cudaErrorInvalidValue, kernel,
                  std::to_string(spec.shared_bytes) + " bytes of dynamic shared memory; the kernel may have " +
                      std::to_string(a.shared_bytes) + ", and with cudaFuncAttributeMaxDynamicSharedMemorySize up to " +
                      std::to_string(d.shared_bytes_per_block));
  }
  const unsigned largest = d.capability < 90 ? 1 : a.any_cluster ? kLargestCluster : kPortableCluster;
  if (spec.cluster == 0 || spec.cluster > largest) {
    return refuse(cudaErrorInvalidConfiguration, kernel,
                  "clusters of " + std::to_string(spec.cluster) + " blocks; on this device the kernel may have " +
                      std::to_string(largest) +
                      (largest == kPortableCluster ? ", and with cudaFuncAttributeNonPortableClusterSizeAllowed " +
                                                         std::to_string(kLargestCluster)
                                                   : ""));
  }
  if (spec.grid.x % spec.cluster != 0) {
    return refuse(cudaErrorInvalidConfiguration, kernel,
                  "a grid of " + std::to_string(spec.grid.x) + " blocks, which is no multiple of the clusters' " +
                      std::to_string(spec.cluster));
  }
  spec.resident = blocks_a_multiprocessor(static_cast<int>(threads), spec.shared_bytes) *
                  static_cast<std::size_t>(d.multiprocessors);
  if (spec.cooperative && blocks > spec.resident) {
    return refuse(cudaErrorCooperativeLaunchTooLarge, kernel,
                  "a cooperative launch of " + std::to_string(blocks) + " blocks, of which the device holds " +
                      std::to_string(spec.resident) + " at once");
  }
  run_launch(spec);
  return cudaSuccess;
}

}  // namespace strop::emu

using strop::emu::done;
using strop::emu::heap;
using strop::emu::lock_device;
using strop::emu::settings;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "the emulator has found mistakes; they are printed above"
                                         : cudaGetErrorName(error);
}
cudaError_t cudaGetLastError() { return std::exchange(strop::emu::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return strop::emu::last_error; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(strop::emu::devices().size());
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = settings().device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (!strop::emu::is_device(device)) return done(cudaErrorInvalidDevice);
  settings().device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (!strop::emu::is_device(device)) return done(cudaErrorInvalidDevice);
  const strop::emu::Device& d = strop::emu::devices()[static_cast<std::size_t>(device)];
  *p = {};
  std::strcpy(p->name, "strop emulator");
  p->major = d.capability / 10, p->minor = d.capability % 10;
  p->multiProcessorCount = d.multiprocessors;
  p->l2CacheSize = 1 << 20, p->warpSize = 32, p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = strop::emu::kSharedBytes;
  p->sharedMemPerBlockOptin = d.shared_bytes_per_block;
  p->sharedMemPerMultiprocessor = d.shared_bytes_per_multiprocessor;
  p->totalGlobalMem = std::size_t{1} << 34;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const bool failed = std::exchange(settings().failures, 0) > 0;
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaDeviceSynchronize(); }  // launches compute before they return

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  const auto lock = lock_device();
  *data = bytes == 0 ? nullptr : heap().allocate(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  const auto lock = lock_device();
  return data == nullptr || heap().release(data) ? cudaSuccess : done(cudaErrorInvalidValue);
}
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned) { return cudaMalloc(data, bytes); }
cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const auto lock = lock_device();
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (bytes == 0) return cudaSuccess;
  strop::emu::Region* target = strop::emu::region_of(to, bytes);
  const strop::emu::Region* source = strop::emu::region_of(from, bytes);
  if ((to_device && target == nullptr) || (from_device && source == nullptr)) return done(cudaErrorInvalidValue);
  std::memcpy(to, from, bytes);
  // What was not written is not written in the copy either; the host's memory counts as written.
  if (target != nullptr)
    target->take_states(reinterpret_cast<std::uintptr_t>(to), bytes, source, reinterpret_cast<std::uintptr_t>(from));
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  const auto lock = lock_device();
  strop::emu::Region* r = strop::emu::region_of(data, bytes);
  if (r == nullptr && bytes > 0) return done(cudaErrorInvalidValue);
  if (bytes == 0) return cudaSuccess;
  std::memset(data, value, bytes);
  r->take_states(reinterpret_cast<std::uintptr_t>(data), bytes, nullptr, 0);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(data, value, bytes);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const auto lock = lock_device();
  auto& a = strop::emu::attributes(kernel);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    a.any_cluster = value != 0;
  } else {
    if (value < 0 || static_cast<std::size_t>(value) > strop::emu::device().shared_bytes_per_block)
      return done(cudaErrorInvalidValue);
    a.shared_bytes = static_cast<std::size_t>(value);
  }
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          std::size_t shared_bytes) {
  *blocks = static_cast<int>(strop::emu::blocks_a_multiprocessor(threads, shared_bytes));
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* c) {
  const int blocks = static_cast<int>(strop::emu::blocks_a_multiprocessor(
                         static_cast<int>(c->blockDim.x * c->blockDim.y * c->blockDim.z), c->dynamicSmemBytes)) *
                     strop::emu::device().multiprocessors;
  *clusters = blocks / static_cast<int>(c->gridDim.x);
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    if (c->attrs[i].id == cudaLaunchAttributeClusterDimension)
      *clusters = blocks / static_cast<int>(c->attrs[i].val.clusterDim.x);
  }
  return cudaSuccess;
}
