// What module.cc offers to the other files of the extension. All of it wants the GIL.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#undef TORCH_TARGET_VERSION  // its header refuses stable builds for its C++ includes' sake; this one is plain C
#include <ATen/dlpack.h>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop::binding {

// Sets the Python exception that a status stands for; returns null.
PyObject* raise(const Status& status);
bool check_count(const char* name, Py_ssize_t got, Py_ssize_t want);
PyObject* not_implemented();

// True where a torch dispatch mode (fake tensors, tracing, profiling of operators) is active.
bool dispatch_mode_active();

DType dtype_of(DLDataType type);

// torch.Tensor itself, no class made of it.
bool is_plain_tensor(PyObject* object);

enum class Read { kOk, kError, kDispatch };

// A plain tensor as DLPack has it, valid for as long as the object. kDispatch: one that only the dispatcher
// understands.
Read read_dltensor(PyObject* object, const char* name, DLTensor& t);

// What it says, as a view of the core or a plan's tensor, which have room for its dimensions.
template <class View>
void fill(View& view, const DLTensor& t) {
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  view.dtype = dtype_of(t.dtype);
  view.device = t.device.device_type == kDLCPU    ? DeviceType::kCpu
                : t.device.device_type == kDLCUDA ? DeviceType::kCuda
                                                  : DeviceType::kOther;
  view.device_index = t.device.device_id;
  view.rank = t.ndim;
  for (int i = 0; i < t.ndim; ++i) view.shape[i] = t.shape[i], view.strides[i] = t.strides[i];
}

// The same as a view of at most kMaxRank dimensions; more are an error.
Read read_tensor(PyObject* object, const char* name, TensorView& view);

// The Python object of a tensor; takes over the AtenTensorHandle.
PyObject* tensor_from_handle(void* handle);
// A new AtenTensorHandle of a tensor's, or null with an exception.
void* handle_from_tensor(PyObject* tensor);

// inference/plan.cc
PyObject* plan_load(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* plan_run(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* plan_kept_bytes(PyObject*, PyObject* plan);

// inference/plan_file.cc
PyObject* plan_missing(PyObject*, PyObject* text);
PyObject* model_load(PyObject*, PyObject* path);
PyObject* model_run(PyObject*, PyObject* const* args, Py_ssize_t n);

// inference/weights.cc
PyObject* weights_load(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* weights_same(PyObject*, PyObject* capsule);
// The same for C++: 1, 0, or -1 with an exception.
int weights_unchanged(PyObject* capsule);
// Whether what was made of them has copies, so that their contents matter; -1 with an exception.
int weights_are_copies(PyObject* capsule);

// inference/look.cc
PyObject* call_look(PyObject*, PyObject* const* args, Py_ssize_t n);

// inference/replay.cc
PyObject* replay_load(PyObject*, PyObject* const* args, Py_ssize_t n);
PyObject* quick_load(PyObject*, PyObject* about);
PyObject* quick_run(PyObject*, PyObject* const* args, Py_ssize_t n);

}  // namespace strop::binding
