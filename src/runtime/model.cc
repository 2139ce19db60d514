// strop::Model: checks what a call gives, and runs the programs of a plan file.
#include "runtime/model.h"

#include <exception>
#include <utility>

#include "base/checks.h"
#include "runtime/cpu_host.h"

namespace strop {
namespace runtime {
namespace {

CpuHost host;

Held borrowed(const TensorView& view) {
  Tensor t;
  t.data = view.numel() == 0 ? &nothing : view.data;
  t.dtype = view.dtype;
  t.rank = view.rank;
  for (int d = 0; d < view.rank; ++d) {
    t.shape[d] = view.shape[d];
    t.strides[d] = view.strides[d];
  }
  return {t, nullptr};
}

}  // namespace

std::vector<Held> Part::run(const std::vector<Held>& inputs, std::int64_t number) const {
  std::vector<Held> outputs;
  if (plan != nullptr) {
    std::vector<Value> values;
    for (const Held& input : inputs) values.emplace_back(input.tensor);
    if (number >= 0) values.emplace_back(number);
    std::vector<void*> handles;
    check(plan->run(host, constants, values, &handles));
    for (void* handle : handles) {
      outputs.push_back(*static_cast<Held*>(handle));
      host.release(handle);
    }
  }
  std::vector<Held> found;
  for (const Result& result : results) found.push_back((result.input ? inputs : outputs)[result.index]);
  return found;
}

std::vector<Held> PackedParts::run(const std::vector<Held>& inputs, std::int64_t batch, std::int64_t length) const {
  const std::optional<Tokens> tokens = locate(inputs[mask].tensor, batch, length, wants_first, wants_whole);
  if (!tokens.has_value()) return {};
  const std::vector<Held> from[2] = {before.run(inputs), sized.run(inputs)};
  std::size_t next[2] = {};
  std::vector<Held> packed;
  for (const Source& source : packs)
    packed.push_back(pack(from[source.sized][next[source.sized]++], source.how, *tokens));
  packed.push_back(tokens->cu);
  packed.push_back(tokens->first);
  const std::vector<Held> given = body.run(packed, tokens->longest);
  std::vector<Held> everything = inputs;
  for (std::size_t i = 0; i < given.size(); ++i) everything.push_back(unpack(given[i], rows[i], *tokens));
  return after.run(everything);
}

}  // namespace runtime

namespace {

using runtime::Error;
using runtime::Held;

// Throws Error for a view that is not what an input wants; finds batch and length, which are -1 where none was seen.
void check_input(const ModelArgument& input, const TensorView& view, std::int64_t (&sizes)[2]) {
  const char* const name = input.name.c_str();
  const auto bad = [](const Status& status) { runtime::check(status); };
  if (view.dtype != input.dtype) bad(checks::type_error(name, dtype_name(input.dtype), dtype_name(view.dtype)));
  if (view.device != DeviceType::kCpu) bad(checks::value_error(name, "a tensor on the CPU", checks::device_text(view)));
  const int rank = static_cast<int>(input.shape.size());
  if (view.rank != rank) bad(checks::value_error(name, std::to_string(rank) + " dimensions", checks::shape_text(view)));
  for (int d = 0; d < rank; ++d) {
    const ModelSize& size = input.shape[static_cast<std::size_t>(d)];
    const std::string place = "in dimension " + std::to_string(d);
    const std::int64_t got = view.shape[d];
    if (size.kind == ModelSize::Kind::kFixed) {
      if (got != size.value)
        bad(checks::value_error(name, std::to_string(size.value) + " " + place, std::to_string(got)));
      continue;
    }
    const bool is_batch = size.kind == ModelSize::Kind::kBatch;
    std::int64_t& seen = sizes[is_batch ? 0 : 1];
    if (seen >= 0 && got != seen)
      bad(checks::value_error(name,
                              std::string("a ") + (is_batch ? "batch" : "length") + " of " + std::to_string(seen) +
                                  " " + place + ", like the inputs before it",
                              std::to_string(got)));
    seen = got;
    if (got < 1 || (size.value >= 0 && got > size.value))
      bad(checks::value_error(
          name,
          "at least 1" + (size.value >= 0 ? " and at most " + std::to_string(size.value) : std::string()) + " " + place,
          std::to_string(got)));
  }
  bad(checks::check_data(name, view, view.numel() == 0));
}

ModelTensor public_tensor(const Held& value) {
  // An input that is a result as well is the caller's memory.
  const Held dense = value.memory == nullptr ? runtime::copied(value) : runtime::row_major(value);
  return {runtime::view_of(dense.tensor), dense.memory};
}

}  // namespace

std::vector<Held> runtime::SavedModel::run(std::span<const TensorView> given) const {
  if (given.size() != inputs.size())
    throw Error("expected " + std::to_string(inputs.size()) + " inputs, got " + std::to_string(given.size()),
                StatusCode::kTypeError);
  std::int64_t sizes[2] = {-1, -1};
  std::vector<Held> values;
  for (std::size_t i = 0; i < given.size(); ++i) {
    check_input(inputs[i], given[i], sizes);
    values.push_back(runtime::borrowed(given[i]));
  }
  std::vector<Held> outputs;
  if (packed != nullptr) outputs = packed->run(values, sizes[0], sizes[1]);
  return outputs.empty() ? padded.run(values) : outputs;
}

Model::Model(std::unique_ptr<const runtime::SavedModel> saved) : saved_(std::move(saved)) {}
Model::~Model() = default;

const std::vector<ModelArgument>& Model::inputs() const { return saved_->inputs; }
const std::vector<ModelArgument>& Model::outputs() const { return saved_->outputs; }

Status Model::load(const std::string& path, std::unique_ptr<Model>* model) {
  model->reset();
  try {
    model->reset(new Model(runtime::SavedModel::read(path)));
  } catch (const Error& error) {  // a wrong dtype within a file is a wrong file
    return Status(error.code == StatusCode::kTypeError ? StatusCode::kValueError : error.code, error.what());
  } catch (const std::exception& error) {
    return Status(StatusCode::kRuntimeError, path + ": " + error.what());
  }
  return {};
}

Status Model::run(std::span<const TensorView> given, std::vector<ModelTensor>* results) const {
  results->clear();
  try {
    for (const Held& value : saved_->run(given)) results->push_back(public_tensor(value));
  } catch (const Error& error) {
    results->clear();
    return Status(error.code, error.what());
  } catch (const std::exception& error) {
    results->clear();
    return Status(StatusCode::kRuntimeError, error.what());
  }
  return {};
}

}  // namespace strop
