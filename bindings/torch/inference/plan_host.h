// PyTorch as the host of a plan: its allocator, and its operators through the stable ABI's dispatcher call.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/frame.h"
#include "runtime/host.h"

namespace strop::binding {

// The constants of a plan at one time. A transposed handle is there for matrices: products want it.
struct Constants {
  std::vector<runtime::Constant> now;
  std::vector<void*> transposed;

  Constants() = default;
  Constants(const Constants&) = delete;
  Constants& operator=(const Constants&) = delete;
  ~Constants();
};

// What is in a tensor of PyTorch's.
Status describe(void* handle, runtime::Tensor& t);
// A handle of somebody else's memory, which must outlive it.
Status borrow(const runtime::Tensor& t, void** handle);

// Calls a callable of the plan's with the arguments of `call` (plan.cc: it takes the GIL).
using PythonCall = Status (*)(void* context, int callable, class TorchHost& host, runtime::Call& call);

class TorchHost final : public runtime::Host {
 public:
  TorchHost(const Constants& constants, void* stream, PythonCall python, void* context)
      : constants_(constants), stream_(stream), python_(python), context_(context) {}

  Status allocate(DeviceType device, int index, std::size_t bytes, void** data, void** handle) override;
  Status empty(runtime::Tensor& t, void** handle) override;
  Status share(void* handle, const runtime::Tensor& whole, const runtime::Tensor& t, void** shared) override;
  void release(void* handle) override;
  Status copy(const runtime::Tensor& to, const runtime::Tensor& from) override;
  Status linear(runtime::Call& call, const runtime::Tensor& x, const runtime::Tensor& weight,
                const runtime::Tensor* bias, const runtime::Tensor& out) override;
  Status call(const runtime::Foreign& foreign, runtime::Call& call) override;
  void* stream() override { return stream_; }

  // A new handle of a register's tensor.
  Status handle_of(runtime::Call& call, const runtime::Tensor& t, void** handle);

 private:
  const Constants& constants_;
  void* stream_;
  PythonCall python_;
  void* context_;
};

}  // namespace strop::binding
