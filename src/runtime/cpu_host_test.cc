// Operations of PyTorch's that the runtime has itself where there is no framework. tests/test_plan_file.py compares
// models that are made of them with PyTorch.
#include "runtime/cpu_host.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "runtime/plan.h"
#include "tests/support/plan_host.h"

namespace strop::runtime {
namespace {

using testing::tensor_over;
using testing::values_of;

// The result of one operation of PyTorch's. `types` and `args` as in a program, of the inputs x, y, z.
struct Outcome {
  Status status;
  Held result;
};

Outcome run(const std::string& name, const std::string& types, const std::string& args, std::vector<Value> inputs) {
  std::string text = R"({"version": 1, "constants": [], "inputs": [)";
  const char* const names[] = {"x", "y", "z"};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& t = inputs[i].tensor;
    text += std::string(i > 0 ? ", " : "") + R"({"name": ")" + names[i] + R"(", "dtype": ")" + dtype_name(t.dtype) +
            R"(", "shape": [)";
    for (int d = 0; d < t.rank; ++d) text += d > 0 ? ", -1" : "-1";
    text += "]}";
  }
  const std::size_t dot = name.find('.');
  text += R"(], "instructions": [{"op": "call", "name": ")" + name.substr(0, dot) + R"(", "overload": ")" +
          (dot == std::string::npos ? "" : name.substr(dot + 1)) + R"(", "types": )" + types +
          R"(, "results": ["Tensor"], "args": )" + args + R"(, "out": ["out"]}], "outputs": ["%out"]})";
  Outcome o;
  std::unique_ptr<Plan> plan;
  o.status = Plan::load(text, &plan);
  EXPECT_TRUE(o.status.ok()) << o.status.message() << text;
  CpuHost host;
  std::vector<void*> handles;
  o.status = plan->run(host, {}, inputs, &handles);
  for (void* handle : handles) {
    o.result = *static_cast<Held*>(handle);
    host.release(handle);
  }
  return o;
}

constexpr const char* kTwo = R"(["Tensor", "Tensor"])";
constexpr const char* kXy = R"(["%x", "%y"])";

template <class T>
std::vector<T> values(const Outcome& o, DType dtype, const Sizes& shape) {
  EXPECT_TRUE(o.status.ok()) << o.status.message();
  if (!o.status.ok()) return {};
  EXPECT_EQ(o.result.tensor.dtype, dtype) << dtype_name(o.result.tensor.dtype);
  EXPECT_EQ(o.result.tensor.sizes(), shape);
  return o.result.tensor.dtype == dtype ? values_of<T>(o.result.tensor) : std::vector<T>{};
}

class CpuHostTest : public ::testing::Test {
 protected:
  std::vector<float> floats_{-1.5F, 0, 2, 4, -8, 0.25F}, three_{10, 20, 30};
  std::vector<std::int64_t> whole_{0, 1, 2, 3, -4, 5}, one_{3};
  std::vector<std::int32_t> small_{1, 0, 2};
  std::vector<std::uint8_t> bits_{1, 0, 1, 1, 0, 0};
  Tensor x_ = tensor_over(floats_, DType::kFloat32, {2, 3}), row_ = tensor_over(three_, DType::kFloat32, {3}),
         i_ = tensor_over(whole_, DType::kInt64, {2, 3}), scalar_ = tensor_over(one_, DType::kInt64, {}),
         s_ = tensor_over(small_, DType::kInt32, {3}), b_ = tensor_over(bits_, DType::kBool, {2, 3});
};

TEST_F(CpuHostTest, ArithmeticBroadcastsAndPromotes) {
  EXPECT_EQ(values<float>(run("aten::mul.Tensor", kTwo, kXy, {x_, row_}), DType::kFloat32, {2, 3}),
            (std::vector<float>{-15, 0, 60, 40, -160, 7.5F}));
  EXPECT_EQ(values<float>(run("aten::mul.Tensor", kTwo, kXy, {i_, row_}), DType::kFloat32, {2, 3})[4], -80);
  EXPECT_EQ(values<std::int64_t>(run("aten::mul.Tensor", kTwo, kXy, {i_, s_}), DType::kInt64, {2, 3}),
            (std::vector<std::int64_t>{0, 0, 4, 3, 0, 10}));
  // A tensor without dimensions counts less, unless it is of another kind.
  EXPECT_EQ(values<std::int32_t>(run("aten::mul.Tensor", kTwo, kXy, {s_, scalar_}), DType::kInt32, {3}),
            (std::vector<std::int32_t>{3, 0, 6}));
  EXPECT_EQ(values<std::int64_t>(run("aten::mul.Tensor", kTwo, kXy, {b_, scalar_}), DType::kInt64, {2, 3})[0], 3);
  EXPECT_EQ(values<float>(run("aten::div.Tensor", kTwo, kXy, {i_, scalar_}), DType::kFloat32, {2, 3})[1], 1.0F / 3);
  EXPECT_EQ(values<float>(run("aten::min.other", kTwo, kXy, {x_, row_}), DType::kFloat32, {2, 3})[3], 4);
  EXPECT_EQ(values<float>(run("aten::maximum", kTwo, kXy, {x_, row_}), DType::kFloat32, {2, 3})[3], 10);
  three_[1] = NAN;
  EXPECT_TRUE(std::isnan(values<float>(run("aten::minimum", kTwo, kXy, {x_, row_}), DType::kFloat32, {2, 3})[1]));
}

TEST_F(CpuHostTest, Comparisons) {
  EXPECT_EQ(values<std::uint8_t>(run("aten::ne.Tensor", kTwo, kXy, {i_, scalar_}), DType::kBool, {2, 3}),
            (std::vector<std::uint8_t>{1, 1, 1, 0, 1, 1}));
  EXPECT_EQ(values<std::uint8_t>(run("aten::lt.Tensor", kTwo, kXy, {x_, i_}), DType::kBool, {2, 3}),
            (std::vector<std::uint8_t>{1, 1, 0, 0, 1, 1}));
  EXPECT_EQ(values<std::uint8_t>(run("aten::bitwise_and.Tensor", kTwo, kXy, {b_, b_}), DType::kBool, {2, 3}), bits_);
}

TEST_F(CpuHostTest, FunctionsOfOne) {
  const std::string one = R"(["Tensor"])", x = R"(["%x"])";
  EXPECT_EQ(values<float>(run("aten::abs", one, x, {x_}), DType::kFloat32, {2, 3})[4], 8);
  EXPECT_EQ(values<std::int64_t>(run("aten::neg", one, x, {i_}), DType::kInt64, {2, 3})[5], -5);
  EXPECT_EQ(values<std::int64_t>(run("aten::sign", one, x, {i_}), DType::kInt64, {2, 3}),
            (std::vector<std::int64_t>{0, 1, 1, 1, -1, 1}));
  EXPECT_EQ(values<float>(run("aten::cos", one, x, {i_}), DType::kFloat32, {2, 3})[3], std::cos(3.0F));
  EXPECT_EQ(values<float>(run("aten::rsqrt", one, x, {x_}), DType::kFloat32, {2, 3})[3], 0.5F);
  EXPECT_EQ(values<std::uint8_t>(run("aten::bitwise_not", one, x, {b_}), DType::kBool, {2, 3}),
            (std::vector<std::uint8_t>{0, 1, 0, 0, 1, 1}));
}

TEST_F(CpuHostTest, Choices) {
  const std::string three = R"(["Tensor", "Tensor", "Tensor"])", xyz = R"(["%x", "%y", "%z"])";
  EXPECT_EQ(values<float>(run("aten::where.self", three, xyz, {b_, x_, row_}), DType::kFloat32, {2, 3}),
            (std::vector<float>{-1.5F, 20, 2, 4, 20, 30}));
  EXPECT_EQ(values<float>(run("aten::masked_fill.Tensor", three, xyz, {x_, b_, scalar_}), DType::kFloat32, {2, 3}),
            (std::vector<float>{3, 0, 3, 3, -8, 0.25F}));
  EXPECT_FALSE(run("aten::where.self", three, xyz, {i_, x_, row_}).status.ok());
}

TEST_F(CpuHostTest, AlongADimension) {
  const std::string cumsum = R"(["Tensor", "int", "dtype?"])";
  EXPECT_EQ(values<std::int64_t>(run("aten::cumsum", cumsum, R"(["%x", 1, null])", {i_}), DType::kInt64, {2, 3}),
            (std::vector<std::int64_t>{0, 1, 3, 3, -1, 4}));
  EXPECT_EQ(values<std::int64_t>(run("aten::cumsum", cumsum, R"(["%x", 0, null])", {b_}), DType::kInt64, {2, 3}),
            (std::vector<std::int64_t>{1, 0, 1, 2, 0, 1}));
  std::vector<std::int64_t> at{2, 0, 1, 1};
  const Tensor index = tensor_over(at, DType::kInt64, {2, 2});
  const std::string gather = R"(["Tensor", "int", "Tensor", "bool"])";
  EXPECT_EQ(
      values<float>(run("aten::gather", gather, R"(["%x", 1, "%y", false])", {x_, index}), DType::kFloat32, {2, 2}),
      (std::vector<float>{2, -1.5F, -8, -8}));
  // The first columns of the second dimension alone are read along the first.
  std::vector<std::int64_t> rows{1, 0};
  EXPECT_EQ(values<float>(run("aten::gather", gather, R"(["%x", 0, "%y", false])",
                              {x_, tensor_over(rows, DType::kInt64, {1, 2})}),
                          DType::kFloat32, {1, 2}),
            (std::vector<float>{4, 0}));
  at[3] = 3;
  EXPECT_EQ(run("aten::gather", gather, R"(["%x", 1, "%y", false])", {x_, index}).status.message(),
            "aten::gather (out): gather: index 3 of 3");
}

TEST_F(CpuHostTest, TensorsSideBySideAndLookedUp) {
  const Outcome cat = run("aten::cat", R"(["Tensor[]", "int"])", R"([["%x", "%y", "%x"], -1])", {x_, x_});
  EXPECT_EQ(values<float>(cat, DType::kFloat32, {2, 9})[10], -8);
  EXPECT_FALSE(run("aten::cat", R"(["Tensor[]", "int"])", R"([["%x", "%y"], 0])", {x_, i_}).status.ok());
  const std::string types = R"(["Tensor", "Tensor", "int", "bool", "bool"])",
                    args = R"(["%x", "%y", -1, false, false])";
  std::vector<std::int64_t> ids{1, 0, 1};
  EXPECT_EQ(values<float>(run("aten::embedding", types, args, {x_, tensor_over(ids, DType::kInt64, {1, 3})}),
                          DType::kFloat32, {1, 3, 3}),
            (std::vector<float>{4, -8, 0.25F, -1.5F, 0, 2, 4, -8, 0.25F}));
  ids[0] = 2;
  EXPECT_FALSE(run("aten::embedding", types, args, {x_, tensor_over(ids, DType::kInt64, {1, 3})}).status.ok());
}

TEST_F(CpuHostTest, MasksOfAttention) {
  const std::string types = R"(["Tensor?", "int", "int", "int", "int", "int", "int", "int", "device"])";
  const Outcome o = run("strop::attention_mask", types, R"(["%x", 2, 2, 4, 1, 0, 1, 0, {"device": "cpu"}])", {b_});
  // Query i stands at i + 1 and sees itself and the key before; keys beyond the padding are none.
  EXPECT_EQ(values<std::uint8_t>(o, DType::kBool, {2, 1, 2, 4}),
            (std::vector<std::uint8_t>{1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0}));
}

TEST_F(CpuHostTest, WhatItLacksIsSaid) {
  const Outcome o = run("aten::bmm", kTwo, kXy, {x_, x_});
  EXPECT_EQ(o.status.code(), StatusCode::kTypeError);
  EXPECT_EQ(o.status.message(), "aten::bmm (out): it needs PyTorch");
  std::vector<std::uint16_t> half(3);
  const Outcome h = run("aten::neg", R"(["Tensor"])", R"(["%x"])", {tensor_over(half, DType::kFloat16, {3})});
  EXPECT_EQ(h.status.message(), "aten::neg (out): it does not take float16");
}

}  // namespace
}  // namespace strop::runtime
