// Plans: rewritten models that Python's strop.save_plan wrote to a file, run without Python and PyTorch, on the CPU.
//
//   std::unique_ptr<strop::Model> model;
//   strop::Status status = strop::Model::load("model.safetensors", &model);
//   std::vector<strop::ModelTensor> outputs;
//   if (status.ok()) status = model->run(inputs, &outputs);   // TensorViews, in the order of model->inputs()
//
// The file is in the safetensors format: the weights by the names that they have in the module, and the programs in
// its metadata. One file serves every batch size and length. Where the model can compute on real tokens alone, it does:
// outputs that have tokens are 0 at padding then, as those of strop.optimize_model(…, ragged=True) are.
//
// Work is shared by the cores as strop/parallel.h says. Results are the same bits for as many tokens, whatever the
// number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {
namespace runtime {
struct SavedModel;
}

// One size of an input or output.
struct ModelSize {
  enum class Kind : std::uint8_t {
    kFixed,  // `value`
    kBatch,  // the number of sequences, the same for all inputs of a call and at least 1; `value` is the largest, or -1
    kLength,  // the same for their padded length
    kOther,   // of an output: something that follows from the others
  };
  Kind kind = Kind::kFixed;
  std::int64_t value = -1;
};

struct ModelArgument {
  std::string name;  // of an input as the module's forward has it ("input_ids"), of an output "last_hidden_state", …
  DType dtype = DType::kFloat32;
  std::vector<ModelSize> shape;  // at most kMaxRank of them
};

// A row-major tensor on the CPU with memory of its own, which copies share.
class ModelTensor {
 public:
  ModelTensor() = default;
  ModelTensor(const TensorView& view, std::shared_ptr<void> memory) : view_(view), memory_(std::move(memory)) {}
  const TensorView& view() const { return view_; }
  // The elements, of the dtype that view() says.
  template <class T>
  const T* data() const {
    return static_cast<const T*>(view_.data);
  }

 private:
  TensorView view_;
  std::shared_ptr<void> memory_;
};

class Model {
 public:
  // Reads a file with all its weights. kRuntimeError: it cannot be opened or read, or memory does not suffice;
  // kValueError: it is no plan, is damaged, of another version, lacks a tensor or has one of another dtype or shape, or
  // has operations that need PyTorch. The message names the file.
  static Status load(const std::string& path, std::unique_ptr<Model>* model);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::vector<ModelArgument>& inputs() const;
  const std::vector<ModelArgument>& outputs() const;

  // One call. `given` has a view for each of inputs(), in their order, of the dtype and the sizes that it says, on the
  // CPU, with any strides; they are not written, and may go when it returns. An input that does not fit is kTypeError
  // or kValueError, with its name; indices that a table does not have are kValueError. `results` becomes one tensor for
  // each of outputs(), with memory that no later call writes, and is empty after an error. Any number of threads may
  // call it at the same time.
  Status run(std::span<const TensorView> given, std::vector<ModelTensor>* results) const;

 private:
  explicit Model(std::unique_ptr<const runtime::SavedModel> saved);
  std::unique_ptr<const runtime::SavedModel> saved_;
};

}  // namespace strop
