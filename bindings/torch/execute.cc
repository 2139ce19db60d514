#include "execute.h"

#include <torch/csrc/stable/c/shim.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#if STROP_WITH_CUDA
#include "base/device.h"
#endif
#include "strop/parallel.h"

namespace strop::binding {
namespace {

void torch_parallel(std::int64_t n, void (*body)(std::int64_t, std::int64_t, void*), void* context) {
  torch_parallel_for(0, n, 1, body, context);
}

int torch_threads() {
  std::uint32_t n = 1;
  torch_get_num_threads(&n);
  return static_cast<int>(n);
}

struct alignas(64) HostWorkspace {
  unsigned char bytes[kLossWorkspaceBytes];
};

#if STROP_WITH_CUDA
// STROP_CLEAR_WORKSPACE=1: for compute-sanitizer's initcheck, which rightly sees that kernels poll memory nobody has
// written (base/message.cuh).
bool clear_wanted() {
  static const bool wanted = switched_on("STROP_CLEAR_WORKSPACE");
  return wanted;
}
#endif

}  // namespace

bool switched_on(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

void use_torch_threads() { set_parallel_for(&torch_parallel, &torch_threads); }

std::int64_t make_row_major(TensorView& view, const TensorView& like, DType dtype, int rank) {
  view = like;
  view.data = nullptr;
  view.dtype = dtype;
  view.rank = rank;
  std::int64_t elements = 1;
  for (int i = rank - 1; i >= 0; --i) {
    view.strides[i] = elements;
    elements *= view.shape[i];
  }
  return elements;
}

Status empty_tensor(const TensorView& like, DType dtype, int rank, TensorView& view, void** tensor) {
  const std::int64_t elements = make_row_major(view, like, dtype, rank);
  const std::int32_t type = dtype == DType::kFloat16    ? aoti_torch_dtype_float16()
                            : dtype == DType::kBFloat16 ? aoti_torch_dtype_bfloat16()
                                                        : aoti_torch_dtype_float32();
  const bool cuda = like.device == DeviceType::kCuda;
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(rank, view.shape, view.strides, type,
                               cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(),
                               cuda ? like.device_index : 0, &made) != AOTI_TORCH_SUCCESS) {
    return Status(StatusCode::kRuntimeError, "PyTorch could not allocate an output of " + std::to_string(elements) +
                                                 " elements of " + dtype_name(dtype));
  }
  view.data = &nothing;
  if (elements > 0) aoti_torch_get_data_ptr(made, &view.data);
  *tensor = made;
  return {};
}

void delete_tensor(void* tensor) {
  if (tensor != nullptr) aoti_torch_delete_tensor_object(static_cast<AtenTensorHandle>(tensor));
}

Workspace::~Workspace() { delete_tensor(tensor_); }

Status Workspace::allocate(const TensorView& like, std::size_t bytes, [[maybe_unused]] void* stream, void** data) {
  if (like.device == DeviceType::kCpu) {
    // One a thread: a call on the CPU is done with it when it returns.
    thread_local const std::unique_ptr<HostWorkspace> host(new HostWorkspace);
    *data = host->bytes;
    return {};
  }
  const std::int64_t size = static_cast<std::int64_t>(bytes), stride = 1;
  AtenTensorHandle tensor = nullptr;
  if (aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(), aoti_torch_device_type_cuda(),
                               like.device_index, &tensor) != AOTI_TORCH_SUCCESS) {
    return Status(StatusCode::kRuntimeError, "PyTorch could not allocate " + std::to_string(size) +
                                                 " bytes of workspace on cuda:" + std::to_string(like.device_index));
  }
  tensor_ = tensor;
  aoti_torch_get_data_ptr(tensor, data);
#if STROP_WITH_CUDA
  if (clear_wanted()) return clear_device_memory(*data, bytes, stream);
#endif
  return {};
}

Status in_place_status(Status status) {
  constexpr const char* kName = "grad: ";
  if (status.message().rfind(kName, 0) != 0) return status;
  return Status(status.code(), "student_logits: " + status.message().substr(6) + ", with inplace=True");
}

Status on_stream(const TensorView& like, const void* core, Status (*call)(const void*, void*)) {
#if STROP_WITH_CUDA
  if (like.device == DeviceType::kCuda) {
    const DeviceGuard guard(like.device_index);
    if (!guard.status().ok()) return guard.status();
    void* stream = nullptr;
    if (Status s = current_stream(like, &stream); !s.ok()) return s;
    return call(core, stream);
  }
#endif
  static_cast<void>(like);
  return call(core, nullptr);  // on any other device the core says which it takes
}

Status execute(const TensorView& like, const void* core, Status (*call)(const void*, const Execution&)) {
  return on_stream(like, [&](void* stream) -> Status {
    Execution execution;
    execution.stream = stream;
    Workspace workspace;
    if (like.device == DeviceType::kCpu || (STROP_WITH_CUDA && like.device == DeviceType::kCuda)) {
      if (Status s = workspace.allocate(like, kLossWorkspaceBytes, stream, &execution.workspace); !s.ok()) return s;
    }
    return call(core, execution);
  });
}

}  // namespace strop::binding
