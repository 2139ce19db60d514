// The host of plans in programs without a framework: tensors are memory of their own, products are strop's kernels,
// and of PyTorch's operations it has those with which encoders make positions and masks.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/host.h"
#include "runtime/program.h"
#include "runtime/safetensors.h"

namespace strop::runtime {

// Without a state: any number of threads and plans may share one. Its handles are Held*.
class CpuHost final : public Host {
 public:
  Status allocate(DeviceType device, int index, std::size_t bytes, void** data, void** handle) override;
  Status empty(Tensor& t, void** handle) override;
  Status share(void* handle, const Tensor& whole, const Tensor& t, void** shared) override;
  void release(void* handle) override;
  Status copy(const Tensor& to, const Tensor& from) override;
  bool multiplies() const override { return false; }
  Status linear(Call& call, const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& out) override;
  Status call(const Foreign& foreign, Call& call) override;
  void* stream() override { return nullptr; }
};

// cpu_foreign.cc: computes an operation of PyTorch's from the call's arguments, which are those of its schema; throws
// Error. Null where there is none.
using ForeignOp = void (*)(Call& call);
ForeignOp find_foreign(std::string_view name, std::string_view overload);
// The foreign operations of a program for which there is none, by their names.
std::vector<std::string> missing_operations(const Program& program);

}  // namespace strop::runtime
