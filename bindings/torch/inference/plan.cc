// Plans for Python: a program and its constants in a capsule, run without Python where it can be.
#include "runtime/plan.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "execute.h"
#include "module.h"
#include "plan_host.h"
#include "tensors.h"
#if STROP_WITH_CUDA
#include "base/device.h"
#endif

namespace strop::binding {
namespace {

using runtime::Call;
using runtime::Operand;
using runtime::Tensor;
using runtime::Value;

constexpr const char* kCapsule = "strop.plan";

struct LoadedPlan {
  std::unique_ptr<runtime::Plan> plan;
  std::vector<void*> parameters;               // handles of the tensors that are the constants
  std::shared_ptr<const Constants> constants;  // what was in them when it was last looked; written under the GIL
  PyObject* callables = nullptr;

  ~LoadedPlan() {
    for (void* handle : parameters) delete_tensor(handle);
    Py_XDECREF(callables);
  }
};

LoadedPlan* plan_of(PyObject* capsule) { return static_cast<LoadedPlan*>(PyCapsule_GetPointer(capsule, kCapsule)); }

void delete_plan(PyObject* capsule) { delete plan_of(capsule); }

Status read_constants(const LoadedPlan& loaded, std::shared_ptr<const Constants>* constants) {
  auto made = std::make_shared<Constants>();
  const auto& declared = loaded.plan->program().constants;
  for (std::size_t i = 0; i < loaded.parameters.size(); ++i) {
    runtime::Constant constant;
    if (Status s = describe(loaded.parameters[i], constant.tensor); !s.ok())
      return Status(s.code(), declared[i].name + ": " + s.message());
    constant.tensor.block = runtime::kConstantBlock - static_cast<std::int32_t>(i);
    try {
      declared[i].check(constant.tensor);
    } catch (const runtime::Error& error) {
      return Status(error.code, error.what());
    }
    // A tensor of its own: what others do to the parameter's sizes or storage meanwhile does not reach a run.
    Tensor turned = constant.tensor;
    TorchHost host(*made, nullptr, nullptr, nullptr);
    if (Status s = host.share(loaded.parameters[i], constant.tensor, constant.tensor, &constant.handle); !s.ok())
      return s;
    made->now.push_back(constant);
    made->transposed.push_back(nullptr);
    if (turned.rank != 2) continue;
    std::swap(turned.shape[0], turned.shape[1]);
    std::swap(turned.strides[0], turned.strides[1]);
    if (Status s = host.share(loaded.parameters[i], constant.tensor, turned, &made->transposed.back()); !s.ok())
      return s;
  }
  *constants = std::move(made);
  return {};
}

// Reads the constants again where one of them has other memory than before.
Status renew_constants(LoadedPlan& loaded) {
  bool same = true;
  for (std::size_t i = 0; i < loaded.parameters.size() && same; ++i) {
    void* data = nullptr;
    aoti_torch_get_data_ptr(static_cast<AtenTensorHandle>(loaded.parameters[i]), &data);
    const void* before = loaded.constants->now[i].tensor.data;
    same = data == before || (data == nullptr && before == &runtime::nothing);
  }
  return same ? Status() : read_constants(loaded, &loaded.constants);
}

// ---- Callables ------------------------------------------------------------------------------------------------------

std::string python_error() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  PyObject* text = value != nullptr ? PyObject_Str(value) : nullptr;
  Py_ssize_t size = 0;
  const char* characters = text != nullptr ? PyUnicode_AsUTF8AndSize(text, &size) : nullptr;
  std::string message = characters != nullptr ? std::string(characters, static_cast<std::size_t>(size)) : "an error";
  PyErr_Clear();
  Py_XDECREF(text);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  return message;
}

PyObject* as_python(TorchHost& host, Call& call, const Operand& operand) {
  if (call.is_tensor(operand)) {
    void* handle = nullptr;
    runtime::check(host.handle_of(call, call.tensor_of(operand), &handle));
    return tensor_from_handle(handle);
  }
  if (operand.kind == Operand::Kind::kList) {
    PyObject* list = PyList_New(0);
    for (const Operand& item : operand.items) {
      PyObject* object = list != nullptr ? as_python(host, call, item) : nullptr;
      if (object == nullptr || PyList_Append(list, object) != 0) {
        Py_XDECREF(object);
        Py_XDECREF(list);
        return nullptr;
      }
      Py_DECREF(object);
    }
    return list;
  }
  const runtime::Value value = call.value_of(operand);
  switch (value.kind) {
    case runtime::Value::Kind::kInt:
      return PyLong_FromLongLong(value.integer);
    case runtime::Value::Kind::kBool:
      return PyBool_FromLong(value.integer != 0);
    case runtime::Value::Kind::kDouble:
      return PyFloat_FromDouble(value.real);
    default:
      Py_INCREF(Py_None);
      return Py_None;
  }
}

Status take(Call& call, int out, PyObject* object) {
  void* handle = handle_from_tensor(object);
  if (handle == nullptr) return Status(StatusCode::kTypeError, python_error());
  Tensor t;
  if (Status s = describe(handle, t); !s.ok()) {
    delete_tensor(handle);
    return s;
  }
  call.adopt(out, t, handle);
  return {};
}

Status call_python_locked(PyObject* callables, int index, TorchHost& host, Call& call) {
  PyObject* callable = PyTuple_GetItem(callables, index);  // borrowed
  if (callable == nullptr) return Status(StatusCode::kTypeError, python_error());
  PyObject* args = PyTuple_New(call.count());
  for (int i = 0; i < call.count(); ++i) {
    PyObject* object = nullptr;
    try {
      object = as_python(host, call, call.operand(i));
    } catch (const runtime::Error& error) {
      Py_DECREF(args);
      return Status(error.code, error.what());
    }
    if (object == nullptr) {
      Py_DECREF(args);
      return Status(StatusCode::kRuntimeError, python_error());
    }
    PyTuple_SetItem(args, i, object);  // steals
  }
  PyObject* result = PyObject_CallObject(callable, args);
  Py_DECREF(args);
  if (result == nullptr) return Status(StatusCode::kRuntimeError, python_error());
  Status status;
  try {
    if (PyTuple_Check(result) || PyList_Check(result)) {
      for (Py_ssize_t i = 0; status.ok() && i < std::min<Py_ssize_t>(PySequence_Size(result), call.outs()); ++i) {
        PyObject* item = PySequence_GetItem(result, i);
        status = take(call, static_cast<int>(i), item);
        Py_DECREF(item);
      }
    } else {
      status = take(call, 0, result);
    }
  } catch (const runtime::Error& error) {
    status = Status(error.code, error.what());
  }
  Py_DECREF(result);
  return status;
}

Status call_python(void* callables, int index, TorchHost& host, Call& call) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  Status status = call_python_locked(static_cast<PyObject*>(callables), index, host, call);
  PyGILState_Release(gil);
  return status;
}

// ---- Runs -----------------------------------------------------------------------------------------------------------

Read read_integer(PyObject* object, const std::string& name, Value& value) {
  if (!PyLong_Check(object)) {
    PyErr_Format(PyExc_TypeError, "%s: expected an int, got %R", name.c_str(), object);
    return Read::kError;
  }
  value = Value(static_cast<std::int64_t>(PyLong_AsLongLong(object)));
  return PyErr_Occurred() != nullptr ? Read::kError : Read::kOk;
}

Read read_tensor(PyObject* object, Value& value) {
  Tensor& t = value.tensor;
  value.kind = Value::Kind::kTensor;
  DLTensor dl;
  if (const Read read = read_dltensor(object, "an input of a plan", dl); read != Read::kOk) return read;
  if (dl.ndim > runtime::kMostDimensions) {
    PyErr_Format(PyExc_ValueError, "expected at most %d dimensions, got %d", runtime::kMostDimensions, dl.ndim);
    return Read::kError;
  }
  fill(t, dl);
  if (t.numel() == 0) t.data = &runtime::nothing;
  return Read::kOk;
}

Status run(const LoadedPlan& loaded, const Constants& constants, const std::vector<Value>& inputs,
           std::vector<void*>* outputs) {
  const NoGrad no_grad;
  void* stream = nullptr;
#if STROP_WITH_CUDA
  for (const Value& input : inputs) {
    const Tensor& t = input.tensor;
    if (t.device != DeviceType::kCuda) continue;
    const DeviceGuard guard(t.device_index);
    if (!guard.status().ok()) return guard.status();
    TensorView on;
    on.device_index = t.device_index;
    if (Status s = current_stream(on, &stream); !s.ok()) return s;
    TorchHost host(constants, stream, &call_python, loaded.callables);
    return loaded.plan->run(host, constants.now, inputs, outputs);
  }
#endif
  TorchHost host(constants, stream, &call_python, loaded.callables);
  return loaded.plan->run(host, constants.now, inputs, outputs);
}

}  // namespace

PyObject* plan_load(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("plan_load", n, 3)) return nullptr;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(args[0], &size);
  if (text == nullptr) return nullptr;
  if (!PyList_Check(args[1]) || !PyTuple_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "plan_load takes a list of tensors and a tuple of callables");
    return nullptr;
  }
  auto loaded = std::make_unique<LoadedPlan>();
  Status status = runtime::Plan::load({text, static_cast<std::size_t>(size)}, &loaded->plan);
  if (!status.ok()) return raise(status);
  const std::size_t wanted = loaded->plan->program().constants.size();
  if (!check_count("the plan's list of constants", PyList_Size(args[1]), static_cast<Py_ssize_t>(wanted)))
    return nullptr;
  for (std::size_t i = 0; i < wanted; ++i) {
    PyObject* tensor = PyList_GetItem(args[1], static_cast<Py_ssize_t>(i));  // borrowed
    void* handle = tensor != nullptr ? handle_from_tensor(tensor) : nullptr;
    if (handle == nullptr) return nullptr;
    loaded->parameters.push_back(handle);
  }
  status = read_constants(*loaded, &loaded->constants);
  if (!status.ok()) return raise(status);
  Py_INCREF(args[2]);
  loaded->callables = args[2];
  PyObject* capsule = PyCapsule_New(loaded.get(), kCapsule, &delete_plan);
  if (capsule != nullptr) static_cast<void>(loaded.release());
  return capsule;
}

PyObject* plan_run(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("plan_run", n, 2)) return nullptr;
  LoadedPlan* loaded = plan_of(args[0]);
  if (loaded == nullptr) return nullptr;
  if (!PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "plan_run takes a tuple of tensors and ints");
    return nullptr;
  }
  std::vector<Value> inputs(static_cast<std::size_t>(PyTuple_Size(args[1])));
  const std::vector<runtime::Declared>& declared = loaded->plan->program().inputs;
  bool on_cpu = true;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    PyObject* object = PyTuple_GetItem(args[1], static_cast<Py_ssize_t>(i));  // borrowed
    const bool integer = i < declared.size() && declared[i].integer;
    const Read read = integer ? read_integer(object, declared[i].name, inputs[i]) : read_tensor(object, inputs[i]);
    if (read == Read::kError) return nullptr;
    if (read == Read::kDispatch) return not_implemented();
    on_cpu &= inputs[i].tensor.device == DeviceType::kCpu;
  }
  if (dispatch_mode_active()) return not_implemented();
  if (!renew_constants(*loaded).ok()) {  // they have another dtype, device or shape: the plan is not theirs any more
    Py_INCREF(Py_None);
    return Py_None;
  }
  const std::shared_ptr<const Constants> constants = loaded->constants;
  std::vector<void*> outputs;
  Status status;
  // As in module.cc: the GIL is kept on a GPU, where a run only starts kernels.
  if (on_cpu) {
    Py_BEGIN_ALLOW_THREADS;
    status = run(*loaded, *constants, inputs, &outputs);
    Py_END_ALLOW_THREADS;
  } else {
    status = run(*loaded, *constants, inputs, &outputs);
  }
  if (!status.ok()) return raise(status);
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(outputs.size()));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    PyObject* tensor = list != nullptr ? tensor_from_handle(outputs[i]) : nullptr;
    if (list == nullptr) delete_tensor(outputs[i]);
    if (tensor == nullptr) {
      Py_XDECREF(list);
      list = nullptr;
    } else {
      PyList_SetItem(list, static_cast<Py_ssize_t>(i), tensor);  // steals
    }
  }
  return list;
}

PyObject* plan_kept_bytes(PyObject*, PyObject* plan) {
  const LoadedPlan* loaded = plan_of(plan);
  return loaded != nullptr ? PyLong_FromSize_t(loaded->plan->kept_bytes()) : nullptr;
}

}  // namespace strop::binding
