// Embeds sequences of tokens with a model that strop.save_plan wrote: no Python, no PyTorch.
//
//   encoder MODEL.safetensors IDS.txt [--tokens | --output NAME] [--repeat N]
//
// IDS.txt has a sequence a line, its token ids with spaces between. They are one batch, padded to the longest, with a
// mask of what is real. Printed is a line a sequence: the mean of its tokens' states, of length 1, as
// sentence-transformers makes embeddings; with --output the values of another output of the model ("pooler_output"),
// with --tokens the states of all tokens. --repeat says on stderr how long a call takes, the best of N.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "strop/parallel.h"
#include "strop/plan.h"
#include "strop/pool.h"

namespace {

using strop::DType;
using strop::TensorView;

constexpr const char* kUsage = "encoder MODEL.safetensors IDS.txt [--tokens | --output NAME] [--repeat N]";

[[noreturn]] void fail(const std::string& message) {
  std::cerr << "encoder: " << message << "\n";
  std::exit(1);
}

void check(const strop::Status& status) {
  if (!status.ok()) fail(status.message());
}

struct Options {
  std::string model, ids, output = "last_hidden_state";
  bool pooled = true;
  int repeat = 0;
};

Options options_of(int argc, char** argv) {
  Options o;
  std::vector<std::string> given;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--tokens") {
      o.pooled = false;
    } else if ((word == "--output" || word == "--repeat") && i + 1 < argc) {
      ++i;
      if (word == "--repeat") {
        o.repeat = std::atoi(argv[i]);
        continue;
      }
      o.output = argv[i];
      o.pooled = false;
    } else {
      given.push_back(word);
    }
  }
  if (given.size() != 2) fail(std::string("usage: ") + kUsage);
  o.model = given[0];
  o.ids = given[1];
  return o;
}

// A batch, padded.
struct Batch {
  std::int64_t size = 0, length = 0;
  std::vector<std::int64_t> ids, mask, zeros;

  // What an input of that name is.
  TensorView input(const std::string& name) {
    std::vector<std::int64_t>* const values = name == "input_ids"        ? &ids
                                              : name == "attention_mask" ? &mask
                                              : name == "token_type_ids" ? &zeros
                                                                         : nullptr;
    if (values == nullptr) fail("the model wants an input that this program does not know: " + name);
    return TensorView::contiguous(values->data(), DType::kInt64, {size, length});
  }
};

Batch read_batch(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail(path + " cannot be opened");
  std::vector<std::vector<std::int64_t>> lines;
  Batch batch;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    std::vector<std::int64_t>& line = lines.emplace_back();
    for (std::int64_t id = 0; words >> id;) line.push_back(id);
    if (!words.eof()) fail(path + ": line " + std::to_string(lines.size()) + " has what is no number");
    if (line.empty()) lines.pop_back();
    batch.length = std::max(batch.length, static_cast<std::int64_t>(line.size()));
  }
  if (lines.empty()) fail(path + " has no token ids");
  batch.size = static_cast<std::int64_t>(lines.size());
  for (const std::vector<std::int64_t>& line : lines) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(batch.length); ++i) {
      batch.ids.push_back(i < line.size() ? line[i] : 0);
      batch.mask.push_back(i < line.size());
    }
  }
  batch.zeros.resize(batch.ids.size());
  return batch;
}

void print_rows(const float* values, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) std::printf(c > 0 ? " %.9g" : "%.9g", values[r * columns + c]);
    std::printf("\n");
  }
}

// The mean over real tokens, divided by its length.
std::vector<float> pooled(const TensorView& states, const TensorView& mask) {
  const std::int64_t rows = states.shape[0], columns = states.shape[2];
  std::vector<float> means(static_cast<std::size_t>(rows * columns));
  check(strop::mean_pool(states, mask, 1e-9, TensorView::contiguous(means.data(), DType::kFloat32, {rows, columns})));
  for (std::int64_t r = 0; r < rows; ++r) {
    float* const row = &means[static_cast<std::size_t>(r * columns)];
    double squares = 0;
    for (std::int64_t c = 0; c < columns; ++c) squares += double{row[c]} * row[c];
    for (std::int64_t c = 0; c < columns; ++c)
      row[c] = static_cast<float>(row[c] / std::max(std::sqrt(squares), 1e-12));
  }
  return means;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = options_of(argc, argv);
  std::unique_ptr<strop::Model> model;
  check(strop::Model::load(options.model, &model));

  Batch batch = read_batch(options.ids);
  std::vector<TensorView> inputs;
  for (const strop::ModelArgument& input : model->inputs()) inputs.push_back(batch.input(input.name));

  std::vector<strop::ModelTensor> outputs;
  check(model->run(inputs, &outputs));

  double best = INFINITY;
  for (int i = 0; i < options.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    check(model->run(inputs, &outputs));
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  if (options.repeat > 0)
    std::fprintf(stderr, "%lld sequences of at most %lld tokens on %d threads: %.2f ms\n",
                 static_cast<long long>(batch.size), static_cast<long long>(batch.length), strop::num_threads(), best);

  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (model->outputs()[i].name != options.output) continue;
    const TensorView& view = outputs[i].view();
    if (view.dtype != DType::kFloat32 || view.rank < 2) fail(options.output + " is no matrix of float32");
    if (options.pooled && view.rank == 3) {
      print_rows(pooled(view, batch.input("attention_mask")).data(), view.shape[0], view.shape[2]);
    } else {
      const std::int64_t columns = view.shape[view.rank - 1];
      print_rows(outputs[i].data<float>(), view.numel() / columns, columns);
    }
    return 0;
  }
  fail("the model has no output " + options.output);
}
