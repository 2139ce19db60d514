// A repeated call of a packed model by its CUDA graph: where the tokens are, which graph, into its memory, the replay,
// and results out of it. strop/rewrite/packed.py does the same for any call, in many times the time: where something is
// not as expected here, the call is left to it.
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
#include "strop/ragged.h"
#include "tensors.h"
#if STROP_WITH_CUDA
#include "base/device.h"
#include "base/mailbox.h"
#endif

namespace strop::binding {
namespace {

constexpr const char* kReplay = "strop.replay";
constexpr const char* kQuick = "strop.quick";

struct DeleteTensor {
  void operator()(void* handle) const { delete_tensor(handle); }
};
using Held = std::unique_ptr<void, DeleteTensor>;  // an AtenTensorHandle that is ours

AtenTensorHandle handle_of(const Held& held) { return static_cast<AtenTensorHandle>(held.get()); }

struct Release {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Object = std::unique_ptr<PyObject, Release>;  // a reference that is ours

Object borrowed(PyObject* object) {
  Py_XINCREF(object);
  return Object(object);
}

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
  made->reset(handle);
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
    aoti_torch_get_data_ptr(handle_of(memory), &data);
    auto* const first = static_cast<std::int32_t*>(data);
    rows = vector_view(mask, first, DType::kInt32, places);
    where = vector_view(mask, first + aligned, DType::kInt32, places);
    cu = vector_view(mask, first + 2 * aligned, DType::kInt32, batch + 1);
    return {};
  }
};

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
  handle->reset(handle_from_tensor(object));
  return *handle != nullptr;
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
    aoti_torch_get_dtype(handle_of(own.handle), &own.dtype);
    all.push_back(std::move(own));
  }
  return true;
}

struct Sizes {
  std::int64_t batch = 0, length = 0, count = 0;
  bool dense() const { return count == batch * length; }
};

// What a call gives for each of the graph's inputs; false where one is not as simple as that, or with an exception.
bool views_of(const std::vector<PyObject*>& values, const Replay& replay, const Sizes& sizes,
              std::vector<TokenRows>& rows) {
  if (values.size() != replay.inputs.size()) return false;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Own& own = replay.inputs[i];
    TensorView value;
    if (read_tensor(values[i], "value", value) != Read::kOk) return false;
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
    aoti_torch_get_data_ptr(handle_of(made[i]), &to.data);
    to.shape[0] = own.sequences ? sizes.batch : sizes.batch * sizes.length;
    if (!own.sequences) from.shape[0] = sizes.count;
    results.push_back({from, to, own.sequences ? TokenRows::Kind::kPlain : TokenRows::Kind::kTokens});
  }
  return unpack_tokens(results, sizes.dense() ? TensorView{} : where, stream);
}

// ---- A call ---------------------------------------------------------------------------------------------------------

// What quick.py's Quick says of a program. All of it is borrowed: that object holds it, where Python's garbage
// collector sees it.
struct Quick {
  PyObject *names, *runner, *graphs, *replays, *acquire, *release, *bucket, *starts, *device;
  PyObject* load;       // of a replay: makes it one for C++, or says that it is none
  PyObject* weights;    // capsule
  PyObject* before;     // numbers of inputs, or what computes the values of the inputs
  PyObject* by_size;    // whether each value depends on sizes alone; None: none does
  PyObject* known;      // what gives those
  PyObject* constants;  // capsule: what they are made of
  PyObject* after;      // numbers of inputs and results, or what computes the model's results
  PyObject* dtype;      // of inputs that are floats; None: as they are given
  long long mask;       // the number of an input; -1: there is none
  int refuses_first, refuses_holes;

  Tokens tokens;
  Object last;  // the capsule of the last call's graph, for the kinds of its results

  // The sizes of the last call, and what depends on them alone.
  std::vector<std::int64_t> sizes;
  Object sized;
};

void delete_quick(PyObject* capsule) { delete static_cast<Quick*>(PyCapsule_GetPointer(capsule, kQuick)); }

// One call of a model at a time, whatever threads they come from.
class Locked {
 public:
  explicit Locked(const Quick& quick) : release_(quick.release), held_(PyObject_CallNoArgs(quick.acquire)) {}
  ~Locked() {
    if (held_ == nullptr) return;
    PyObject *kind, *value, *traceback;  // of an exception that is under way
    PyErr_Fetch(&kind, &value, &traceback);
    Object(PyObject_CallNoArgs(release_)).reset();
    PyErr_Restore(kind, value, traceback);
  }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
  bool held() const { return held_ != nullptr; }

 private:
  PyObject* release_;
  Object held_;
};

struct Inputs {
  std::vector<PyObject*> tensors;  // borrowed from the call's arguments, or from `converted`
  std::vector<Object> converted;
  std::vector<std::int64_t> sizes;
  TensorView mask;
};

enum class Done : std::uint8_t { kYes, kNo, kError };  // kNo: not a call for this

Done no_or_error() { return PyErr_Occurred() != nullptr ? Done::kError : Done::kNo; }

Done read_inputs(const Quick& quick, PyObject* given, Inputs& in) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(quick.names); ++i) {
    PyObject* tensor = PyDict_GetItemWithError(given, PyTuple_GetItem(quick.names, i));
    if (tensor == nullptr) return no_or_error();
    DLTensor t;
    Read read = read_dltensor(tensor, "input", t);
    if (read == Read::kOk && quick.dtype != Py_None && (t.dtype.code == kDLFloat || t.dtype.code == kDLBfloat)) {
      in.converted.emplace_back(PyObject_CallMethod(tensor, "to", "O", quick.dtype));
      tensor = in.converted.back().get();
      if (tensor == nullptr) return Done::kError;
      read = read_dltensor(tensor, "input", t);
    }
    if (read != Read::kOk) return read == Read::kError ? Done::kError : Done::kNo;
    in.tensors.push_back(tensor);
    in.sizes.push_back(t.ndim);
    in.sizes.insert(in.sizes.end(), t.shape, t.shape + t.ndim);
    if (i == quick.mask) {
      if (t.ndim != 2) return Done::kNo;
      fill(in.mask, t);
    }
  }
  // The first input's batch and length are the call's.
  return in.sizes.size() >= 3 && in.sizes[0] >= 2 && in.sizes[1] * in.sizes[2] > 0 ? Done::kYes : Done::kNo;
}

Object as_tuple(const std::vector<PyObject*>& items, const std::vector<Object>& more = {}) {
  Object tuple(PyTuple_New(static_cast<Py_ssize_t>(items.size() + more.size())));
  Py_ssize_t at = 0;
  for (PyObject* item : items) PyTuple_SetItem(tuple.get(), at++, borrowed(item).release());
  for (const Object& item : more) PyTuple_SetItem(tuple.get(), at++, borrowed(item.get()).release());
  return tuple;
}

Object called(PyObject* function, const Object& arguments) {
  const NoGrad guard;
  return Object(PyObject_CallObject(function, arguments.get()));
}

// What the graph's inputs are filled from; `owned` keeps what was computed for that.
bool read_values(Quick& quick, const Inputs& in, std::vector<Object>& owned, std::vector<PyObject*>& values) {
  PyObject* own = quick.before;
  const bool computed = PyTuple_Check(quick.before) == 0;
  if (computed) {
    Object results = called(quick.before, as_tuple(in.tensors));
    if (results == nullptr) return false;
    owned.emplace_back(PySequence_Tuple(results.get()));
    own = owned.back().get();
    if (own == nullptr) return false;
  }
  const auto own_value = [&](Py_ssize_t i) {
    PyObject* const item = PyTuple_GetItem(own, i);
    return computed || item == nullptr ? item : in.tensors[static_cast<std::size_t>(PyLong_AsSsize_t(item))];
  };
  if (quick.by_size == Py_None) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(own); ++i) values.push_back(own_value(i));
    return true;
  }
  const int same = weights_unchanged(quick.constants);
  if (same < 0) return false;
  if (same == 0 || quick.sized == nullptr || quick.sizes != in.sizes) {
    Object list(PySequence_List(as_tuple(in.tensors).get()));
    quick.sized.reset(PyObject_CallFunctionObjArgs(quick.known, list.get(), nullptr));
    if (quick.sized == nullptr) return false;
    quick.sizes = in.sizes;
  }
  owned.push_back(borrowed(quick.sized.get()));  // another call may put others in its place
  Py_ssize_t next_own = 0, next_sized = 0;
  for (Py_ssize_t i = 0; i < PyTuple_Size(quick.by_size); ++i) {
    const bool by_size = PyTuple_GetItem(quick.by_size, i) == Py_True;
    values.push_back(by_size ? PyTuple_GetItem(owned.back().get(), next_sized++) : own_value(next_own++));
    if (values.back() == nullptr) return false;
  }
  return true;
}

// Before a graph's memory is written to. kNo: somebody records this thread's work into a graph of their own.
Done enter(const Quick& quick, const TensorView& like) {
#if STROP_WITH_CUDA
  if (like.device == DeviceType::kCuda) {
    void* stream = nullptr;
    bool capturing = false;
    Status status = current_stream(like, &stream);
    if (status.ok()) status = stream_is_capturing(stream, &capturing);
    if (!status.ok()) return raise(status), Done::kError;
    if (capturing) return Done::kNo;
    const Object last(PyObject_GetAttrString(quick.graphs, "raw_stream"));
    if (last == nullptr) return Done::kError;
    if (PyLong_Check(last.get()) && PyLong_AsUnsignedLongLong(last.get()) == reinterpret_cast<std::uintptr_t>(stream))
      return Done::kYes;
    return Object(PyObject_CallMethod(quick.graphs, "enter", nullptr)) != nullptr ? Done::kYes : Done::kError;
  }
#endif
  static_cast<void>(quick), static_cast<void>(like);
  return Done::kYes;
}

// The capsule of the graph for a call, or null; PyErr_Occurred() tells an error.
Object find_replay(const Quick& quick, const Sizes& sizes, std::int64_t longest) {
  Object bucket(PyObject_CallFunction(quick.bucket, "LLL", static_cast<long long>(sizes.count),
                                      static_cast<long long>(sizes.batch), static_cast<long long>(longest)));
  if (bucket == nullptr) return nullptr;
  const Object key(Py_BuildValue("(OO())", quick.runner, bucket.get()));
  if (key == nullptr) return nullptr;
  PyObject* const found = PyDict_GetItemWithError(quick.replays, key.get());
  if (found == nullptr) return nullptr;
  if (Object(PyObject_CallMethod(quick.replays, "move_to_end", "(O)", key.get())) == nullptr) return nullptr;
  Object replay(PyObject_GetAttrString(found, "quick"));
  if (replay != nullptr && replay.get() == Py_None)
    replay.reset(PyObject_CallFunctionObjArgs(quick.load, found, nullptr));
  if (replay == nullptr || replay.get() == Py_False) return nullptr;
  return replay;
}

const Replay* replay_of(const Object& capsule) {
  return capsule == nullptr ? nullptr : static_cast<const Replay*>(PyCapsule_GetPointer(capsule.get(), kReplay));
}

// Where the tokens are, and whether the weights are what they were: looked at while the device counts, as the results
// are allocated, of the kinds that the last call's had.
Done locate_tokens(Quick& quick, const Inputs& in, Sizes& sizes, std::int64_t& longest) {
  Tokens& tokens = quick.tokens;
  if (in.mask.shape[0] != sizes.batch || in.mask.shape[1] != sizes.length) return Done::kNo;
  if (tokens.room > 0 && (tokens.mask.device != in.mask.device || tokens.mask.device_index != in.mask.device_index))
    return Done::kNo;
  tokens.mask = in.mask;
  const Replay* const last = replay_of(quick.last);
  std::int64_t summary[4];
  int same = 1;
  Status allocated;
  tokens.results.clear();
  const Status status = locate(tokens, summary, [&] {
    same = weights_unchanged(quick.weights);
    if (last != nullptr) allocated = make_results(last->outputs, sizes, tokens.results);
  });
  if (same < 0) return Done::kError;
  if (!status.ok()) return raise(status), Done::kError;
  if (!allocated.ok()) return raise(allocated), Done::kError;
  sizes.count = summary[0], longest = summary[1];
  const bool refused = (summary[2] != 0 && quick.refuses_first != 0) || (summary[3] != 0 && quick.refuses_holes != 0);
  return same != 0 && sizes.count > 0 && !refused ? Done::kYes : Done::kNo;
}

// Packs, replays and unpacks.
Status run_graph(Tokens& tokens, const Replay& replay, const std::vector<TokenRows>& inputs, const Sizes& sizes,
                 const TensorView& cu, std::vector<Held>& results, bool* launched) {
  return on_stream(replay.cu_view, [&](void* stream) -> Status {
    const TensorView rows = sizes.dense() ? TensorView{} : tokens.rows;
    if (Status s = pack_tokens(inputs, rows, cu, sizes.count, replay.cu_view, replay.first_view, stream); !s.ok())
      return s;
    *launched = Object(PyObject_CallNoArgs(replay.launch)) != nullptr;
    if (!*launched) return {};
    if (results.size() != replay.outputs.size()) {
      if (Status s = make_results(replay.outputs, sizes, results); !s.ok()) return s;
    }
    return fill_results(replay, sizes, tokens.where, results, stream);
  });
}

Done replayed(Quick& quick, const Inputs& in, const std::vector<PyObject*>& values, std::vector<Object>& results) {
  const Locked lock(quick);
  if (!lock.held()) return Done::kError;
  TensorView like;
  if (read_tensor(in.tensors[0], "input", like) != Read::kOk) return no_or_error();
  if (const Done done = enter(quick, like); done != Done::kYes) return done;

  Sizes sizes = {in.sizes[1], in.sizes[2], in.sizes[1] * in.sizes[2]};
  std::int64_t longest = sizes.length;
  Object all_starts;
  TensorView cu;
  if (quick.mask >= 0) {
    if (const Done done = locate_tokens(quick, in, sizes, longest); done != Done::kYes) return done;
    cu = quick.tokens.cu;
  } else {
    all_starts.reset(PyObject_CallFunction(quick.starts, "LLO", static_cast<long long>(sizes.batch),
                                           static_cast<long long>(sizes.length), quick.device));
    if (all_starts == nullptr || read_tensor(all_starts.get(), "cu", cu) != Read::kOk) return no_or_error();
  }
  Object capsule = find_replay(quick, sizes, longest);
  if (capsule == nullptr) return no_or_error();
  const Replay* const replay = replay_of(capsule);
  std::vector<TokenRows> inputs;
  if (replay == nullptr || !views_of(values, *replay, sizes, inputs)) return no_or_error();

  // With a mask they were looked at; else copied weights, which are there whatever happens to the model's, are looked
  // at while the graph runs.
  const bool later = quick.mask < 0 && weights_are_copies(quick.weights) == 1;
  int same = quick.mask < 0 && !later ? weights_unchanged(quick.weights) : 1;
  if (same < 1) return no_or_error();
  std::vector<Held> made = std::move(quick.tokens.results);
  quick.tokens.results.clear();
  bool launched = true;
  const Status status = run_graph(quick.tokens, *replay, inputs, sizes, cu, made, &launched);
  if (!launched) return Done::kError;
  if (!status.ok()) return raise(status), Done::kError;
  if (later) same = weights_unchanged(quick.weights);
  if (same < 1) return no_or_error();
  for (Held& handle : made) {
    results.emplace_back(tensor_from_handle(handle.release()));
    if (results.back() == nullptr) return Done::kError;
  }
  quick.last = std::move(capsule);
  const Object count(PyObject_GetAttrString(quick.graphs, "replayed"));
  const Object next(count != nullptr ? PyLong_FromLongLong(PyLong_AsLongLong(count.get()) + 1) : nullptr);
  if (next == nullptr || PyObject_SetAttrString(quick.graphs, "replayed", next.get()) != 0) return Done::kError;
  return Done::kYes;
}

// A model's results, of its inputs and those of the graph.
PyObject* final_results(const Quick& quick, const Inputs& in, const std::vector<Object>& unpacked) {
  const Object everything = as_tuple(in.tensors, unpacked);
  if (!PyTuple_Check(quick.after)) return called(quick.after, everything).release();
  const Py_ssize_t n = PyTuple_Size(quick.after);
  Object list(PyList_New(n));
  for (Py_ssize_t i = 0; list != nullptr && i < n; ++i) {
    PyObject* const item = PyTuple_GetItem(everything.get(), PyLong_AsSsize_t(PyTuple_GetItem(quick.after, i)));
    PyList_SetItem(list.get(), i, borrowed(item).release());
  }
  return list.release();
}

}  // namespace

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

// A tuple of what quick.py's Quick.of puts together, which it keeps → a capsule that is good for as long as that.
PyObject* quick_load(PyObject*, PyObject* about) {
  auto quick = std::make_unique<Quick>();
  Quick& q = *quick;
  if (PyArg_ParseTuple(about, "O!OOOOOOOOOOOOOOOOLpp", &PyTuple_Type, &q.names, &q.runner, &q.graphs, &q.replays,
                       &q.acquire, &q.release, &q.bucket, &q.starts, &q.device, &q.load, &q.weights, &q.before,
                       &q.by_size, &q.known, &q.constants, &q.after, &q.dtype, &q.mask, &q.refuses_first,
                       &q.refuses_holes) == 0) {
    return nullptr;
  }
  PyObject* const capsule = PyCapsule_New(quick.get(), kQuick, &delete_quick);
  if (capsule != nullptr) static_cast<void>(quick.release());
  return capsule;
}

// (capsule, a call's arguments by name) → a list of results; None where it is not one for a graph that is there.
PyObject* quick_run(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (!check_count("quick_run", n, 2)) return nullptr;
  auto* const quick = static_cast<Quick*>(PyCapsule_GetPointer(args[0], kQuick));
  if (quick == nullptr) return nullptr;
  if (!PyDict_Check(args[1])) return PyErr_SetString(PyExc_TypeError, "quick_run takes a dict of arguments"), nullptr;
  const Object kept = borrowed(args[0]);  // whatever another thread lets go of while this one waits
  Inputs in;
  std::vector<Object> owned, results;
  std::vector<PyObject*> values;
  Done done = read_inputs(*quick, args[1], in);
  if (done == Done::kYes && !read_values(*quick, in, owned, values)) done = Done::kError;
  if (done == Done::kYes) done = replayed(*quick, in, values, results);
  if (done == Done::kError) return nullptr;
  if (done == Done::kNo) Py_RETURN_NONE;
  return final_results(*quick, in, results);
}

}  // namespace strop::binding
