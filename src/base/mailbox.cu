#include <cuda_runtime.h>

#include <atomic>
#include <string>

#include "base/mailbox.h"

namespace strop {
namespace {

constexpr std::int64_t kNothing = -1;
constexpr int kLooksBetweenQueries = 4096;  // some ten microseconds

Status refused(const char* what, cudaError_t error) {
  (void)cudaGetLastError();
  return Status(StatusCode::kRuntimeError, std::string(what) + ": " + cudaGetErrorString(error));
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Status Mailbox::create(int index, std::unique_ptr<Mailbox>* made) {
  std::unique_ptr<Mailbox> box(new Mailbox(index));
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, kNumbers * sizeof(std::int64_t), cudaHostAllocPortable);
  if (error != cudaSuccess) return refused("cudaHostAlloc", error);
  box->numbers_ = static_cast<std::int64_t*>(memory);
  box->clear();
  *made = std::move(box);
  return {};
}

Mailbox::~Mailbox() { (void)cudaFreeHost(numbers_); }

TensorView Mailbox::view() const {
  TensorView view;
  view.data = numbers_;  // the same address there: all of CUDA's host memory is mapped, and addresses are unified
  view.dtype = DType::kInt64;
  view.device = DeviceType::kCuda;
  view.device_index = index_;
  view.rank = 1;
  view.shape[0] = kNumbers;
  view.strides[0] = 1;
  return view;
}

void Mailbox::clear() {
  for (int i = 0; i < kNumbers; ++i) std::atomic_ref(numbers_[i]).store(kNothing, std::memory_order_release);
}

// Each number is written whole, in any order.
bool Mailbox::written() const {
  for (int i = 0; i < kNumbers; ++i) {
    if (std::atomic_ref(numbers_[i]).load(std::memory_order_acquire) == kNothing) return false;
  }
  return true;
}

Status Mailbox::wait(void* stream) {
  for (int looks = 1; !written(); ++looks) {
    pause();
    if (looks % kLooksBetweenQueries != 0) continue;
    const cudaError_t state = cudaStreamQuery(static_cast<cudaStream_t>(stream));
    if (state == cudaErrorNotReady) continue;
    if (state != cudaSuccess) return refused("cudaStreamQuery", state);
    // What the stream's work wrote is there once the stream is seen to be idle.
    if (!written()) return Status(StatusCode::kRuntimeError, "no kernel wrote what was waited for");
  }
  return {};
}

}  // namespace strop
