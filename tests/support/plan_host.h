// A host for the suites, without a framework: tensors are malloc's, products are three loops, and every handle is
// counted.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runtime/frame.h"
#include "runtime/host.h"
#include "runtime/plan.h"
#include "runtime/views.h"

namespace strop::runtime::testing {

struct Handle {
  std::vector<unsigned char> memory;
  Tensor tensor;
  Handle* base = nullptr;  // of a view
  int references = 1;
};

class TestHost : public Host {
 public:
  std::map<std::string, std::function<Status(TestHost&, Call&)>> operations;  // foreign ones, by name
  std::atomic<int> alive{0};                                                  // handles

  Status allocate(DeviceType, int, std::size_t bytes, void** data, void** handle) override {
    Handle* made = new Handle;
    ++alive;
    made->memory.resize(bytes, 0xff);
    *data = made->memory.data();
    *handle = made;
    return {};
  }
  Status empty(Tensor& t, void** handle) override {
    void* data = nullptr;
    if (Status s = allocate(t.device, 0, static_cast<std::size_t>(t.bytes()), &data, handle); !s.ok()) return s;
    t.data = t.bytes() > 0 ? data : &nothing;
    static_cast<Handle*>(*handle)->tensor = t;
    return {};
  }
  Status share(void* handle, const Tensor&, const Tensor& t, void** shared) override {
    Handle* made = new Handle;
    ++alive;
    made->tensor = t;
    made->base = static_cast<Handle*>(handle);
    ++made->base->references;
    *shared = made;
    return {};
  }
  void release(void* handle) override {
    Handle* h = static_cast<Handle*>(handle);
    if (h == nullptr || --h->references > 0) return;
    release(h->base);
    delete h;
    --alive;
  }
  Status copy(const Tensor&, const Tensor&) override { return Status(StatusCode::kRuntimeError, "no other device"); }
  Status linear(Call&, const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor& out) override {
    const auto at = [](const Tensor& t, std::int64_t i, std::int64_t j) -> float& {
      return static_cast<float*>(t.data)[i * t.strides[0] + j * t.strides[1]];
    };
    for (std::int64_t i = 0; i < x.shape[0]; ++i) {
      for (std::int64_t j = 0; j < w.shape[0]; ++j) {
        double sum = bias != nullptr ? static_cast<float*>(bias->data)[j * bias->strides[0]] : 0;
        for (std::int64_t k = 0; k < x.shape[1]; ++k) sum += double{at(x, i, k)} * at(w, j, k);
        at(out, i, j) = static_cast<float>(sum);
      }
    }
    return {};
  }
  Status call(const Foreign& foreign, Call& call) override {
    const auto found = operations.find(foreign.name);
    return found == operations.end() ? Status(StatusCode::kTypeError, "no operation of that name")
                                     : found->second(*this, call);
  }
  void* stream() override { return nullptr; }
};

// A row-major tensor over somebody's vector.
template <class T>
Tensor tensor_over(std::vector<T>& values, DType dtype, const Sizes& shape) {
  Tensor t;
  t.dtype = dtype;
  t.data = values.empty() ? static_cast<void*>(&nothing) : values.data();
  make_row_major(t, shape);
  return t;
}

// The elements in row-major order.
template <class T>
std::vector<T> values_of(const Tensor& t) {
  std::vector<T> values;
  std::int64_t index[kMostDimensions] = {};
  for (std::int64_t n = t.numel(); n > 0; --n) {
    std::int64_t offset = 0;
    for (int d = 0; d < t.rank; ++d) offset += index[d] * t.strides[d];
    values.push_back(static_cast<const T*>(t.data)[offset]);
    for (int d = t.rank - 1; d >= 0; --d) {
      if (++index[d] < t.shape[d]) break;
      index[d] = 0;
    }
  }
  return values;
}

inline const Tensor& result(const std::vector<void*>& outputs, std::size_t i) {
  return static_cast<Handle*>(outputs[i])->tensor;
}

}  // namespace strop::runtime::testing
