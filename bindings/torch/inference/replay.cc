// A call of a packed model by its CUDA graph: where the tokens are, into the graph's memory, the replay, and results
// out of it. strop/rewrite/packed.py decides which graph; between that, no Python and no dispatcher.
//
// On the CPU everything is the same but that nothing has to be waited for, so that it is tested there, with a callable
// in the place of the graph's replay.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "execute.h"
#include "module.h"
#include "operators.h"
#include "strop/ragged.h"
#if STROP_WITH_CUDA
#include "base/mailbox.h"
#endif

namespace strop::binding {
namespace {

constexpr const char* kTokens = "strop.tokens";
constexpr const char* kReplay = "strop.replay";

// An AtenTensorHandle that is ours.
class Held {
 public:
  Held() = default;
  explicit Held(void* handle) : handle_(handle) {}
  Held(Held&& other) noexcept : handle_(other.release()) {}
  Held& operator=(Held&& other) noexcept {
    if (this != &other) {
      delete_tensor(handle_);
      handle_ = other.release();
    }
    return *this;
  }
  ~Held() { delete_tensor(handle_); }
  AtenTensorHandle get() const { return static_cast<AtenTensorHandle>(handle_); }
  void* release() {
    void* const handle = handle_;
    handle_ = nullptr;
    return handle;
  }

 private:
  void* handle_ = nullptr;
};

// A row-major tensor on a view's device.
Status make(const TensorView& like, std::int32_t dtype, const std::int64_t* sizes, int rank, Held* made, void** data) {
  std::int64_t strides[kMaxRank + 1], stride = 1;
  for (int i = rank - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes[i];
  }
  const bool cuda = like.device == DeviceType::kCuda;
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(rank, sizes, strides, dtype,
                               cuda ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(),
                               cuda ? like.device_index : 0, &handle) != AOTI_TORCH_SUCCESS) {
    return Status(StatusCode::kRuntimeError, "PyTorch could not allocate " + std::to_string(stride) + " elements");
  }
  *made = Held(handle);
  *data = &nothing;
  if (stride > 0) aoti_torch_get_data_ptr(handle, data);
  return {};
}

TensorView vector_view(const TensorView& like, void* data, DType dtype, std::int64_t n) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.device = like.device;
  view.device_index = like.device_index;
  view.rank = 1;
  view.shape[0] = n;
  view.strides[0] = 1;
  return view;
}

bool is_row_major(const TensorView& t) {
  std::int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.shape[i];
  }
  return true;
}

// ---- Where a call's tokens are --------------------------------------------------------------------------------------

struct Tokens {
  Held memory;  // int32: cu, rows, where; kept from call to call, which are one after the other on one stream
  std::int64_t room = 0;
  TensorView cu, rows, where;
  TensorView mask;            // of the last call; its memory may be gone
  std::vector<Held> results;  // of a call that is under way: made while its tokens are counted
#if STROP_WITH_CUDA
  std::unique_ptr<Mailbox> box;
#endif

  Status reserve(std::int64_t batch, std::int64_t places) {
    const std::int64_t aligned = (places + 3) / 4 * 4, wanted = 2 * aligned + batch + 1;
    if (wanted > room) {
      void* data = nullptr;
      if (Status s = make(mask, aoti_torch_dtype_int32(), &wanted, 1, &memory, &data); !s.ok()) return s;
      room = wanted;
    }
    void* data = nullptr;
    aoti_torch_get_data_ptr(memory.get(), &data);
    auto* const first = static_cast<std::int32_t*>(data);
    rows = vector_view(mask, first, DType::kInt32, places);
    where = vector_view(mask, first + aligned, DType::kInt32, places);
    cu = vector_view(mask, first + 2 * aligned, DType::kInt32, batch + 1);
    return {};
  }
};

void delete_tokens(PyObject* capsule) { delete static_cast<Tokens*>(PyCapsule_GetPointer(capsule, kTokens)); }

// Between the launch and the wait for what it finds, `meanwhile` is called.
template <class Meanwhile>
Status locate(Tokens& t, std::int64_t (&summary)[4], const Meanwhile& meanwhile) {
  return on_stream(t.mask, [&](void* stream) -> Status {
    if (Status s = t.reserve(t.mask.shape[0], t.mask.numel()); !s.ok()) return s;
#if STROP_WITH_CUDA
    if (t.mask.device == DeviceType::kCuda) {
      if (t.box == nullptr) {
        if (Status s = Mailbox::create(t.mask.device_index, &t.box); !s.ok()) return s;
      }
      t.box->clear();
      if (Status s = token_index(t.mask, t.cu, t.rows, t.where, t.box->view(), stream); !s.ok()) return s;
      meanwhile();
      Status waited;
      Py_BEGIN_ALLOW_THREADS;
      waited = t.box->wait(stream);
      Py_END_ALLOW_THREADS;
      for (int i = 0; i < 4; ++i) summary[i] = (*t.box)[i];
      return waited;
    }
#endif
    static_cast<void>(stream);
    meanwhile();
    return token_index(t.mask, t.cu, t.rows, t.where, vector_view(t.mask, summary, DType::kInt64, 4));
  });
}

// ---- The graph and its memory ---------------------------------------------------------------------------------------

struct Own {
  Held handle;
  TensorView view;                // (rows, n)
  bool repeated = false;          // of an input
  bool sequences = false;         // of an output: a row a sequence
  std::vector<std::int64_t> row;  // an output's sizes behind the first
  std::int32_t dtype = 0;
};

struct Replay {
  PyObject* launch = nullptr;  // takes no argument
  std::vector<Own> inputs, outputs;
  Held cu, first;
  TensorView cu_view, first_view;
  Replay() = default;
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;
  ~Replay() { Py_XDECREF(launch); }
};

void delete_replay(PyObject* capsule) { delete static_cast<Replay*>(PyCapsule_GetPointer(capsule, kReplay)); }

// (rows, everything else).
TensorView as_rows(const TensorView& t, std::int64_t rows) {
  TensorView view = t;
  view.rank = 2;
  view.shape[0] = rows;
  view.shape[1] = rows > 0 ? t.numel() / rows : 1;
  view.strides[0] = view.shape[1], view.strides[1] = 1;
  return view;
}

// A row-major tensor with the handle that keeps it.
bool take(PyObject* object, const char* name, Held* handle, TensorView& view) {
  if (read_tensor(object, name, view) != Read::kOk || view.rank < 1 || !is_row_major(view)) {
    if (PyErr_Occurred() == nullptr) PyErr_Format(PyExc_ValueError, "%s: expected a contiguous tensor", name);
    return false;
  }
  *handle = Held(handle_from_tensor(object));
  return handle->get() != nullptr;
}

// A list of (tensor, flag).
bool take_all(PyObject* list, const char* name, std::vector<Own>& all, bool outputs) {
  if (!PyList_Check(list)) {
    PyErr_Format(PyExc_TypeError, "%s: expected a list of (tensor, bool)", name);
    return false;
  }
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
    PyObject* const entry = PyList_GetItem(list, i);
    if (!PyTuple_Check(entry) || PyTuple_Size(entry) != 2) {
      PyErr_Format(PyExc_TypeError, "%s: expected a list of (tensor, bool)", name);
      return false;
    }
    Own own;
    TensorView whole;
    if (!take(PyTuple_GetItem(entry, 0), name, &own.handle, whole)) return false;
    (outputs ? own.sequences : own.repeated) = PyObject_IsTrue(PyTuple_GetItem(entry, 1)) == 1;
    own.row.assign(whole.shape + 1, whole.shape + whole.rank);
    own.view = as_rows(whole, whole.shape[0]);
    aoti_torch_get_dtype(own.handle.get(), &own.dtype);
    all.push_back(std::move(own));
  }
  return true;
}

struct Sizes {
  std::int64_t batch = 0, length = 0, count = 0;
  bool dense() const { return count == batch * length; }
};

// What a call gives for each of the graph's inputs; false where one is not as simple as that.
bool views_of(PyObject* values, const Replay& replay, const Sizes& sizes, std::vector<TokenRows>& rows) {
  if (!PyTuple_Check(values) || PyTuple_Size(values) != static_cast<Py_ssize_t>(replay.inputs.size())) return false;
  for (std::size_t i = 0; i < replay.inputs.size(); ++i) {
    const Own& own = replay.inputs[i];
    TensorView value;
    if (read_tensor(PyTuple_GetItem(values, static_cast<Py_ssize_t>(i)), "value", value) != Read::kOk) return false;
    const std::int64_t n = own.repeated ? sizes.length : sizes.batch * sizes.length;
    if (!is_row_major(value) || value.numel() != n * own.view.shape[1] || value.dtype != own.view.dtype) return false;
    rows.push_back({as_rows(value, n), own.view, own.repeated ? TokenRows::Kind::kRepeated : TokenRows::Kind::kTokens});
  }
  return true;
}

// New tensors of the results' tokens in the padded layout, and of what has a row a sequence.
Status make_results(const std::vector<Own>& outputs, const Sizes& sizes, std::vector<Held>& made) {
  made.resize(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Own& own = outputs[i];
    std::int64_t shape[kMaxRank + 1] = {sizes.batch, sizes.length};
    int rank = own.sequences ? 1 : 2;
    for (std::int64_t size : own.row) shape[rank++] = size;
    void* data = nullptr;
    if (Status s = make(own.view, own.dtype, shape, rank, &made[i], &data); !s.ok()) return s;
  }
  return {};
}

Status fill_results(const Replay& replay, const Sizes& sizes, const TensorView& where, const std::vector<Held>& made,
                    void* stream) {
  std::vector<TokenRows> results;
  results.reserve(made.size());
  for (std::size_t i = 0; i < made.size(); ++i) {
    const Own& own = replay.outputs[i];
    TensorView from = own.view, to = own.view;
    aoti_torch_get_data_ptr(made[i].get(), &to.data);
    to.shape[0] = own.sequences ? sizes.batch : sizes.batch * sizes.length;
    if (!own.sequences) from.shape[0] = sizes.count;
    results.push_back({from, to, own.sequences ? TokenRows::Kind::kPlain : TokenRows::Kind::kTokens});
  }
  return unpack_tokens(results, sizes.dense() ? TensorView{} : where, stream);
}

}  // namespace

// () → a capsule for one model on one device.
PyObject* tokens_load(PyObject*, PyObject*) {
  auto tokens = std::make_unique<Tokens>();
  PyObject* const capsule = PyCapsule_New(tokens.get(), kTokens, &delete_tokens);
  if (capsule != nullptr) static_cast<void>(tokens.release());
  return capsule;
}

// (tokens, mask, batch, length, weights, replay) → (tokens, longest sequence, whether a first position is padding,
// whether there are holes), waited for; None where the weights are other ones, NotImplemented for a mask that is not
// (batch, length) and plain. The weights are looked at while the device counts, and the results of the replay_run that
// follows are allocated, which have the kinds that `replay`'s have, any one of the model's, or None.
PyObject* tokens_locate(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("tokens_locate", n, 6)) return nullptr;
  auto* const tokens = static_cast<Tokens*>(PyCapsule_GetPointer(args[0], kTokens));
  if (tokens == nullptr) return nullptr;
  const long long batch = PyLong_AsLongLong(args[2]), length = PyLong_AsLongLong(args[3]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const DeviceType device = tokens->mask.device;
  const int index = tokens->mask.device_index;
  const Read read = read_tensor(args[1], "mask", tokens->mask);
  if (read == Read::kError) return nullptr;
  const TensorView& mask = tokens->mask;
  if (read == Read::kDispatch || mask.rank != 2 || mask.shape[0] != batch || mask.shape[1] != length ||
      mask.numel() == 0) {
    return not_implemented();
  }
  if (tokens->room > 0 && (device != mask.device || index != mask.device_index)) return not_implemented();
  const Replay* replay = nullptr;
  if (args[5] != Py_None) {
    replay = static_cast<const Replay*>(PyCapsule_GetPointer(args[5], kReplay));
    if (replay == nullptr) return nullptr;
  }
  std::int64_t summary[4];
  int same = 1;
  Status allocated;
  tokens->results.clear();
  const Status status = locate(*tokens, summary, [&] {
    same = weights_unchanged(args[4]);
    if (replay != nullptr) allocated = make_results(replay->outputs, {batch, length, 0}, tokens->results);
  });
  if (same < 0) return nullptr;
  if (!status.ok()) return raise(status);
  if (!allocated.ok()) return raise(allocated);
  if (same == 0) Py_RETURN_NONE;
  return Py_BuildValue("(LLLL)", static_cast<long long>(summary[0]), static_cast<long long>(summary[1]),
                       static_cast<long long>(summary[2]), static_cast<long long>(summary[3]));
}

// (what launches the graph, its inputs as a list of (tensor, whether it has a row a position), cu, first, its outputs
// as a list of (tensor, whether it has a row a sequence)) → a capsule. All tensors are contiguous.
PyObject* replay_load(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("replay_load", n, 5)) return nullptr;
  auto replay = std::make_unique<Replay>();
  Py_INCREF(args[0]);
  replay->launch = args[0];
  if (!take_all(args[1], "inputs", replay->inputs, false) || !take_all(args[4], "outputs", replay->outputs, true) ||
      !take(args[2], "cu", &replay->cu, replay->cu_view) ||
      !take(args[3], "first", &replay->first, replay->first_view)) {
    return nullptr;
  }
  PyObject* const capsule = PyCapsule_New(replay.get(), kReplay, &delete_replay);
  if (capsule != nullptr) static_cast<void>(replay.release());
  return capsule;
}

// (replay, tokens, cu, values, batch, length, count, weights) → a list of results; None where the weights are other
// ones, NotImplemented where a value is not as the graph takes it. `cu` is of a batch without padding, or None for what
// tokens_locate found last; `weights` None where they were looked at. One call of a model at a time.
PyObject* replay_run(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("replay_run", n, 8)) return nullptr;
  auto* const replay = static_cast<Replay*>(PyCapsule_GetPointer(args[0], kReplay));
  if (replay == nullptr) return nullptr;
  auto* const tokens = static_cast<Tokens*>(PyCapsule_GetPointer(args[1], kTokens));
  if (tokens == nullptr) return nullptr;
  const Sizes sizes = {PyLong_AsLongLong(args[4]), PyLong_AsLongLong(args[5]), PyLong_AsLongLong(args[6])};
  if (PyErr_Occurred() != nullptr) return nullptr;
  TensorView cu = tokens->cu;
  if (args[2] != Py_None && read_tensor(args[2], "cu", cu) != Read::kOk) return nullptr;
  std::vector<TokenRows> inputs;
  inputs.reserve(replay->inputs.size());
  if (!views_of(args[3], *replay, sizes, inputs)) {
    if (PyErr_Occurred() != nullptr) return nullptr;
    return not_implemented();
  }
  // Copied weights are there whatever happens to the model's: they are looked at while the graph runs.
  int same = 1;
  const bool later = args[7] != Py_None && weights_are_copies(args[7]) == 1;
  if (args[7] != Py_None && !later) same = weights_unchanged(args[7]);
  if (same < 0) return nullptr;
  if (same == 0) Py_RETURN_NONE;

  std::vector<Held> results = std::move(tokens->results);
  tokens->results.clear();
  bool launched = true;
  const Status status = on_stream(replay->cu_view, [&](void* stream) -> Status {
    const TensorView rows = sizes.dense() ? TensorView{} : tokens->rows;
    if (Status s = pack_tokens(inputs, rows, cu, sizes.count, replay->cu_view, replay->first_view, stream); !s.ok())
      return s;
    PyObject* const nothing_given = PyObject_CallObject(replay->launch, nullptr);
    launched = nothing_given != nullptr;
    if (!launched) return {};
    Py_DECREF(nothing_given);
    if (results.size() != replay->outputs.size()) {
      if (Status s = make_results(replay->outputs, sizes, results); !s.ok()) return s;
    }
    return fill_results(*replay, sizes, tokens->where, results, stream);
  });
  if (!launched) return nullptr;
  if (!status.ok()) return raise(status);
  if (later) same = weights_unchanged(args[7]);
  if (same < 0) return nullptr;
  if (same == 0) Py_RETURN_NONE;
  PyObject* const list = PyList_New(static_cast<Py_ssize_t>(results.size()));
  for (std::size_t i = 0; list != nullptr && i < results.size(); ++i) {
    PyObject* const tensor = tensor_from_handle(results[i].release());
    if (tensor == nullptr) {
      Py_DECREF(list);
      return nullptr;
    }
    PyList_SetItem(list, static_cast<Py_ssize_t>(i), tensor);
  }
  return list;
}

}  // namespace strop::binding
