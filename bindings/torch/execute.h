// What both ways into the library share: a workspace, a stream and the right device around one call of the core.
#pragma once

#include <cstddef>
#include <cstdint>

#include "strop/losses.h"
#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::binding {

// The stream on which PyTorch puts work for this device at present (module.cc, through DLPack's exchange API: no
// symbol of a CUDA build of PyTorch is needed).
Status current_stream(const TensorView& tensor, void** stream);

// Whether the environment has variable=1.
bool switched_on(const char* variable);

// Lends PyTorch's thread pool to the CPU backend.
void use_torch_threads();

// A workspace for one call, from PyTorch's allocator on a GPU, so that stream order and graph capture hold for it.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  // On the CPU at most kLossWorkspaceBytes.
  Status allocate(const TensorView& like, std::size_t bytes, void* stream, void** data);

 private:
  void* tensor_ = nullptr;  // AtenTensorHandle
};

// Where views of empty tensors point: null means "not given". Aligned for every dtype.
alignas(16) inline char nothing;

// Makes `view` a row-major one of like's first `rank` sizes on its device, over no memory yet; gives its elements'
// number.
std::int64_t make_row_major(TensorView& view, const TensorView& like, DType dtype, int rank);

// A new tensor of that kind from PyTorch's allocator, for a dtype that the losses take; `view` is its contents and
// *tensor an AtenTensorHandle, the caller's to delete.
Status empty_tensor(const TensorView& like, DType dtype, int rank, TensorView& view, void** tensor);
void delete_tensor(void* tensor);

// What the core says of the gradient, said of student_logits: the argument that the caller knows where they are one.
Status in_place_status(Status status);

// Calls call(core, stream) on `like`'s device; the stream is null but on a GPU.
Status on_stream(const TensorView& like, const void* core, Status (*call)(const void*, void* stream));

template <class Core>
Status on_stream(const TensorView& like, const Core& core) {
  return on_stream(like, &core, [](const void* c, void* stream) { return (*static_cast<const Core*>(c))(stream); });
}

// Calls call(core, execution) on `like`'s device, with a workspace for a loss.
Status execute(const TensorView& like, const void* core, Status (*call)(const void*, const Execution&));

template <class Core>
Status execute(const TensorView& like, const Core& core) {
  return execute(like, &core, [](const void* c, const Execution& e) { return (*static_cast<const Core*>(c))(e); });
}

}  // namespace strop::binding
