// Tensors of the suites: any dtype, strides and misalignment, in guarded memory on the backend's device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "strop/status.h"
#include "strop/tensor_view.h"
#include "tests/support/backend.h"

namespace strop::testing {

// How a tensor lies in memory.
enum class Layout {
  kContiguous,
  kMisaligned,    // contiguous, one element after an aligned address
  kSliced,        // the last dimension of a wider tensor, from its second element on: x[..., 1:-1]
  kTransposed,    // the last two dimensions swapped
  kStepped,       // every other element of the last dimension
  kExpandedRows,  // stride 0 in the first dimension
  kExpandedLast,  // stride 0 in the last dimension
};
inline constexpr Layout kWritableLayouts[] = {Layout::kContiguous, Layout::kMisaligned, Layout::kSliced,
                                              Layout::kTransposed, Layout::kStepped};
inline constexpr Layout kLayouts[] = {Layout::kContiguous,  Layout::kMisaligned, Layout::kSliced,
                                      Layout::kTransposed,  Layout::kStepped,    Layout::kExpandedRows,
                                      Layout::kExpandedLast};
inline constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
inline constexpr DType kMasks[] = {DType::kBool,    DType::kInt8,     DType::kUInt8,  DType::kInt16,  DType::kUInt16,
                                   DType::kInt32,   DType::kUInt32,   DType::kInt64,  DType::kUInt64, DType::kFloat16,
                                   DType::kFloat32, DType::kBFloat16, DType::kFloat64};

const char* layout_name(Layout layout);

// Memory starts as 0xff bytes, which is NaN in every float dtype and true in every mask: what is read but was never
// written shows, and so does what is read outside.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<std::int64_t> shape, Layout layout = Layout::kContiguous);

  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t numel() const;
  bool expanded() const { return expanded_; }

  // The i-th element in row-major order of the shape. set() rounds to nearest even.
  double get(std::int64_t i) const;
  void set(std::int64_t i, double value);
  bool bits_zero(std::int64_t i) const;
  void fill(const std::function<double(std::int64_t)>& value);

  // Copies share device memory: make one tensor for each call that runs at the same time.
  // A view of host memory, for the oracle.
  TensorView host();
  // A view on the backend's device, where the contents are now. What is there comes back with fetch().
  TensorView on(const Backend& backend);
  void fetch();

  // After fetch(): fails the test if memory changed since on(): anything for an input, anything but elements for an
  // output.
  void expect_unchanged(const char* what) const;
  void expect_only_elements_changed(const char* what) const;

  // All bytes of the elements' memory, for bitwise comparison.
  const std::vector<std::uint8_t>& bytes() const { return memory_; }

 private:
  std::int64_t byte_of(std::int64_t i) const;
  TensorView view(std::uint8_t* memory, const Backend& backend) const;

  struct Device {  // memory there, freed with the tensor
    Backend backend;
    void* memory = nullptr;
    ~Device();
  };

  DType dtype_ = DType::kFloat32;
  std::vector<std::int64_t> shape_, strides_;
  std::int64_t first_byte_ = 0;  // of the first element
  bool expanded_ = false;
  std::vector<std::uint8_t> memory_, before_;
  std::shared_ptr<Device> device_;
};

// Unit roundoff of a dtype: half the distance of 1 to the next number; and half the distance of its subnormals.
double unit_roundoff(DType dtype);
double subnormal_roundoff(DType dtype);

// A call was refused, with this code and a message that has `part` in it, before any of the tensors was written to.
void expect_refused(const Status& status, StatusCode code, const std::string& part, const Backend& backend,
                    std::initializer_list<Tensor*> tensors);

// Scratch for one call, with garbage in it and a guard behind.
class Scratch {
 public:
  Scratch(const Backend& backend, std::size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return memory_; }
  // What is in it; nothing was written behind it.
  std::vector<std::uint8_t> contents() const;
  // And each of the counters that it begins with is 0, as a graph's replay needs it; not all need have been used.
  void expect_cleared(std::int64_t counters, bool all_used) const;

 private:
  Backend backend_;
  std::size_t bytes_;
  void* memory_;
};

// Scratch for a loss.
class Workspace {
 public:
  explicit Workspace(const Backend& backend);
  void* data() const { return scratch_.data(); }
  // Nothing was written behind it, and every message in it was cleared or never sent: none is left that a launch with
  // the same tag, as a graph's replay is, would take for its own.
  void expect_intact() const;

 private:
  Scratch scratch_;
};

}  // namespace strop::testing
