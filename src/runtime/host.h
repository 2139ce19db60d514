// Host: what a plan needs of the framework that it runs in. The framework makes tensors that outlive a call, lends its
// allocator, and runs the operations that strop has no kernel for. A plan without foreign operations, on the CPU, needs
// little of it: cpu_host.h is one for programs without a framework.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tensor.h"
#include "strop/status.h"

namespace strop::runtime {

class Call;

// The type of an argument or result of a foreign operation, as its schema has it.
struct ForeignType {
  enum class Base : std::uint8_t { kTensor, kInt, kDouble, kBool, kString, kDType, kDevice, kLayout, kMemoryFormat };
  Base base = Base::kTensor;
  bool optional = false;
  bool list = false;
  bool optional_items = false;  // Tensor?[]
};

// An operation that the host runs: one of the framework's, by name, or one of the callables given at load.
struct Foreign {
  std::string name, overload;
  std::vector<ForeignType> types, results;  // of all arguments in the schema's order; without them for a callable
  int callable = -1;
};

class Host {
 public:
  virtual ~Host() = default;

  // Memory on another device than the CPU, for the time of a call, in the order of the current stream.
  virtual Status allocate(DeviceType device, int index, std::size_t bytes, void** data, void** handle) = 0;
  // A new tensor of t's shape, strides, dtype and device; sets t.data. It may outlive the call.
  virtual Status empty(Tensor& t, void** handle) = 0;
  // Another tensor in the memory of one: `whole` is what `handle` is, `t` a view of it.
  virtual Status share(void* handle, const Tensor& whole, const Tensor& t, void** shared) = 0;
  virtual void release(void* handle) = 0;

  // to = from, of one shape and any two dtypes, not on the CPU.
  virtual Status copy(const Tensor& to, const Tensor& from) = 0;
  // Whether it has linear(), a library's product. Without it strop's kernel makes all products, with what follows them.
  virtual bool multiplies() const { return true; }
  // out = x weight^T + bias, x (R, k), weight (n, k), bias (n) or null, out (R, n), whose rows may be
  // further apart than n.
  virtual Status linear(Call& call, const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& out) = 0;
  // Reads the call's arguments and gives its results by Call::adopt and Call::set.
  virtual Status call(const Foreign& foreign, Call& call) = 0;

  // The stream that work is put on, of the device of the plan; null on the CPU.
  virtual void* stream() = 0;
};

}  // namespace strop::runtime
