// What a call looks like: names, kinds and sizes of its arguments, as a key of a dict. In Python it would take several
// microseconds of each call.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <string>

#include "module.h"

namespace strop::binding {
namespace {

template <class T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

bool wants_gradient(PyObject* tensor, bool* failed) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  PyObject* const wanted = PyObject_GetAttr(tensor, name);
  *failed = wanted == nullptr;
  const bool yes = wanted != nullptr && PyObject_IsTrue(wanted) == 1;
  Py_XDECREF(wanted);
  return yes;
}

// Shape, dtype, device and whether a gradient is wanted.
Read describe(PyObject* tensor, std::string& bytes) {
  DLTensor t;
  if (const Read read = read_dltensor(tensor, "argument", t); read != Read::kOk) return read;
  put(bytes, t.ndim);
  for (int i = 0; i < t.ndim; ++i) put(bytes, t.shape[i]);
  put(bytes, t.dtype.code);
  put(bytes, t.dtype.bits);
  put(bytes, static_cast<std::int32_t>(t.device.device_type));
  put(bytes, t.device.device_id);
  const bool floats = t.dtype.code != kDLInt && t.dtype.code != kDLUInt && t.dtype.code != kDLBool;
  bool failed = false;
  put(bytes, floats && wants_gradient(tensor, &failed));
  return failed ? Read::kError : Read::kOk;
}

bool is_fixed(PyObject* value) {
  return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) || PyFloat_CheckExact(value) ||
         PyUnicode_CheckExact(value);
}

bool push(PyObject* list, PyObject* item) { return item != nullptr && PyList_Append(list, item) == 0; }

// False with an exception; *known false where an argument is of another kind.
bool look_at(PyObject* given, PyObject* looks, bool* known) {
  std::string bytes;
  PyObject *name, *value;
  Py_ssize_t at = 0;
  while (PyDict_Next(given, &at, &name, &value) != 0) {
    if (!push(looks, name)) return false;
    if (is_fixed(value)) {
      // 1, 1.0 and True are equal as keys and are not the same to a model.
      if (!push(looks, reinterpret_cast<PyObject*>(Py_TYPE(value))) || !push(looks, value)) return false;
    } else if (is_plain_tensor(value)) {
      const Read read = describe(value, bytes);
      if (read == Read::kError) return false;
      *known = read == Read::kOk;
    } else {
      *known = false;
    }
    if (!*known) return true;
  }
  PyObject* const described = PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
  const bool pushed = push(looks, described);
  Py_XDECREF(described);
  return pushed;
}

// The options of model.config that decide what it computes: of those names, None where it has none.
bool look_at_config(PyObject* model, PyObject* names, PyObject* looks) {
  PyObject* const config = PyObject_GetAttrString(model, "config");
  // Not by its attribute: transformers has a __getattribute__ of its own, in Python.
  PyObject* const options = config != nullptr ? PyObject_GenericGetDict(config, nullptr) : nullptr;
  Py_XDECREF(config);
  if (options == nullptr) {
    if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) return false;
    PyErr_Clear();
  }
  bool pushed = true;
  for (Py_ssize_t i = 0; pushed && i < PyTuple_Size(names); ++i) {
    PyObject* const value = options != nullptr ? PyDict_GetItemWithError(options, PyTuple_GetItem(names, i)) : nullptr;
    pushed = PyErr_Occurred() == nullptr && push(looks, value != nullptr ? value : Py_None);
  }
  Py_XDECREF(options);
  return pushed;
}

bool look_at_mode(PyObject* model, PyObject* looks) {
  PyObject* const training = PyObject_GetAttrString(model, "training");
  const bool pushed = push(looks, training);
  Py_XDECREF(training);
  return pushed && push(looks, aoti_torch_grad_mode_is_enabled() ? Py_True : Py_False);
}

// Whether any of the functions gives something true; -1 with an exception.
int any_says_so(PyObject* functions) {
  int said = 0;
  for (Py_ssize_t i = 0; said == 0 && i < PyTuple_Size(functions); ++i) {
    PyObject* const answer = PyObject_CallNoArgs(PyTuple_GetItem(functions, i));
    said = answer != nullptr ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
  }
  return said;
}

}  // namespace

// (a call's arguments by name, the model, names of its config's options, the version of the patterns, functions that
// say whether such a call is for the model's own code) → a tuple: two calls that look alike have the same, and are for
// the same program. None for arguments other than plain tensors, numbers, strings, bools and None.
PyObject* call_look(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("call_look", n, 5)) return nullptr;
  if (!PyDict_Check(args[0]) || !PyTuple_Check(args[2]) || !PyTuple_Check(args[4])) {
    PyErr_SetString(PyExc_TypeError, "call_look takes a dict, a model, a tuple of names, a number, and functions");
    return nullptr;
  }
  const int outside = any_says_so(args[4]);
  if (outside < 0) return nullptr;
  if (outside > 0) Py_RETURN_NONE;
  PyObject* const looks = PyList_New(0);
  if (looks == nullptr) return nullptr;
  bool known = true;
  PyObject* key = nullptr;
  if (look_at(args[0], looks, &known)) {
    if (!known) {
      Py_INCREF(Py_None);
      key = Py_None;
    } else if (look_at_config(args[1], args[2], looks) && push(looks, args[3]) && look_at_mode(args[1], looks)) {
      key = PyList_AsTuple(looks);
    }
  }
  Py_DECREF(looks);
  return key;
}

}  // namespace strop::binding
