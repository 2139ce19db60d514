#include "tests/support/tensor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "base/element.h"
#include "strop/losses.h"

namespace strop::testing {
namespace {

// Guards show writes outside. With AddressSanitizer memory ends where the tensor ends, which shows reads, too.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kGuard = 0;
#else
constexpr std::int64_t kGuard = 256;
#endif
constexpr std::uint8_t kUnwritten = 0xff;

std::uint16_t bfloat16_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return 0x7fc0;
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

std::uint16_t float16_bits(double value) {
  if (std::isnan(value)) return 0x7e00;
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(value);
  if (magnitude == 0) return sign;
  if (magnitude >= 65520) return sign | 0x7c00;
  const int exponent = std::max(std::ilogb(magnitude), -14);
  // In units of the last place, 2^(exponent - 10): 1024 to 2047 for normal numbers, less for subnormal ones.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<std::uint16_t>(sign | (units + ((exponent + 14) << 10)));
}

template <class T>
void put(std::uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

}  // namespace

const char* layout_name(Layout layout) {
  constexpr const char* kNames[] = {"contiguous", "misaligned",    "sliced",       "transposed",
                                    "stepped",    "expanded rows", "expanded last"};
  return kNames[static_cast<int>(layout)];
}

Tensor::Tensor(DType dtype, std::vector<std::int64_t> shape, Layout layout) : dtype_(dtype), shape_(std::move(shape)) {
  const int rank = static_cast<int>(shape_.size());
  strides_.resize(rank);
  std::int64_t offset = layout == Layout::kMisaligned || layout == Layout::kSliced ? 1 : 0;
  const auto set_strides = [&](std::vector<int> order, std::int64_t step, std::int64_t extra) {
    std::int64_t stride = step;
    for (int d : order) {
      strides_[d] = stride;
      stride = d == rank - 1 && step == 1 && extra > 0 ? stride * shape_[d] + extra : stride * shape_[d];
    }
  };
  std::vector<int> order;
  for (int d = rank - 1; d >= 0; --d) order.push_back(d);
  if (layout == Layout::kTransposed && rank >= 2) std::swap(order[0], order[1]);
  set_strides(order, layout == Layout::kStepped ? 2 : 1, layout == Layout::kSliced ? 2 : 0);
  if (layout == Layout::kExpandedRows && rank > 0) strides_[0] = 0, expanded_ = shape_[0] > 1;
  if (layout == Layout::kExpandedLast && rank > 0) strides_[rank - 1] = 0, expanded_ = shape_[rank - 1] > 1;
  std::int64_t last = offset;
  bool empty = false;
  for (int d = 0; d < rank; ++d) {
    last += (shape_[d] - 1) * strides_[d];
    empty = empty || shape_[d] == 0;
  }
  const std::int64_t size = dtype_size(dtype_);
  first_byte_ = kGuard + offset * size;
  memory_.assign(static_cast<std::size_t>(2 * kGuard + (empty ? 0 : (last + 1) * size)), kUnwritten);
}

std::int64_t Tensor::numel() const {
  std::int64_t n = 1;
  for (std::int64_t size : shape_) n *= size;
  return n;
}

std::int64_t Tensor::byte_of(std::int64_t i) const {
  std::int64_t offset = 0;
  for (int d = static_cast<int>(shape_.size()) - 1; d >= 0; --d) {
    offset += i % shape_[d] * strides_[d];
    i /= shape_[d];
  }
  return first_byte_ + offset * dtype_size(dtype_);
}

double Tensor::get(std::int64_t i) const { return load_element(memory_.data() + byte_of(i), dtype_, 0); }

void Tensor::set(std::int64_t i, double value) {
  std::uint8_t* to = memory_.data() + byte_of(i);
  switch (dtype_) {
    case DType::kFloat32:
      return put(to, static_cast<float>(value));
    case DType::kFloat64:
      return put(to, value);
    case DType::kFloat16:
      return put(to, float16_bits(value));
    case DType::kBFloat16:
      return put(to, bfloat16_bits(static_cast<float>(value)));
    default:
      break;
  }
  const auto integer = static_cast<std::uint64_t>(static_cast<std::int64_t>(value));
  std::memcpy(to, &integer, static_cast<std::size_t>(dtype_size(dtype_)));
}

bool Tensor::bits_zero(std::int64_t i) const {
  const std::uint8_t* from = memory_.data() + byte_of(i);
  for (int k = 0; k < dtype_size(dtype_); ++k) {
    if (from[k] != 0) return false;
  }
  return true;
}

void Tensor::fill(const std::function<double(std::int64_t)>& value) {
  const std::int64_t n = numel();
  for (std::int64_t i = 0; i < n; ++i) set(i, value(i));
}

TensorView Tensor::view(std::uint8_t* memory, const Backend& backend) const {
  TensorView view;
  view.data = memory + first_byte_;
  view.dtype = dtype_;
  view.device = backend.device;
  view.rank = static_cast<std::int32_t>(shape_.size());
  for (std::size_t d = 0; d < shape_.size(); ++d) {
    view.shape[d] = shape_[d];
    view.strides[d] = strides_[d];
  }
  return view;
}

TensorView Tensor::host() { return view(memory_.data(), Backend{}); }

Tensor::Device::~Device() { release(backend, memory); }

TensorView Tensor::on(const Backend& backend) {
  before_ = memory_;
  if (!backend.cuda()) {
    device_.reset();
    return view(memory_.data(), backend);
  }
  if (device_ == nullptr) {
    device_ = std::make_shared<Device>();
    device_->backend = backend;
    device_->memory = allocate(backend, memory_.size());
  }
  copy_to(backend, device_->memory, memory_.data(), memory_.size());
  return view(static_cast<std::uint8_t*>(device_->memory), backend);
}

void Tensor::fetch() {
  if (device_ != nullptr) copy_from(device_->backend, memory_.data(), device_->memory, memory_.size());
}

void Tensor::expect_unchanged(const char* what) const { EXPECT_TRUE(memory_ == before_) << what << " was written to"; }

void Tensor::expect_only_elements_changed(const char* what) const {
  std::vector<std::uint8_t> expected = before_;
  const std::int64_t n = numel(), size = dtype_size(dtype_);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t byte = byte_of(i);
    std::memcpy(expected.data() + byte, memory_.data() + byte, static_cast<std::size_t>(size));
  }
  EXPECT_TRUE(memory_ == expected) << "written to outside " << what;
}

double unit_roundoff(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

double subnormal_roundoff(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-150 : dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-134;
}

void expect_refused(const Status& status, StatusCode code, const std::string& part, const Backend& backend,
                    std::initializer_list<Tensor*> tensors) {
  EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code)) << part;
  EXPECT_NE(status.message().find(part), std::string::npos) << "no \"" << part << "\" in: " << status.message();
  synchronize(backend);
  for (Tensor* tensor : tensors) {
    tensor->fetch();
    tensor->expect_unchanged("a tensor");
  }
}

Scratch::Scratch(const Backend& backend, std::size_t bytes)
    : backend_(backend), bytes_(bytes), memory_(allocate(backend, bytes + kGuard)) {
  const std::vector<std::uint8_t> garbage(bytes_ + kGuard, kUnwritten);
  copy_to(backend_, memory_, garbage.data(), garbage.size());
}

Scratch::~Scratch() { release(backend_, memory_); }

std::vector<std::uint8_t> Scratch::contents() const {
  std::vector<std::uint8_t> memory(bytes_ + kGuard);
  copy_from(backend_, memory.data(), memory_, memory.size());
  const auto guard = memory.begin() + static_cast<std::ptrdiff_t>(bytes_);
  EXPECT_TRUE(std::all_of(guard, memory.end(), [](std::uint8_t b) { return b == kUnwritten; }))
      << "written to behind the workspace";
  memory.resize(bytes_);
  return memory;
}

void Scratch::expect_cleared(std::int64_t counters, bool all_used) const {
  const std::vector<std::uint8_t> memory = contents();
  for (std::int64_t i = 0; bytes_ > 0 && i < counters; ++i) {
    std::uint64_t counter;
    std::memcpy(&counter, memory.data() + 8 * i, 8);
    const bool untouched = counter == ~std::uint64_t{0};
    EXPECT_TRUE(counter == 0 || (untouched && !all_used)) << "counter " << i << " is left at " << counter;
  }
}

Workspace::Workspace(const Backend& backend) : scratch_(backend, kLossWorkspaceBytes) {}

void Workspace::expect_intact() const {
  const std::vector<std::uint8_t> memory = scratch_.contents();
  for (auto m = memory.begin(); m != memory.end(); m += 16) {
    if (std::all_of(m, m + 16, [](std::uint8_t b) { return b == kUnwritten; })) continue;
    ASSERT_TRUE(std::all_of(m, m + 16, [](std::uint8_t b) { return b == 0; }))
        << "a message is left at byte " << m - memory.begin() << " of the workspace";
  }
}

}  // namespace strop::testing
