// What a plan file says, read into programs with their weights. The text is the value of "strop_plan" in the metadata
// of a safetensors file; python/strop/rewrite/save.py writes it.
//
//   {"version": 1, "strop": "0.1.0",
//    "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "length"], "most": [-1, 512]}, …],
//    "outputs": [{"name": "last_hidden_state", "dtype": "float32", "shape": ["batch", "length", 384]}, …],
//    "padded": PART,
//    "packed": null, or for real tokens alone
//      {"mask": 1,                                       the input that says which tokens are real
//       "wants_first": true, "wants_whole": false,       as locate() in packing.h
//       "before": PART, "sized": PART,                   the inputs -> what is packed, the latter of sizes alone
//       "packs": [{"from": "before" | "sized", "batch": 0, "length": 1 | -1, "batched": true} | {…, "as_it_is": true}],
//       "body": PART,                                    what was packed, in this order, cu, first, longest -> rows
//       "rows": [{"batch": 0, "length": 1 | -1}, …],     where batch and length are in these in the padded layout
//       "after": PART}}                                  the inputs, the unpacked rows -> the outputs
//
// A PART is {"program": …, "weights": […], "results": […]}: a program as in program.h or null, the names of the tensors
// that are its constants, and for each result {"output": i} of the program or {"input": i} of the part.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/packing.h"
#include "runtime/plan.h"
#include "strop/plan.h"

namespace strop::runtime {

// A program with its weights.
struct Part {
  struct Result {
    bool input = false;  // one of the part's inputs as it is
    std::size_t index = 0;
  };
  std::unique_ptr<Plan> plan;  // null: it computes nothing
  std::vector<Constant> constants;
  std::vector<Result> results;

  std::vector<Held> run(const std::vector<Held>& inputs, std::int64_t number = -1) const;  // throws Error
};

struct PackedParts {
  struct Source {
    bool sized = false;  // else from `before`
    Packing how;
  };
  std::size_t mask = 0;
  bool wants_first = false, wants_whole = false;
  Part before, sized, body, after;
  std::vector<Source> packs;
  std::vector<Layout> rows;

  // The outputs of a call, or nothing where it is for the padded program.
  std::vector<Held> run(const std::vector<Held>& inputs, std::int64_t batch, std::int64_t length) const;
};

struct SavedModel {
  std::vector<ModelArgument> inputs, outputs;
  std::vector<Held> weights;
  Part padded;
  std::unique_ptr<PackedParts> packed;

  static std::unique_ptr<SavedModel> read(const std::string& path);  // throws Error
  std::vector<Held> run(std::span<const TensorView> given) const;    // throws Error
};

}  // namespace strop::runtime
