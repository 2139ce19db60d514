#include "runtime/cpu_host.h"

#include <string>
#include <utility>

#include "runtime/frame.h"

namespace strop::runtime {
namespace {

Held* held(void* handle) { return static_cast<Held*>(handle); }

}  // namespace

Status CpuHost::allocate(DeviceType, int, std::size_t, void**, void**) {
  return Status(StatusCode::kValueError, "a tensor on another device than the CPU");
}

Status CpuHost::empty(Tensor& t, void** handle) {
  if (t.device != DeviceType::kCpu) return allocate(t.device, t.device_index, 0, nullptr, nullptr);
  auto made = std::make_unique<Held>(allocated(t));
  t.data = made->tensor.data;
  *handle = made.release();
  return {};
}

Status CpuHost::share(void* handle, const Tensor&, const Tensor& t, void** shared) {
  *shared = new Held{t, held(handle)->memory};
  return {};
}

void CpuHost::release(void* handle) { delete held(handle); }

// What the runtime copies itself does not come here.
Status CpuHost::copy(const Tensor& to, const Tensor& from) {
  return Status(StatusCode::kTypeError,
                std::string("no copy of ") + dtype_name(from.dtype) + " as " + dtype_name(to.dtype));
}

Status CpuHost::linear(Call&, const Tensor&, const Tensor&, const Tensor*, const Tensor&) {
  return Status(StatusCode::kRuntimeError, "this host has no products of its own");
}

Status CpuHost::call(const Foreign& foreign, Call& call) {
  const ForeignOp op = find_foreign(foreign.name, foreign.overload);
  if (op == nullptr) return Status(StatusCode::kTypeError, "it needs PyTorch");
  op(call);
  return {};
}

}  // namespace strop::runtime
