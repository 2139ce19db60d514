#include "plan_host.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <array>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "execute.h"

namespace strop::binding {
namespace {

using runtime::Call;
using runtime::Error;
using runtime::Foreign;
using runtime::ForeignType;
using runtime::Operand;
using runtime::Tensor;

AtenTensorHandle aten(void* handle) { return static_cast<AtenTensorHandle>(handle); }

using TypeGetter = std::int32_t (*)();
struct TypePair {
  DType dtype;
  TypeGetter get;
};
constexpr TypePair kTypes[] = {
    {DType::kFloat32, &aoti_torch_dtype_float32},   {DType::kFloat16, &aoti_torch_dtype_float16},
    {DType::kBFloat16, &aoti_torch_dtype_bfloat16}, {DType::kFloat64, &aoti_torch_dtype_float64},
    {DType::kBool, &aoti_torch_dtype_bool},         {DType::kInt8, &aoti_torch_dtype_int8},
    {DType::kUInt8, &aoti_torch_dtype_uint8},       {DType::kInt16, &aoti_torch_dtype_int16},
    {DType::kUInt16, &aoti_torch_dtype_uint16},     {DType::kInt32, &aoti_torch_dtype_int32},
    {DType::kUInt32, &aoti_torch_dtype_uint32},     {DType::kInt64, &aoti_torch_dtype_int64},
    {DType::kUInt64, &aoti_torch_dtype_uint64}};

std::int32_t torch_type(DType dtype) {
  for (const TypePair& pair : kTypes)
    if (pair.dtype == dtype) return pair.get();
  throw Error(std::string("PyTorch has no dtype for ") + dtype_name(dtype));
}

DType dtype_from(std::int32_t type) {
  for (const TypePair& pair : kTypes)
    if (pair.get() == type) return pair.dtype;
  return DType::kOther;
}

std::int32_t torch_device(DeviceType device) {
  return device == DeviceType::kCuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
}

// PyTorch's own words for what went wrong last in this thread; it tells them since 2.13.
std::string last_error() {
  using What = const char* (*)();
  static const What what = [] {
    void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return What{nullptr};
    void* symbol = dlsym(library, "torch_exception_get_what_without_backtrace");
    dlclose(library);
    return reinterpret_cast<What>(symbol);
  }();
  const char* text = what != nullptr ? what() : nullptr;
  return text != nullptr && *text != '\0' ? text : "PyTorch refused it, and said why on the standard error stream";
}

Status failure() { return Status(StatusCode::kRuntimeError, last_error()); }

#define STROP_TORCH(expression)                               \
  do {                                                        \
    if ((expression) != AOTI_TORCH_SUCCESS) return failure(); \
  } while (false)

// Owns handles until they are given away.
class Handles {
 public:
  Handles() = default;
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    for (int i = 0; i < count_; ++i) delete_tensor(handles_[i]);
  }
  Status borrowed(const Tensor& t, AtenTensorHandle* handle) {
    void* made = nullptr;
    if (Status s = borrow(t, &made); !s.ok()) return s;
    *handle = aten(handles_[count_++] = made);
    return {};
  }

 private:
  void* handles_[4] = {};
  int count_ = 0;
};

// After an error the arguments are left alone: PyTorch has taken some of them over by then, and nobody can tell which.
Status dispatch(const char* name, const char* overload, StableIValue* stack) {
  if (torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) return failure();
  return {};
}

template <class T>
StableIValue box(T value) {
  return torch::stable::detail::from(value);
}

StableIValue boxed_string(const std::string& text) {
  StringHandle handle = nullptr;
  if (torch_new_string_handle(text.data(), text.size(), &handle) != AOTI_TORCH_SUCCESS) throw Error(last_error());
  return box(handle);
}

std::int32_t memory_format(const std::string& name) {
  if (name == "contiguous_format") return aoti_torch_memory_format_contiguous_format();
  if (name == "preserve_format") return aoti_torch_memory_format_preserve_format();
  if (name == "channels_last") return aoti_torch_memory_format_channels_last();
  throw Error("memory format " + name + " is not known");
}

class Encoder {
 public:
  Encoder(TorchHost& host, Call& call) : host_(host), call_(call) {}

  StableIValue argument(const Operand& operand, const ForeignType& type) {
    if (type.optional) {
      if (call_.is_none(operand)) return box(nullptr);
      return box(new StableIValue(type.list ? list(operand, type) : one(operand, type.base)));
    }
    return type.list ? list(operand, type) : one(operand, type.base);
  }

 private:
  StableIValue list(const Operand& operand, const ForeignType& type) {
    StableListHandle list = nullptr;
    // One number stands for a list of one, as for PyTorch.
    const std::span<const Operand> items =
        operand.kind == Operand::Kind::kList ? std::span<const Operand>(operand.items) : std::span(&operand, 1);
    if (torch_new_list_reserve_size(items.size(), &list) != AOTI_TORCH_SUCCESS) throw Error(last_error());
    ForeignType item_type;
    item_type.base = type.base;
    item_type.optional = type.optional_items;
    for (const Operand& item : items)
      if (torch_list_push_back(list, argument(item, item_type)) != AOTI_TORCH_SUCCESS) throw Error(last_error());
    return box(list);
  }

  StableIValue one(const Operand& operand, ForeignType::Base base) {
    switch (base) {
      case ForeignType::Base::kTensor: {
        void* handle = nullptr;
        runtime::check(host_.handle_of(call_, call_.tensor_of(operand), &handle));
        return box(aten(handle));
      }
      case ForeignType::Base::kInt:
        return box(call_.integer_of(operand));
      case ForeignType::Base::kDouble:
        return box(call_.real_of(operand));
      case ForeignType::Base::kBool:
        return box(call_.integer_of(operand) != 0);
      case ForeignType::Base::kString:
        if (operand.kind == Operand::Kind::kString) return boxed_string(operand.text);
        break;
      case ForeignType::Base::kDType:
        if (operand.kind == Operand::Kind::kDType) return box(torch_type(operand.dtype));
        break;
      case ForeignType::Base::kDevice:
        if (operand.kind == Operand::Kind::kDevice)
          return static_cast<std::uint64_t>(static_cast<std::uint32_t>(operand.integer)) |
                 static_cast<std::uint64_t>(static_cast<std::uint32_t>(torch_device(operand.device))) << 32;
        break;
      case ForeignType::Base::kLayout:
        if (operand.kind == Operand::Kind::kLayout) return box(aoti_torch_layout_strided());
        break;
      case ForeignType::Base::kMemoryFormat:
        if (operand.kind == Operand::Kind::kMemoryFormat) return box(memory_format(operand.text));
        break;
    }
    throw Error("an argument of another type than its schema's", StatusCode::kTypeError);
  }

  TorchHost& host_;
  Call& call_;
};

void adopt(Call& call, int out, AtenTensorHandle handle) {
  Tensor t;
  if (const Status s = describe(handle, t); !s.ok()) {
    delete_tensor(handle);
    runtime::check(s);
  }
  call.adopt(out, t, handle);
}

// The first `taken` results have gone to registers; the rest is let go.
void drop(std::span<const StableIValue> results, std::span<const ForeignType> types) {
  for (std::size_t i = 0; i < results.size(); ++i)
    if (types[i].base == ForeignType::Base::kTensor && !types[i].list)
      delete_tensor(torch::stable::detail::to<AtenTensorHandle>(results[i]));
}

// A list of tensors into one register each.
void adopt_list(Call& call, StableListHandle list) {
  std::size_t size = 0;
  torch_list_size(list, &size);
  std::string problem;
  if (size != static_cast<std::size_t>(call.outs()))
    problem = std::to_string(size) + " results, expected " + std::to_string(call.outs());
  for (std::size_t i = 0; problem.empty() && i < size; ++i) {
    StableIValue item;
    if (torch_list_get_item(list, i, &item) != AOTI_TORCH_SUCCESS) {
      problem = last_error();
    } else {
      try {
        adopt(call, static_cast<int>(i), torch::stable::detail::to<AtenTensorHandle>(item));
      } catch (const Error& error) {
        problem = error.what();
      }
    }
  }
  torch_delete_list(list);
  if (!problem.empty()) throw Error(problem);
}

void take_results(Call& call, std::span<const StableIValue> results, std::span<const ForeignType> types) {
  if (types.size() == 1 && types[0].list)
    return adopt_list(call, torch::stable::detail::to<StableListHandle>(results[0]));
  for (std::size_t i = 0; i < types.size(); ++i) {
    const int out = static_cast<int>(i);
    if (out >= call.outs()) return drop(results.subspan(i), types.subspan(i));
    switch (types[i].base) {
      case ForeignType::Base::kTensor:
        try {
          adopt(call, out, torch::stable::detail::to<AtenTensorHandle>(results[i]));
        } catch (...) {
          drop(results.subspan(i + 1), types.subspan(i + 1));
          throw;
        }
        break;
      case ForeignType::Base::kInt:
        call.set_int(out, torch::stable::detail::to<std::int64_t>(results[i]));
        break;
      case ForeignType::Base::kDouble:
        call.set_double(out, torch::stable::detail::to<double>(results[i]));
        break;
      case ForeignType::Base::kBool:
        call.set_bool(out, torch::stable::detail::to<bool>(results[i]));
        break;
      default:
        throw Error("a result of a type that is not known");
    }
  }
}

}  // namespace

Constants::~Constants() {
  for (const runtime::Constant& constant : now) delete_tensor(constant.handle);
  for (void* handle : transposed) delete_tensor(handle);
}

Status describe(void* handle, Tensor& t) {
  const AtenTensorHandle h = aten(handle);
  std::int64_t rank = 0;
  std::int64_t* sizes = nullptr;
  std::int64_t* strides = nullptr;
  std::int32_t type = 0, device = 0, index = 0, layout = 0;
  STROP_TORCH(aoti_torch_get_layout(h, &layout));
  if (layout != aoti_torch_layout_strided()) return Status(StatusCode::kTypeError, "a tensor that is not strided");
  STROP_TORCH(aoti_torch_get_dim(h, &rank));
  if (rank > runtime::kMostDimensions)
    return Status(StatusCode::kValueError, "a tensor with " + std::to_string(rank) + " dimensions");
  STROP_TORCH(aoti_torch_get_sizes(h, &sizes));
  STROP_TORCH(aoti_torch_get_strides(h, &strides));
  STROP_TORCH(aoti_torch_get_dtype(h, &type));
  STROP_TORCH(aoti_torch_get_device_type(h, &device));
  STROP_TORCH(aoti_torch_get_device_index(h, &index));
  STROP_TORCH(aoti_torch_get_data_ptr(h, &t.data));
  t.dtype = dtype_from(type);
  if (t.dtype == DType::kOther) return Status(StatusCode::kTypeError, "a tensor of a dtype that plans do not know");
  t.device = device == aoti_torch_device_type_cpu()    ? DeviceType::kCpu
             : device == aoti_torch_device_type_cuda() ? DeviceType::kCuda
                                                       : DeviceType::kOther;
  t.device_index = index < 0 ? 0 : index;
  t.rank = static_cast<std::int32_t>(rank);
  for (int d = 0; d < t.rank; ++d) {
    t.shape[d] = sizes[d];
    t.strides[d] = strides[d];
  }
  if (t.data == nullptr || t.numel() == 0) t.data = &runtime::nothing;
  return {};
}

Status borrow(const Tensor& t, void** handle) {
  AtenTensorHandle made = nullptr;
  STROP_TORCH(aoti_torch_create_tensor_from_blob(t.data, t.rank, t.shape, t.strides, 0, torch_type(t.dtype),
                                                 torch_device(t.device),
                                                 t.device == DeviceType::kCpu ? 0 : t.device_index, &made));
  *handle = made;
  return {};
}

Status TorchHost::allocate(DeviceType device, int index, std::size_t bytes, void** data, void** handle) {
  const std::int64_t size = static_cast<std::int64_t>(bytes), stride = 1;
  AtenTensorHandle made = nullptr;
  STROP_TORCH(
      aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(), torch_device(device), index, &made));
  *handle = made;
  STROP_TORCH(aoti_torch_get_data_ptr(made, data));
  return {};
}

Status TorchHost::empty(Tensor& t, void** handle) {
  AtenTensorHandle made = nullptr;
  STROP_TORCH(aoti_torch_empty_strided(t.rank, t.shape, t.strides, torch_type(t.dtype), torch_device(t.device),
                                       t.device == DeviceType::kCpu ? 0 : t.device_index, &made));
  *handle = made;
  t.data = &runtime::nothing;
  if (t.numel() > 0) aoti_torch_get_data_ptr(made, &t.data);
  return {};
}

Status TorchHost::share(void* handle, const Tensor& whole, const Tensor& t, void** shared) {
  AtenTensorHandle made = nullptr;
  if (runtime::same_layout(whole, t)) {
    STROP_TORCH(aoti_torch_new_tensor_handle(aten(handle), &made));
  } else {
    std::int64_t offset = 0;
    STROP_TORCH(aoti_torch_get_storage_offset(aten(handle), &offset));
    if (t.numel() > 0)
      offset += (static_cast<char*>(t.data) - static_cast<char*>(whole.data)) / dtype_size(whole.dtype);
    STROP_TORCH(aoti_torch__reinterpret_tensor(aten(handle), t.rank, t.shape, t.strides, offset, &made));
  }
  *shared = made;
  return {};
}

void TorchHost::release(void* handle) { delete_tensor(handle); }

Status TorchHost::copy(const Tensor& to, const Tensor& from) {
  Handles handles;
  AtenTensorHandle a = nullptr, b = nullptr;
  if (Status s = handles.borrowed(to, &a); !s.ok()) return s;
  if (Status s = handles.borrowed(from, &b); !s.ok()) return s;
  STROP_TORCH(aoti_torch_copy_(a, b, 0));
  return {};
}

Status TorchHost::handle_of(Call& call, const Tensor& t, void** handle) {
  AtenTensorHandle made = nullptr;
  const Tensor* whole = nullptr;
  void* owner = nullptr;
  if (t.block <= runtime::kConstantBlock) {
    const runtime::Constant& constant = call.frame().constant(runtime::kConstantBlock - t.block);
    whole = &constant.tensor;
    owner = constant.handle;
  } else if (t.block >= 0) {
    const runtime::Block& block = call.frame().block(t.block);
    whole = &block.whole;
    owner = block.handle;
  }
  if (owner != nullptr && runtime::same_layout(*whole, t)) {
    STROP_TORCH(aoti_torch_new_tensor_handle(aten(owner), &made));
    *handle = made;
    return {};
  }
  return borrow(t, handle);
}

Status TorchHost::linear(Call&, const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& out) {
  if (out.numel() == 0) return {};
  Handles handles;
  AtenTensorHandle input = nullptr, output = nullptr, matrix = nullptr, row = nullptr;
  const auto constant = [&](const Tensor& t) { return t.block <= runtime::kConstantBlock; };
  const auto index = [](const Tensor& t) { return static_cast<std::size_t>(runtime::kConstantBlock - t.block); };
  // cuBLASLt refuses a single row that does not step as a row of a matrix would.
  const auto stepping = [](Tensor t) {
    if (t.shape[0] == 1) t.strides[0] = t.shape[1];
    return t;
  };
  if (Status s = handles.borrowed(stepping(x), &input); !s.ok()) return s;
  if (Status s = handles.borrowed(stepping(out), &output); !s.ok()) return s;
  if (bias != nullptr) {
    if (constant(*bias) && runtime::same_layout(constants_.now[index(*bias)].tensor, *bias)) {
      row = aten(constants_.now[index(*bias)].handle);
    } else if (Status s = handles.borrowed(*bias, &row); !s.ok()) {
      return s;
    }
  }
  if (x.device == DeviceType::kCpu) {
    // Without the dispatcher: a function of the stable C interface that AOTInductor's models call.
    if (constant(weight) && runtime::same_layout(constants_.now[index(weight)].tensor, weight)) {
      matrix = aten(constants_.transposed[index(weight)]);
    } else {
      Tensor turned = weight;
      std::swap(turned.shape[0], turned.shape[1]);
      std::swap(turned.strides[0], turned.strides[1]);
      if (Status s = handles.borrowed(turned, &matrix); !s.ok()) return s;
    }
    if (row != nullptr) {
      STROP_TORCH(aoti_torch_cpu_addmm_out(output, row, input, matrix, 1, 1));
    } else {
      STROP_TORCH(aoti_torch_cpu_mm_out(output, input, matrix));
    }
    return {};
  }
  if (constant(weight) && runtime::same_layout(constants_.now[index(weight)].tensor, weight)) {
    matrix = aten(constants_.now[index(weight)].handle);
  } else if (Status s = handles.borrowed(weight, &matrix); !s.ok()) {
    return s;
  }
  std::array<AtenTensorHandle, 4> given = {input, matrix, row, output}, kept = {};
  for (std::size_t i = 0; i < given.size(); ++i)
    if (given[i] != nullptr) STROP_TORCH(aoti_torch_new_tensor_handle(given[i], &kept[i]));
  StableIValue stack[4] = {box(kept[0]), box(kept[1]),
                           kept[2] == nullptr ? box(nullptr) : box(new StableIValue(box(kept[2]))), box(kept[3])};
  if (Status s = dispatch("aten::linear", "out", stack); !s.ok()) return s;
  delete_tensor(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
  return {};
}

Status TorchHost::call(const Foreign& foreign, Call& call) {
  if (foreign.callable >= 0) return python_(context_, foreign.callable, *this, call);
  constexpr std::size_t kMostArguments = 24;
  StableIValue stack[kMostArguments];
  if (foreign.types.size() > kMostArguments || foreign.results.size() > kMostArguments)
    return Status(StatusCode::kTypeError, "more arguments than " + std::to_string(kMostArguments));
  Encoder encoder(*this, call);
  for (std::size_t i = 0; i < foreign.types.size(); ++i)
    stack[i] = encoder.argument(call.operand(static_cast<int>(i)), foreign.types[i]);
  if (Status s = dispatch(foreign.name.c_str(), foreign.overload.c_str(), stack); !s.ok()) return s;
  take_results(call, {stack, foreign.results.size()}, foreign.results);
  return {};
}

}  // namespace strop::binding
