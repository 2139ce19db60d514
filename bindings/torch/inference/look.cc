// What a call looks like: names, kinds and sizes of its arguments, as a key of a dict. In Python it would take several
// microseconds of each call.
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
bool look_at(PyObject* given, PyObject* tensor_type, PyObject* looks, bool* known) {
  std::string bytes;
  PyObject *name, *value;
  Py_ssize_t at = 0;
  while (PyDict_Next(given, &at, &name, &value) != 0) {
    if (!push(looks, name)) return false;
    if (reinterpret_cast<PyObject*>(Py_TYPE(value)) == tensor_type) {
      const Read read = describe(value, bytes);
      if (read == Read::kError) return false;
      *known = read == Read::kOk;
    } else if (is_fixed(value)) {
      // 1, 1.0 and True are equal as keys and are not the same to a model.
      if (!push(looks, reinterpret_cast<PyObject*>(Py_TYPE(value))) || !push(looks, value)) return false;
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

}  // namespace

// (a call's named arguments, torch.Tensor) → a tuple: two calls that look alike have the same. None for arguments
// other than plain tensors, numbers, strings, bools and None.
PyObject* call_look(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("call_look", n, 2)) return nullptr;
  if (!PyDict_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError, "call_look takes a dict and torch.Tensor");
    return nullptr;
  }
  PyObject* const looks = PyList_New(0);
  if (looks == nullptr) return nullptr;
  bool known = true;
  PyObject* key = nullptr;
  if (look_at(args[0], args[1], looks, &known)) {
    if (known) {
      key = PyList_AsTuple(looks);
    } else {
      Py_INCREF(Py_None);
      key = Py_None;
    }
  }
  Py_DECREF(looks);
  return key;
}

}  // namespace strop::binding
