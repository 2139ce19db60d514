// Whether a module still has the parameters and buffers that something was made of: a look at each, without Python.
#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "execute.h"
#include "module.h"

namespace strop::binding {
namespace {

constexpr const char* kCapsule = "strop.weights";

struct Weight {
  // Borrowed: strop/rewrite/weights.py holds them, where Python's garbage collector sees them.
  PyObject *where, *name, *tensor;
  void* handle;  // of the tensor, owned
  void* data;
  long long version;
};

// at::TensorBase::_version() of libtorch_cpu: an at::Tensor, which is what a handle points to, in a tenth of the time
// of Python's attribute. It is not part of any stable interface; where it is missing the attribute is read.
using Version = std::int64_t (*)(const void* tensor);

Version find_version() {
  void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  const auto found = reinterpret_cast<Version>(dlsym(library, "_ZNK2at10TensorBase8_versionEv"));
  dlclose(library);
  return found;
}

struct Weights {
  std::vector<Weight> all;
  bool contents = false;
  Version read = nullptr;
  ~Weights() {
    for (const Weight& w : all) delete_tensor(w.handle);
  }
};

void delete_weights(PyObject* capsule) { delete static_cast<Weights*>(PyCapsule_GetPointer(capsule, kCapsule)); }

void* data_of(const Weight& w) {
  void* data = nullptr;
  aoti_torch_get_data_ptr(static_cast<AtenTensorHandle>(w.handle), &data);
  return data;
}

// The count of writes to a tensor; -1 with an exception where it cannot be read.
long long attribute_of(PyObject* tensor) {
  static PyObject* const name = PyUnicode_InternFromString("_version");
  PyObject* const version = PyObject_GetAttr(tensor, name);
  if (version == nullptr) return -1;
  const long long value = PyLong_AsLongLong(version);
  Py_DECREF(version);
  return value;
}

// `read` null: by the attribute.
long long version_of(const Weight& w, Version read) {
  return read != nullptr ? read(w.handle) : attribute_of(w.tensor);
}

}  // namespace

// (a list of (dict, name, tensor), whether contents matter) → a capsule that is good for as long as that list.
PyObject* weights_load(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("weights_load", n, 2)) return nullptr;
  if (!PyList_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError, "weights_load takes a list of (dict, name, tensor)");
    return nullptr;
  }
  auto weights = std::make_unique<Weights>();
  weights->contents = PyObject_IsTrue(args[1]) == 1;
  const Py_ssize_t count = PyList_Size(args[0]);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const entry = PyList_GetItem(args[0], i);  // borrowed
    if (!PyTuple_Check(entry) || PyTuple_Size(entry) != 3 || !PyDict_Check(PyTuple_GetItem(entry, 0))) {
      PyErr_SetString(PyExc_TypeError, "weights_load takes a list of (dict, name, tensor)");
      return nullptr;
    }
    Weight w = {PyTuple_GetItem(entry, 0), PyTuple_GetItem(entry, 1), PyTuple_GetItem(entry, 2), nullptr, nullptr, 0};
    w.handle = handle_from_tensor(w.tensor);
    if (w.handle == nullptr) return nullptr;
    w.data = data_of(w);
    weights->all.push_back(w);  // which owns the handle from here on
    Weight& kept = weights->all.back();
    kept.version = attribute_of(w.tensor);
    if (kept.version < 0) return nullptr;
    // Only what says the same as the attribute is what it is taken for.
    if (i == 0) weights->read = find_version();
    if (weights->read != nullptr && weights->read(w.handle) != kept.version) weights->read = nullptr;
  }
  PyObject* const capsule = PyCapsule_New(weights.get(), kCapsule, &delete_weights);
  if (capsule != nullptr) static_cast<void>(weights.release());
  return capsule;
}

int weights_unchanged(PyObject* capsule) {
  const auto* const weights = static_cast<const Weights*>(PyCapsule_GetPointer(capsule, kCapsule));
  if (weights == nullptr) return -1;
  for (const Weight& w : weights->all) {
    if (PyDict_GetItemWithError(w.where, w.name) != w.tensor) return PyErr_Occurred() != nullptr ? -1 : 0;
    if (data_of(w) != w.data) return 0;
    if (weights->contents) {
      const long long version = version_of(w, weights->read);
      if (version < 0) return -1;
      if (version != w.version) return 0;
    }
  }
  return 1;
}

int weights_are_copies(PyObject* capsule) {
  const auto* const weights = static_cast<const Weights*>(PyCapsule_GetPointer(capsule, kCapsule));
  return weights == nullptr ? -1 : weights->contents;
}

// Whether each tensor is where it was, in the memory in which it was; where contents matter, without having been
// written to.
PyObject* weights_same(PyObject*, PyObject* capsule) {
  const int same = weights_unchanged(capsule);
  return same < 0 ? nullptr : PyBool_FromLong(same);
}

}  // namespace strop::binding
