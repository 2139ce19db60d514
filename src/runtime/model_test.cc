// Plan files: small ones written by hand, whole and damaged. tests/test_plan_file.py has real models.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "strop/plan.h"
#include "tests/support/safetensors.h"

namespace strop {
namespace {

using runtime::testing::File;
using runtime::testing::file_of;

// y = x w^T + b for tokens x (batch, length, 2) and their mask, and each sequence's first y; on real tokens alone.
const std::string kInputs = R"([{"name": "x", "dtype": "float32", "shape": ["batch", "length", 2], "most": [-1, 5, -1]},
    {"name": "mask", "dtype": "int64", "shape": ["batch", "length"], "most": [-1, 5]}])";
const std::string kOutputs = R"([{"name": "y", "dtype": "float32", "shape": ["batch", "length", 3]},
    {"name": "first", "dtype": "float32", "shape": ["batch", 3]}])";
const std::string kConstants = R"("constants": [{"name": "w", "dtype": "float32", "shape": [3, 2]},
    {"name": "b", "dtype": "float32", "shape": [3]}])";
const std::string kWeights = R"("weights": ["layer.weight", "layer.bias"])";
const std::string kLinear = R"({"op": "strop.linear_act", "args": ["%x", "%w", "%b", {"str": "none"}, null],
    "out": ["y"]})";
const std::string kPadded = R"({"program": {"version": 1, )" + kConstants + R"(,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, -1, 2]},
               {"name": "mask", "dtype": "int64", "shape": [-1, -1]}],
    "instructions": [)" + kLinear +
                            R"(, {"op": "select", "args": ["%y", 1, 0], "out": ["first"]}],
    "outputs": ["%y", "%first"]}, )" +
                            kWeights + R"(, "results": [{"output": 0}, {"output": 1}]})";
const std::string kBody = R"({"program": {"version": 1, )" + kConstants + R"(,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}, {"name": "cu", "dtype": "int32", "shape": [-1]},
               {"name": "at", "dtype": "int32", "shape": [-1]}, {"name": "longest", "dtype": "int"}],
    "instructions": [)" + kLinear +
                          R"(, {"op": "strop.gather_rows", "args": ["%y", "%at"], "out": ["first"]}],
    "outputs": ["%y", "%first"]}, )" +
                          kWeights + R"(, "results": [{"output": 0}, {"output": 1}]})";
const std::string kNothing = R"({"program": null, "weights": [], "results": [)";
const std::string kPacked = R"({"mask": 1, "wants_first": true, "wants_whole": false,
    "before": )" + kNothing +
                            R"({"input": 0}]}, "sized": )" + kNothing + R"(]},
    "packs": [{"from": "before", "batch": 0, "length": 1, "batched": true}], "body": )" +
                            kBody + R"(,
    "rows": [{"batch": 0, "length": 1}, {"batch": 0, "length": -1}], "after": )" +
                            kNothing + R"({"input": 2}, {"input": 3}]}})";

std::string plan(const std::string& packed = kPacked, const std::string& padded = kPadded) {
  return R"({"version": 1, "strop": "0.1.0", "inputs": )" + kInputs + R"(, "outputs": )" + kOutputs +
         R"(, "padded": )" + padded + R"(, "packed": )" + packed + "}";
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const std::size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

// A file with a plan and the weights, whose header may be changed.
std::string file_with(const std::string& text, const std::string& what = "", const std::string& by = "") {
  std::string quoted;
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c == '\n' ? ' ' : c;
  }
  std::string header = R"({"__metadata__": {"strop_plan": ")" + quoted + R"("},
      "layer.weight": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
      "layer.bias": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]}})";
  if (!what.empty()) header = replaced(header, what, by);
  return file_of(header, {1, 2, 3, 4, 5, 6, 0.5F, 1, 1.5F});
}

Status load(const std::string& bytes, std::unique_ptr<Model>* model) {
  const File file(bytes);
  return Model::load(file.path(), model);
}

std::unique_ptr<Model> loaded(const std::string& text) {
  std::unique_ptr<Model> model;
  const Status status = load(file_with(text), &model);
  EXPECT_TRUE(status.ok()) << status.message();
  return model;
}

struct Call {
  std::int64_t batch, length;
  std::vector<float> x;
  std::vector<std::int64_t> mask;

  Call(std::int64_t b, std::int64_t l, std::vector<std::int64_t> real) : batch(b), length(l), mask(std::move(real)) {
    for (std::int64_t i = 0; i < 2 * b * l; ++i) x.push_back(static_cast<float>(i % 7) - 2);
  }
  std::vector<TensorView> views() {
    return {TensorView::contiguous(x.data(), DType::kFloat32, {batch, length, 2}),
            TensorView::contiguous(mask.data(), DType::kInt64, {batch, length})};
  }
  float wanted(std::int64_t token, int n) const {
    const float w[3][2] = {{1, 2}, {3, 4}, {5, 6}}, b[3] = {0.5F, 1, 1.5F};
    const float* const row = &x[static_cast<std::size_t>(2 * token)];
    return row[0] * w[n][0] + row[1] * w[n][1] + b[n];
  }
};

void expect_right(const Model& model, Call call, bool packed) {
  std::vector<ModelTensor> results;
  const Status status = model.run(call.views(), &results);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(results.size(), 2U);
  const TensorView &y = results[0].view(), &first = results[1].view();
  ASSERT_EQ(y.rank, 3);
  ASSERT_EQ(first.rank, 2);
  ASSERT_EQ(y.shape[0] * y.shape[1], call.batch * call.length);
  for (std::int64_t t = 0; t < call.batch * call.length; ++t)
    for (int n = 0; n < 3; ++n)
      EXPECT_EQ(results[0].data<float>()[3 * t + n],
                packed && call.mask[static_cast<std::size_t>(t)] == 0 ? 0 : call.wanted(t, n));
  for (std::int64_t b = 0; b < call.batch; ++b)
    for (int n = 0; n < 3; ++n) EXPECT_EQ(results[1].data<float>()[3 * b + n], call.wanted(b * call.length, n));
}

TEST(Model, RunsOnRealTokensAlone) {
  const auto model = loaded(plan());
  ASSERT_EQ(model->inputs().size(), 2U);
  EXPECT_EQ(model->inputs()[0].name, "x");
  EXPECT_EQ(model->inputs()[0].shape[1].kind, ModelSize::Kind::kLength);
  EXPECT_EQ(model->inputs()[0].shape[1].value, 5);
  EXPECT_EQ(model->inputs()[0].shape[2].value, 2);
  EXPECT_EQ(model->outputs()[1].name, "first");
  EXPECT_EQ(model->outputs()[1].shape.size(), 2U);
  expect_right(*model, {2, 3, {1, 1, 1, 1, 1, 1}}, true);
  expect_right(*model, {2, 3, {1, 1, 0, 1, 0, 0}}, true);
  expect_right(*model, {2, 4, {1, 0, 1, 0, 1, 1, 0, 1}}, true);  // holes
  expect_right(*model, {1, 1, {1}}, true);
  // A sequence that begins with padding, and one without tokens, need the padded program: its padding is not 0.
  expect_right(*model, {2, 2, {0, 1, 1, 1}}, false);
  expect_right(*model, {2, 2, {0, 0, 0, 0}}, false);
  expect_right(*loaded(plan("null")), {2, 2, {1, 1, 1, 0}}, false);
}

TEST(Model, InputsOfAnyStrides) {
  const auto model = loaded(plan());
  Call call(2, 3, {1, 1, 0, 1, 1, 1});
  std::vector<float> turned(call.x.size());
  for (std::size_t t = 0; t < 6; ++t)
    for (std::size_t k = 0; k < 2; ++k) turned[k * 6 + t] = call.x[2 * t + k];
  std::vector<TensorView> views = call.views();
  std::vector<ModelTensor> wanted, given;
  ASSERT_TRUE(model->run(views, &wanted).ok());
  views[0].data = turned.data();
  views[0].strides[0] = 3, views[0].strides[1] = 1, views[0].strides[2] = 6;
  ASSERT_TRUE(model->run(views, &given).ok());
  for (std::size_t i = 0; i < 18; ++i) EXPECT_EQ(wanted[0].data<float>()[i], given[0].data<float>()[i]);
}

TEST(Model, InputsThatDoNotFitAreNamed) {
  const auto model = loaded(plan());
  Call call(2, 3, {1, 1, 0, 1, 1, 1});
  std::vector<ModelTensor> results(1);
  const auto says = [&](const std::vector<TensorView>& views) {
    const Status status = model->run(views, &results);
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(results.empty());
    return status.message();
  };
  std::vector<TensorView> v = call.views();
  EXPECT_EQ(says({v[0]}), "expected 2 inputs, got 1");
  v[1].dtype = DType::kInt32;
  EXPECT_EQ(says(v), "mask: expected int64, got int32");
  v = call.views();
  v[0].rank = 2;
  EXPECT_EQ(says(v), "x: expected 3 dimensions, got (2, 3)");
  v = call.views();
  v[0].shape[2] = 1;
  EXPECT_EQ(says(v), "x: expected 2 in dimension 2, got 1");
  v = call.views();
  v[1].shape[1] = 2;
  EXPECT_EQ(says(v), "mask: expected a length of 3 in dimension 1, like the inputs before it, got 2");
  v = call.views();
  v[0].shape[1] = 6;
  EXPECT_EQ(says(v), "x: expected at least 1 and at most 5 in dimension 1, got 6");
  v = call.views();
  v[0].shape[0] = 0;
  EXPECT_EQ(says(v), "x: expected at least 1 in dimension 0, got 0");
  v = call.views();
  v[0].device = DeviceType::kCuda;
  EXPECT_EQ(says(v), "x: expected a tensor on the CPU, got cuda:0");
  v = call.views();
  v[1].data = nullptr;
  EXPECT_EQ(says(v), "mask: expected a tensor, got none");
}

TEST(Model, ThreadsShareIt) {
  const auto model = loaded(plan());
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t k = 0; k < wrong.size(); ++k) {
    threads.emplace_back([&, k] {
      for (int round = 0; round < 100; ++round) {
        const std::int64_t length = 1 + (round + static_cast<int>(k)) % 5;
        Call call(2, length, std::vector<std::int64_t>(static_cast<std::size_t>(2 * length), 1));
        if (length > 1) call.mask.back() = 0;
        std::vector<ModelTensor> results;
        if (!model->run(call.views(), &results).ok()) ++wrong[k];
        for (std::int64_t t = 0; t < length && !results.empty(); ++t)
          wrong[k] += results[0].data<float>()[3 * t + 1] != call.wanted(t, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int n : wrong) EXPECT_EQ(n, 0);
}

TEST(Model, FilesThatCannotBeAreRefused) {
  std::unique_ptr<Model> model;
  Status status = Model::load("/nowhere.safetensors", &model);
  EXPECT_EQ(status.code(), StatusCode::kRuntimeError);
  EXPECT_EQ(status.message(), "/nowhere.safetensors: it cannot be opened");
  const std::string whole = plan();
  const struct {
    std::string bytes, says;
  } cases[] = {
      {file_with(whole).substr(0, 100), "its header has"},
      {file_with(whole, "strop_plan", "other"), "a safetensors file without a plan"},
      {file_with(whole, R"("layer.bias")", R"("layer.other")"), "there is no tensor \"layer.bias\""},
      {file_with(whole, R"("shape": [3, 2])", R"("shape": [2, 3])"),
       "tensor \"layer.weight\": w: expected size 3 in dimension 0, got 2"},
      {file_with(whole, R"("dtype": "F32", "shape": [3],)", R"("dtype": "I32", "shape": [3],)"),
       "b: expected float32, got int32"},
      {file_with(replaced(whole, R"("version": 1)", R"("version": 2)")), "a plan of version 2 (by strop 0.1.0)"},
      {file_with(whole + "}"), "the plan"},
      {file_with("{}"), "version"},
      {file_with(replaced(whole, R"("batch", "length", 2)", R"("batch", "width", 2)")), "size \"width\" is not known"},
      {file_with(replaced(whole, R"("mask": 1)", R"("mask": 2)")), "packed: \"mask\""},
      {file_with(replaced(whole, R"([{"input": 0}])", R"([{"input": 2}])")), "result {\"input\":2} is not there"},
      {file_with(replaced(whole, R"(, {"output": 1}])", "]")), "padded"},
      {file_with(replaced(whole, R"("from": "before")", R"("from": "sized")")), "more is packed than sized gives"},
      {file_with(replaced(whole, R"("batched": true)", R"("batched": true, "length": 0)")), "a layout"},
      {file_with(replaced(whole, R"("rows": [)", R"("rows": [{"batch": 0, "length": 1}, )")), "body: 2 results, not 3"},
      {file_with(replaced(whole, R"("op": "select")", R"("op": "no such")")), "it is not known"},
      {file_with(replaced(whole, R"({"op": "select", "args": ["%y", 1, 0])",
                          R"({"op": "call", "name": "aten::bmm", "overload": "", "types": ["Tensor", "Tensor"],
                              "results": ["Tensor"], "args": ["%y", "%y"])")),
       "operations that need PyTorch: aten::bmm"},
  };
  for (const auto& c : cases) {
    status = load(c.bytes, &model);
    EXPECT_EQ(status.code(), StatusCode::kValueError) << status.message();
    EXPECT_NE(status.message().find(c.says), std::string::npos) << c.says << ": " << status.message();
    EXPECT_EQ(model, nullptr);
  }
}

}  // namespace
}  // namespace strop
