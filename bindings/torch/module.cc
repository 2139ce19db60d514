// strop._C: the eager fast path. Tensors are read and made through DLPack's C exchange API, which PyTorch offers since
// 2.10: no dispatcher, about 5 us less a call. Limited API: one file for every CPython from 3.10 on.
//
// Each function takes its Python namesake's arguments by position and returns NotImplemented where the dispatcher must
// see the call (tensor subclasses, active dispatch modes); strop/losses.py then calls torch.ops.strop.
#include "module.h"

#include <dlfcn.h>

#include <string>
#include <utility>

#include "build_info.h"
#include "execute.h"

// A Hub build names the module after the namespace of its operators.
#ifndef STROP_MODULE
#define STROP_MODULE _C
#endif
#define STROP_JOIN2(a, b) a##b
#define STROP_JOIN(a, b) STROP_JOIN2(a, b)
#define STROP_TEXT2(a) #a
#define STROP_TEXT(a) STROP_TEXT2(a)

namespace strop::binding {
namespace {

const DLPackExchangeAPI* exchange = nullptr;
PyObject* tensor_type = nullptr;
PyObject* parameter_type = nullptr;
PyObject* dispatch_depth = nullptr;  // torch._C._len_torch_dispatch_stack

}  // namespace

DType dtype_of(DLDataType t) {
  if (t.lanes != 1) return DType::kOther;
  const int bits = t.bits;
  switch (t.code) {
    case kDLFloat:
      return bits == 32 ? DType::kFloat32 : bits == 16 ? DType::kFloat16 : bits == 64 ? DType::kFloat64 : DType::kOther;
    case kDLBfloat:
      return bits == 16 ? DType::kBFloat16 : DType::kOther;
    case kDLBool:
      return bits == 8 ? DType::kBool : DType::kOther;
    case kDLInt:
      return bits == 64   ? DType::kInt64
             : bits == 32 ? DType::kInt32
             : bits == 16 ? DType::kInt16
             : bits == 8  ? DType::kInt8
                          : DType::kOther;
    case kDLUInt:
      return bits == 8    ? DType::kUInt8
             : bits == 16 ? DType::kUInt16
             : bits == 32 ? DType::kUInt32
             : bits == 64 ? DType::kUInt64
                          : DType::kOther;
    default:
      return DType::kOther;
  }
}

PyObject* raise(const Status& status) {
  PyObject* type = status.code() == StatusCode::kTypeError    ? PyExc_TypeError
                   : status.code() == StatusCode::kValueError ? PyExc_ValueError
                                                              : PyExc_RuntimeError;
  PyErr_SetString(type, status.message().c_str());
  return nullptr;
}

bool is_plain_tensor(PyObject* object) { return reinterpret_cast<PyObject*>(Py_TYPE(object)) == tensor_type; }

Read read_dltensor(PyObject* object, const char* name, DLTensor& t) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != tensor_type && type != parameter_type) {
    const int is_tensor = PyObject_IsInstance(object, tensor_type);
    if (is_tensor > 0) return Read::kDispatch;
    if (is_tensor == 0) {
      PyObject* type_name = PyObject_GetAttrString(type, "__name__");
      PyErr_Format(PyExc_TypeError, "%s: expected a torch.Tensor, got %S", name, type_name ? type_name : type);
      Py_XDECREF(type_name);
    }
    return Read::kError;
  }
  if (exchange->dltensor_from_py_object_no_sync(object, &t) != 0) {
    PyErr_Clear();  // sparse, meta, functorch: not ours to read; the dispatcher says what is wrong with them
    return Read::kDispatch;
  }
  // A lazily negated view (z.conj().imag) holds its values with the other sign. PyTorch makes them with a step alone.
  if (t.ndim > 0 && t.strides[t.ndim - 1] != 1) {
    PyObject* negative = PyObject_CallMethod(object, "is_neg", nullptr);
    if (negative == nullptr) return Read::kError;
    const bool lazy = PyObject_IsTrue(negative) != 0;
    Py_DECREF(negative);
    if (lazy) return Read::kDispatch;
  }
  return Read::kOk;
}

Read read_tensor(PyObject* object, const char* name, TensorView& view) {
  DLTensor t;
  if (const Read read = read_dltensor(object, name, t); read != Read::kOk) return read;
  if (t.ndim > kMaxRank) {
    PyErr_Format(PyExc_ValueError, "%s: expected at most %d dimensions, got %d", name, kMaxRank, t.ndim);
    return Read::kError;
  }
  fill(view, t);
  if (view.numel() == 0) view.data = &nothing;
  return Read::kOk;
}

namespace {

void set_error(void*, const char* kind, const char* message) {
  PyErr_Format(PyExc_RuntimeError, "%s: %s", kind, message);
}

DLDataType dl_dtype(DType dtype) {
  if (dtype == DType::kBFloat16) return {kDLBfloat, 16, 1};
  return {kDLFloat, static_cast<std::uint8_t>(dtype == DType::kFloat16 ? 16 : 32), 1};
}

// THPVariable_Wrap of libtorch_python: the Python object of an at::Tensor, which is what a tensor handle points to. It
// is not part of any stable interface; where it is missing, or does something else, tensors go through DLPack, at the
// price of some time and of memory that PyTorch's allocator does not know by stream (Tensor.record_stream).
using Wrap = PyObject* (*)(const void* tensor);
Wrap wrap = nullptr;

PyObject* make_tensor_by_dlpack(const TensorView& like, DType dtype, int rank, TensorView& view) {
  const std::int64_t elements = make_row_major(view, like, dtype, rank);
  DLTensor prototype = {};
  prototype.device = {view.device == DeviceType::kCuda ? kDLCUDA : kDLCPU, view.device_index};
  prototype.dtype = dl_dtype(dtype);
  prototype.ndim = view.rank;
  prototype.shape = view.shape;
  DLManagedTensorVersioned* made = nullptr;
  if (exchange->managed_tensor_allocator(&prototype, &made, nullptr, &set_error) != 0) return nullptr;
  const DLTensor& t = made->dl_tensor;
  view.data = elements == 0 ? &nothing : static_cast<char*>(t.data) + t.byte_offset;
  void* object = nullptr;
  if (exchange->managed_tensor_to_py_object_no_sync(made, &object) != 0) return nullptr;
  return static_cast<PyObject*>(object);
}

// A new row-major tensor of like's first `rank` sizes; `view` is its contents.
PyObject* make_tensor(const TensorView& like, DType dtype, int rank, TensorView& view) {
  if (wrap == nullptr) return make_tensor_by_dlpack(like, dtype, rank, view);
  void* tensor = nullptr;
  if (const Status s = empty_tensor(like, dtype, rank, view, &tensor); !s.ok()) return raise(s);
  PyObject* object = wrap(tensor);
  delete_tensor(tensor);
  return object;
}

// Looks for THPVariable_Wrap and tries it; not with STROP_DLPACK_OUTPUTS=1, so that the other way can be tested.
void find_wrap() {
  if (switched_on("STROP_DLPACK_OUTPUTS")) return;
  void* library = dlopen("libtorch_python.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return;
  wrap = reinterpret_cast<Wrap>(dlsym(library, "_Z16THPVariable_WrapRKN2at10TensorBaseE"));
  dlclose(library);
  if (wrap == nullptr) return;
  TensorView like, made, seen;
  like.device = DeviceType::kCpu;
  like.rank = 2;
  like.shape[0] = 3, like.shape[1] = 5;
  PyObject* object = make_tensor(like, DType::kFloat16, 2, made);
  const bool works = object != nullptr && read_tensor(object, "probe", seen) == Read::kOk && seen.data == made.data &&
                     seen.dtype == DType::kFloat16 && seen.rank == 2 && seen.shape[0] == 3 && seen.shape[1] == 5;
  PyErr_Clear();
  Py_XDECREF(object);
  if (!works) wrap = nullptr;
}

bool read_double(PyObject* object, const char* name, double& value) {
  value = PyFloat_AsDouble(object);
  if (value != -1.0 || !PyErr_Occurred()) return true;
  PyErr_Clear();
  PyErr_Format(PyExc_TypeError, "%s: expected a real number, got %R", name, object);
  return false;
}

}  // namespace

bool dispatch_mode_active() {
  PyObject* depth = PyObject_CallObject(dispatch_depth, nullptr);
  if (depth == nullptr) {
    PyErr_Clear();
    return true;
  }
  const long n = PyLong_AsLong(depth);
  Py_DECREF(depth);
  return n != 0;
}

PyObject* not_implemented() {
  Py_INCREF(Py_NotImplemented);
  return Py_NotImplemented;
}

namespace {

bool is_loss_dtype(DType t) { return t == DType::kFloat32 || t == DType::kFloat16 || t == DType::kBFloat16; }

// Outputs, the call, and what the Python function returns: loss, or (loss, grad). `in_place` is the tensor whose memory
// the gradient takes, or null.
template <class Core>
PyObject* run(const TensorView& like, bool fused, PyObject* in_place, Core&& core) {
  TensorView loss, grad;
  PyObject* loss_object = nullptr;
  PyObject* grad_object = nullptr;
  // An input that the core will refuse gets no outputs, only its error.
  const bool outputs = like.device != DeviceType::kOther && is_loss_dtype(like.dtype);
  if (outputs) {
    loss_object = make_tensor(like, DType::kFloat32, 0, loss);
    if (loss_object == nullptr) return nullptr;
    if (fused && in_place != nullptr) {
      Py_INCREF(in_place);
      grad_object = in_place;
      grad = like;
    } else if (fused) {
      grad_object = make_tensor(like, like.dtype, like.rank, grad);
      if (grad_object == nullptr) {
        Py_DECREF(loss_object);
        return nullptr;
      }
    }
  }
  Status status;
  // The GIL is kept on a GPU, where a call returns at once, and released on the CPU, where it computes.
  if (like.device == DeviceType::kCpu) {
    Py_BEGIN_ALLOW_THREADS;
    status = execute(like, [&](const Execution& e) { return core(loss, grad, e); });
    Py_END_ALLOW_THREADS;
  } else {
    status = execute(like, [&](const Execution& e) { return core(loss, grad, e); });
  }
  if (!status.ok()) {
    Py_XDECREF(loss_object);
    Py_XDECREF(grad_object);
    return raise(status);
  }
  if (!fused) return loss_object;
  PyObject* pair = PyTuple_Pack(2, loss_object, grad_object);
  Py_DECREF(loss_object);
  Py_DECREF(grad_object);
  return pair;
}

}  // namespace

bool check_count(const char* name, Py_ssize_t got, Py_ssize_t want) {
  if (got == want) return true;
  PyErr_Format(PyExc_TypeError, "%s takes exactly %zd positional arguments (%zd given)", name, want, got);
  return false;
}

namespace {

PyObject* attribute(const char* module, const char* name) {
  PyObject* m = PyImport_ImportModule(module);
  if (m == nullptr) return nullptr;
  PyObject* a = PyObject_GetAttrString(m, name);
  Py_DECREF(m);
  return a;
}

// torch._C._aoti.<name>(argument): how AOTInductor's containers exchange tensors with Python.
PyObject* call_aoti(const char* name, PyObject* argument) {
  PyObject* module = attribute("torch._C", "_aoti");
  if (module == nullptr) return nullptr;
  PyObject* result = PyObject_CallMethod(module, name, "O", argument);
  Py_DECREF(module);
  return result;
}

}  // namespace

PyObject* tensor_from_handle(void* handle) {
  if (wrap != nullptr) {
    PyObject* object = wrap(handle);
    delete_tensor(handle);
    return object;
  }
  PyObject* capsule = PyCapsule_New(handle, nullptr, nullptr);
  PyObject* object = capsule != nullptr ? call_aoti("alloc_tensor_by_stealing_from_void_ptr", capsule) : nullptr;
  if (object == nullptr) delete_tensor(handle);
  Py_XDECREF(capsule);
  return object;
}

void* handle_from_tensor(PyObject* tensor) {
  PyObject* capsule = call_aoti("unsafe_alloc_void_ptr_from_tensor", tensor);
  if (capsule == nullptr) return nullptr;
  void* handle = PyCapsule_GetPointer(capsule, nullptr);
  Py_DECREF(capsule);
  return handle;
}

namespace {

using PolicyLoss = Status (*)(const PolicyLossInputs&, const PolicyLossOptions&, const TensorView&, const TensorView&,
                              const Execution&);

template <PolicyLoss kCore, bool kFused>
PyObject* policy_loss(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("policy loss", n, 8)) return nullptr;
  PolicyLossInputs in;
  PolicyLossOptions options;
  if (!read_double(args[5], "beta", options.beta) || !read_double(args[6], "eps", options.eps)) return nullptr;
  if (args[7] != Py_None) {
    double high;
    if (!read_double(args[7], "eps_high", high)) return nullptr;
    options.eps_high = high;
  }
  static const char* const kNames[] = {"policy_logprobs", "old_policy_logprobs", "ref_logprobs", "advantages",
                                       "completions_mask"};
  TensorView* const views[] = {&in.policy_logprobs, &in.old_policy_logprobs, &in.ref_logprobs, &in.advantages,
                               &in.completions_mask};
  for (int i = 0; i < 5; ++i) {
    if (i == 2 && (args[i] == Py_None || options.beta == 0)) continue;
    const Read r = read_tensor(args[i], kNames[i], *views[i]);
    if (r == Read::kError) return nullptr;
    if (r == Read::kDispatch) return not_implemented();
  }
  if (dispatch_mode_active()) return not_implemented();
  return run(in.policy_logprobs, kFused, nullptr,
             [&](const TensorView& loss, const TensorView& grad, const Execution& e) {
               return kCore(in, options, loss, grad, e);
             });
}

template <bool kFused>
PyObject* reverse_kl_call(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("reverse KL", n, kFused ? 4 : 3)) return nullptr;
  ReverseKlInputs in;
  static const char* const kNames[] = {"student_logits", "teacher_logits", "completions_mask"};
  TensorView* const views[] = {&in.student_logits, &in.teacher_logits, &in.completions_mask};
  for (int i = 0; i < 3; ++i) {
    const Read r = read_tensor(args[i], kNames[i], *views[i]);
    if (r == Read::kError) return nullptr;
    if (r == Read::kDispatch) return not_implemented();
  }
  const int in_place = kFused ? PyObject_IsTrue(args[3]) : 0;
  if (in_place < 0) return nullptr;
  if (dispatch_mode_active()) return not_implemented();
  return run(in.student_logits, kFused, in_place ? args[0] : nullptr,
             [&](const TensorView& loss, const TensorView& grad, const Execution& e) {
               Status status = reverse_kl_loss(in, loss, grad, e);
               return in_place ? in_place_status(std::move(status)) : status;
             });
}

PyObject* build_info(PyObject*, PyObject*) {
  const std::string json = build_info_json();
  PyObject* module = PyImport_ImportModule("json");
  if (module == nullptr) return nullptr;
  PyObject* info = PyObject_CallMethod(module, "loads", "s", json.c_str());
  Py_DECREF(module);
  return info;
}

template <class F>
PyCFunction as_method(F f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef methods[] = {
    {"grpo_loss_fwd", as_method(&policy_loss<&grpo_loss, false>), METH_FASTCALL, nullptr},
    {"grpo_loss", as_method(&policy_loss<&grpo_loss, true>), METH_FASTCALL, nullptr},
    {"bnpo_loss_fwd", as_method(&policy_loss<&bnpo_loss, false>), METH_FASTCALL, nullptr},
    {"bnpo_loss", as_method(&policy_loss<&bnpo_loss, true>), METH_FASTCALL, nullptr},
    {"reverse_kl_fwd", as_method(&reverse_kl_call<false>), METH_FASTCALL, nullptr},
    {"reverse_kl", as_method(&reverse_kl_call<true>), METH_FASTCALL, nullptr},
#if !STROP_LOSSES_ONLY  // the Hub's copy
    {"plan_load", as_method(&plan_load), METH_FASTCALL, nullptr},
    {"plan_run", as_method(&plan_run), METH_FASTCALL, nullptr},
    {"plan_kept_bytes", &plan_kept_bytes, METH_O, nullptr},
    {"plan_missing", &plan_missing, METH_O, nullptr},
    {"model_load", &model_load, METH_O, nullptr},
    {"model_run", as_method(&model_run), METH_FASTCALL, nullptr},
    {"weights_load", as_method(&weights_load), METH_FASTCALL, nullptr},
    {"weights_same", &weights_same, METH_O, nullptr},
    {"call_look", as_method(&call_look), METH_FASTCALL, nullptr},
    {"replay_load", as_method(&replay_load), METH_FASTCALL, nullptr},
    {"quick_load", &quick_load, METH_O, nullptr},
    {"quick_run", as_method(&quick_run), METH_FASTCALL, nullptr},
#endif
    {"build_info", &build_info, METH_NOARGS, "What this file was built with and what it finds, as a dict."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    STROP_TEXT(STROP_MODULE),
    "Fast eager calls; see strop/losses.py.",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

Status current_stream(const TensorView& tensor, void** stream) {
  if (exchange->current_work_stream(kDLCUDA, tensor.device_index, stream) == 0) return {};
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyErr_Clear();
  PyGILState_Release(gil);
  return Status(StatusCode::kRuntimeError,
                "PyTorch gave no current stream for cuda:" + std::to_string(tensor.device_index));
}

}  // namespace strop::binding

extern "C" __attribute__((visibility("default"))) PyObject* STROP_JOIN(PyInit_, STROP_MODULE)() {
  using namespace strop::binding;
  tensor_type = attribute("torch", "Tensor");
  parameter_type = attribute("torch.nn", "Parameter");
  dispatch_depth = attribute("torch._C", "_len_torch_dispatch_stack");
  if (tensor_type == nullptr || parameter_type == nullptr || dispatch_depth == nullptr) return nullptr;
  PyObject* capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) return nullptr;
  exchange = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  if (exchange == nullptr) return nullptr;
  if (exchange->header.version.major != DLPACK_MAJOR_VERSION || exchange->dltensor_from_py_object_no_sync == nullptr) {
    PyErr_Format(PyExc_ImportError, "strop needs DLPack %d's exchange API, this PyTorch has version %u.%u",
                 DLPACK_MAJOR_VERSION, exchange->header.version.major, exchange->header.version.minor);
    return nullptr;
  }
  find_wrap();
  use_torch_threads();
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) PyModule_AddStringConstant(module, "VERSION", STROP_VERSION);
  return module;
}
