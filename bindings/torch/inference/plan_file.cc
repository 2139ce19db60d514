// Plan files for Python: what C++ programs run with strop/plan.h, so that strop.save_plan can check what it wrote.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "module.h"
#include "plan_host.h"
#include "runtime/cpu_host.h"
#include "runtime/plan.h"
#include "strop/plan.h"

namespace strop::binding {
namespace {

constexpr const char* kCapsule = "strop.model";

Model* model_of(PyObject* capsule) { return static_cast<Model*>(PyCapsule_GetPointer(capsule, kCapsule)); }

void delete_model(PyObject* capsule) { delete model_of(capsule); }

PyObject* strings(const std::vector<std::string>& texts) {
  PyObject* const list = PyList_New(0);
  for (const std::string& text : texts) {
    PyObject* const item =
        list != nullptr ? PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size())) : nullptr;
    const bool added = item != nullptr && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    if (added) continue;
    Py_XDECREF(list);
    return nullptr;
  }
  return list;
}

// A tensor of PyTorch's with the same contents.
Status copied(const ModelTensor& from, void** handle) {
  const TensorView& view = from.view();
  runtime::Tensor t;
  t.dtype = view.dtype;
  t.rank = view.rank;
  for (int d = 0; d < view.rank; ++d) {
    t.shape[d] = view.shape[d];
    t.strides[d] = view.strides[d];
  }
  const Constants none;
  TorchHost host(none, nullptr, nullptr, nullptr);
  if (Status s = host.empty(t, handle); !s.ok()) return s;
  if (t.numel() > 0) std::memcpy(t.data, view.data, static_cast<std::size_t>(t.bytes()));
  return {};
}

PyObject* tensors(const std::vector<ModelTensor>& results) {
  PyObject* list = PyList_New(0);
  for (const ModelTensor& result : results) {
    void* handle = nullptr;
    if (Status s = copied(result, &handle); !s.ok()) {
      Py_XDECREF(list);
      return raise(s);
    }
    PyObject* const tensor = tensor_from_handle(handle);
    const bool added = list != nullptr && tensor != nullptr && PyList_Append(list, tensor) == 0;
    Py_XDECREF(tensor);
    if (added) continue;
    Py_XDECREF(list);
    return nullptr;
  }
  return list;
}

}  // namespace

// (text of a program) -> the operations in it that need PyTorch.
PyObject* plan_missing(PyObject*, PyObject* text) {
  Py_ssize_t size = 0;
  const char* const characters = PyUnicode_AsUTF8AndSize(text, &size);
  if (characters == nullptr) return nullptr;
  std::unique_ptr<runtime::Plan> plan;
  if (Status s = runtime::Plan::load({characters, static_cast<std::size_t>(size)}, &plan); !s.ok()) return raise(s);
  return strings(runtime::missing_operations(plan->program()));
}

PyObject* model_load(PyObject*, PyObject* path) {
  const char* const text = PyUnicode_AsUTF8AndSize(path, nullptr);
  if (text == nullptr) return nullptr;
  const std::string name = text;
  std::unique_ptr<Model> model;
  Status status;
  Py_BEGIN_ALLOW_THREADS;
  status = Model::load(name, &model);
  Py_END_ALLOW_THREADS;
  if (!status.ok()) return raise(status);
  PyObject* const capsule = PyCapsule_New(model.get(), kCapsule, &delete_model);
  if (capsule != nullptr) static_cast<void>(model.release());
  return capsule;
}

// (model, tuple of tensors) -> list of tensors
PyObject* model_run(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("model_run", n, 2)) return nullptr;
  const Model* const model = model_of(args[0]);
  if (model == nullptr) return nullptr;
  if (!PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "model_run takes a tuple of tensors");
    return nullptr;
  }
  std::vector<TensorView> views(static_cast<std::size_t>(PyTuple_Size(args[1])));
  for (std::size_t i = 0; i < views.size(); ++i) {
    PyObject* const object = PyTuple_GetItem(args[1], static_cast<Py_ssize_t>(i));  // borrowed
    const std::string name = i < model->inputs().size() ? model->inputs()[i].name : "an input";
    const Read read = read_tensor(object, name.c_str(), views[i]);
    if (read == Read::kDispatch) PyErr_Format(PyExc_TypeError, "%s: expected a plain tensor", name.c_str());
    if (read != Read::kOk) return nullptr;
  }
  std::vector<ModelTensor> results;
  Status status;
  Py_BEGIN_ALLOW_THREADS;
  status = model->run(views, &results);
  Py_END_ALLOW_THREADS;
  return status.ok() ? tensors(results) : raise(status);
}

}  // namespace strop::binding
