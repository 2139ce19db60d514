#include "runtime/plan.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/plan_host.h"

namespace strop::runtime {
namespace {

using testing::result;
using testing::tensor_over;
using testing::TestHost;
using testing::values_of;

std::unique_ptr<Plan> loaded(const std::string& text) {
  std::unique_ptr<Plan> plan;
  const Status status = Plan::load(text, &plan);
  EXPECT_TRUE(status.ok()) << status.message();
  return plan;
}

// A program with one input x of rank 2.
std::string program(const std::string& instructions, const std::string& outputs, const std::string& more = "") {
  return R"({"version": 1, "constants": [], "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, -1]}], )" +
         more + R"("instructions": [)" + instructions + R"(], "outputs": [)" + outputs + "]}";
}

struct Outcome {
  Status status;
  std::vector<std::vector<float>> values;
  std::vector<Sizes> shapes;
};

Outcome run(const Plan& plan, TestHost& host, std::vector<float>& x, const Sizes& shape) {
  Outcome r;
  std::vector<void*> outputs;
  const Value input = tensor_over(x, DType::kFloat32, shape);
  r.status = plan.run(host, {}, {&input, 1}, &outputs);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    r.values.push_back(values_of<float>(result(outputs, i)));
    r.shapes.push_back(result(outputs, i).sizes());
    host.release(outputs[i]);
  }
  EXPECT_EQ(host.alive, 0);
  return r;
}

TEST(Plan, SizesAndViewsOfAnyShape) {
  const auto plan = loaded(program(R"({"op": "size", "args": ["%x", 0], "out": ["a"]},
      {"op": "size", "args": ["%x", -1], "out": ["b"]},
      {"op": "int.mul", "args": ["%a", "%b"], "out": ["n"]},
      {"op": "transpose", "args": ["%x", 0, 1], "out": ["t"]},
      {"op": "reshape", "args": ["%t", ["%n"]], "out": ["flat"]},
      {"op": "int.floordiv", "args": ["%n", -2], "out": ["half"]},
      {"op": "int.neg", "args": ["%half"], "out": ["m"]},
      {"op": "slice", "args": ["%flat", 0, 0, "%m", 1], "out": ["y"]})",
                                   R"("%y", "%t", "%x")"));
  TestHost host;
  std::vector<float> x = {0, 1, 2, 3, 4, 5};
  const Outcome r = run(*plan, host, x, {2, 3});
  ASSERT_TRUE(r.status.ok()) << r.status.message();
  EXPECT_EQ(r.values[0], (std::vector<float>{0, 3, 1}));
  EXPECT_EQ(r.values[1], (std::vector<float>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(r.shapes[1], (Sizes{3, 2}));
  EXPECT_EQ(r.values[2], x);
  std::vector<float> one = {7, 8, 9};
  EXPECT_EQ(run(*plan, host, one, {1, 3}).values[0], (std::vector<float>{7, 8}));
  std::vector<float> none;
  EXPECT_EQ(run(*plan, host, none, {0, 3}).values[0], (std::vector<float>{}));
}

TEST(Plan, IntegersAreThoseOfPython) {
  const struct {
    const char *op, *args;
    std::int64_t wanted;
  } cases[] = {{"floordiv", "[7, 2]", 3},   {"floordiv", "[-7, 2]", -4}, {"floordiv", "[7, -2]", -4},
               {"floordiv", "[-8, 2]", -4}, {"mod", "[7, 3]", 1},        {"mod", "[-7, 3]", 2},
               {"mod", "[7, -3]", -2},      {"min", "[2, 3]", 2},        {"max", "[2, 3]", 3},
               {"sub", "[2, 3]", -1},       {"add", "[2, 3]", 5}};
  for (const auto& c : cases) {
    // 10 elements, of which as many are seen as the result says: shifted to be no less than 0.
    const auto plan = loaded(program(std::string(R"({"op": "int.)") + c.op + R"(", "args": )" + c.args +
                                         R"(, "out": ["n"]}, {"op": "int.add", "args": ["%n", 5], "out": ["m"]},
        {"op": "slice", "args": ["%x", 1, 0, "%m"], "out": ["y"]})",
                                     R"("%y")"));
    TestHost host;
    std::vector<float> x(10);
    const Outcome r = run(*plan, host, x, {1, 10});
    ASSERT_TRUE(r.status.ok()) << r.status.message();
    EXPECT_EQ(r.shapes[0][1], c.wanted + 5) << c.op << c.args;
  }
  const auto plan = loaded(program(R"({"op": "int.mod", "args": [1, 0], "out": ["n"]})", R"("%x")"));
  TestHost host;
  std::vector<float> x(1);
  EXPECT_EQ(run(*plan, host, x, {1, 1}).status.message(), "int.mod (n): division by zero");
}

// Every intermediate of a chain that is longer than what is alive at a time; memory of the last is not given out again
// while a view of it is to be read.
std::string chain(int length) {
  std::string text = R"({"op": "cpu.add", "args": ["%x", "%x"], "out": ["y0"]},
      {"op": "transpose", "args": ["%y0", 0, 1], "out": ["view"]},)";
  for (int i = 1; i < length; ++i) {
    const std::string last = std::to_string(i - 1), now = std::to_string(i);
    text += R"({"op": "cpu.add", "args": ["%y)" + last + R"(", "%x"], "out": ["y)" + now + R"("]},)";
  }
  text += R"({"op": "transpose", "args": ["%view", 0, 1], "out": ["back"]},
      {"op": "cpu.sub", "args": ["%y)" +
          std::to_string(length - 1) + R"(", "%back"], "out": ["out"]})";
  return program(text, R"("%out", "%view")");
}

TEST(Plan, MemoryIsUsedAgainWhenItsLastViewIsGone) {
  const auto plan = loaded(chain(30));
  TestHost host;
  for (int round = 0; round < 3; ++round) {
    for (std::int64_t n : {1, 100, 37}) {
      std::vector<float> x(static_cast<std::size_t>(3 * n));
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
      const Outcome r = run(*plan, host, x, {3, n});
      ASSERT_TRUE(r.status.ok()) << r.status.message();
      for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(r.values[0][i], 29 * x[i]);
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < 3; ++j)
          ASSERT_EQ(r.values[1][static_cast<std::size_t>(i * 3 + j)], 2 * x[static_cast<std::size_t>(j * n + i)]);
    }
  }
  // 3 × 100 floats take 1280 bytes: two steps of the chain at a time. The viewed one is an output, of the host's.
  EXPECT_LE(plan->kept_bytes(), 2U * 1280U);
  EXPECT_GT(plan->kept_bytes(), 0U);
}

TEST(Plan, ThreadsRunItAtOnce) {
  const auto plan = loaded(chain(20));
  TestHost host;
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 200; ++round) {
        const std::int64_t n = 1 + (round * 7 + static_cast<int>(t)) % 50;
        std::vector<float> x(static_cast<std::size_t>(2 * n));
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i + t);
        const Value input = tensor_over(x, DType::kFloat32, {2, n});
        std::vector<void*> outputs;
        if (!plan->run(host, {}, {&input, 1}, &outputs).ok()) {
          ++wrong[t];
          continue;
        }
        const std::vector<float> y = values_of<float>(result(outputs, 0));
        for (std::size_t i = 0; i < y.size(); ++i) wrong[t] += y[i] != 19 * x[i];
        for (void* output : outputs) host.release(output);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
  EXPECT_EQ(host.alive, 0);
}

const char* const kForeign = R"({"op": "call", "name": "test::op", "overload": "", "types": ["Tensor"],
    "results": ["Tensor"], "args": ["%h"], "out": ["y"]},)";

std::string around_foreign() {
  return program(std::string(R"({"op": "cpu.add", "args": ["%x", "%x"], "out": ["h"]},)") + kForeign +
                     R"({"op": "cpu.sub", "args": ["%x", "%x"], "out": ["other"]},
                        {"op": "cpu.add", "args": ["%y", "%other"], "out": ["z"]})",
                 R"("%z", "%y")");
}

TEST(Plan, AForeignResultMayBeAViewOfItsArgument) {
  const auto plan = loaded(around_foreign());
  TestHost host;
  // A handle over memory that the plan owns: where it were taken for a tensor of its own, `other` would overwrite it.
  host.operations["test::op"] = [](TestHost& h, Call& call) {
    testing::Handle* made = new testing::Handle;
    ++h.alive;
    made->tensor = call.tensor(0);
    call.adopt(0, made->tensor, made);
    return Status();
  };
  std::vector<float> x = {1, 2, 3, 4};
  const Outcome r = run(*plan, host, x, {2, 2});
  ASSERT_TRUE(r.status.ok()) << r.status.message();
  EXPECT_EQ(r.values[0], (std::vector<float>{2, 4, 6, 8}));
  EXPECT_EQ(r.values[1], (std::vector<float>{2, 4, 6, 8}));
}

TEST(Plan, AForeignResultOfItsOwnIsReleased) {
  const auto plan = loaded(around_foreign());
  TestHost host;
  host.operations["test::op"] = [](TestHost& h, Call& call) {
    Tensor t = call.tensor(0);
    void* handle = nullptr;
    if (Status s = h.empty(t, &handle); !s.ok()) return s;
    copy(h, t, call.tensor(0));
    call.adopt(0, t, handle);
    return Status();
  };
  std::vector<float> x = {1, 2, 3, 4};
  EXPECT_EQ(run(*plan, host, x, {2, 2}).values[0], (std::vector<float>{2, 4, 6, 8}));
}

TEST(Plan, ErrorsNameTheInstructionAndLeaveNothing) {
  const auto plan = loaded(around_foreign());
  TestHost host;
  host.operations["test::op"] = [](TestHost&, Call&) { return Status(StatusCode::kValueError, "it is Monday"); };
  std::vector<float> x = {1, 2, 3, 4};
  Outcome r = run(*plan, host, x, {2, 2});
  EXPECT_EQ(r.status.code(), StatusCode::kValueError);
  EXPECT_EQ(r.status.message(), "test::op (y): it is Monday");
  EXPECT_TRUE(r.values.empty());
  EXPECT_EQ(plan->kept_bytes(), 0U);  // what was left in the slab is given back with it
  host.operations.clear();
  EXPECT_EQ(run(*plan, host, x, {2, 2}).status.code(), StatusCode::kTypeError);
  const auto sum = loaded(program(R"({"op": "transpose", "args": ["%x", 0, 1], "out": ["t"]},
      {"op": "cpu.add", "args": ["%x", "%t"], "out": ["y"]})",
                                  R"("%y")"));
  EXPECT_EQ(run(*sum, host, x, {4, 1}).status.message(), "");  // (4, 1) and (1, 4) broadcast
  x.resize(6);
  EXPECT_EQ(run(*sum, host, x, {2, 3}).status.message(), "cpu.add (y): broadcast: (2, 3) and (3, 2)");
}

TEST(Plan, InputsAreChecked) {
  const auto plan = loaded(program(R"({"op": "cpu.add", "args": ["%x", "%x"], "out": ["y"]})", R"("%y")"));
  TestHost host;
  std::vector<void*> outputs;
  std::vector<float> x(6);
  const auto message = [&](const Value& v) { return plan->run(host, {}, {&v, 1}, &outputs).message(); };
  Tensor t = tensor_over(x, DType::kFloat32, {6});
  EXPECT_EQ(message(t), "x: expected 2 dimensions, got 1");
  t = tensor_over(x, DType::kInt32, {2, 3});
  EXPECT_EQ(message(t), "x: expected float32, got int32");
  t.dtype = DType::kFloat32;
  t.device = DeviceType::kCuda;
  EXPECT_EQ(message(t), "x: it is on another device than the plan was made for");
  EXPECT_EQ(message(Value(3)), "x: expected a tensor");
  EXPECT_EQ(plan->run(host, {}, {}, &outputs).code(), StatusCode::kTypeError);
  EXPECT_TRUE(outputs.empty());
}

TEST(Plan, InputsMayBeNumbers) {
  const auto plan = loaded(R"({"version": 1, "constants": [],
      "inputs": [{"name": "n", "dtype": "int"}, {"name": "x", "dtype": "float32", "shape": [-1]}],
      "instructions": [{"op": "int.add", "args": ["%n", 1], "out": ["m"]},
                       {"op": "slice", "args": ["%x", 0, "%n", "%m", 1], "out": ["y"]}],
      "outputs": ["%y"]})");
  TestHost host;
  std::vector<float> x = {1, 2, 3};
  const Tensor t = tensor_over(x, DType::kFloat32, {3});
  for (std::int64_t n = 0; n < 3; ++n) {
    const Value inputs[] = {Value(n), t};
    std::vector<void*> outputs;
    ASSERT_TRUE(plan->run(host, {}, inputs, &outputs).ok());
    EXPECT_EQ(values_of<float>(result(outputs, 0)), (std::vector<float>{x[static_cast<std::size_t>(n)]}));
    host.release(outputs[0]);
  }
  const Value wrong[] = {t, t};
  std::vector<void*> outputs;
  EXPECT_EQ(plan->run(host, {}, wrong, &outputs).message(), "n: expected an int");
}

// A packed batch: rows gathered, pooled by sequence and put back.
TEST(Plan, PackedTokens) {
  const auto plan = loaded(R"({"version": 1, "constants": [],
      "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, -1, -1]},
                 {"name": "mask", "dtype": "int32", "shape": [-1, -1]}],
      "instructions": [
        {"op": "strop.token_index", "args": ["%mask"], "out": ["cu", "all", "where", "summary"]},
        {"op": "slice", "args": ["%all", 0, 0, 3, 1], "out": ["rows"]},
        {"op": "reshape", "args": ["%x", [4, 2]], "out": ["flat"]},
        {"op": "strop.gather_rows", "args": ["%flat", "%rows"], "out": ["packed"]},
        {"op": "strop.mean_pool_packed", "args": ["%packed", "%cu", 0.5], "out": ["means"]},
        {"op": "strop.mean_pool", "args": ["%x", "%mask", 0.5], "out": ["same"]},
        {"op": "strop.scatter_rows", "args": ["%packed", "%where"], "out": ["back"]}],
      "outputs": ["%packed", "%means", "%same", "%back", "%cu"]})");
  TestHost host;
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<int> mask = {1, 1, 0, 1};
  const Value inputs[] = {tensor_over(x, DType::kFloat32, {2, 2, 2}), tensor_over(mask, DType::kInt32, {2, 2})};
  std::vector<void*> outputs;
  const Status status = plan->run(host, {}, inputs, &outputs);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(values_of<float>(result(outputs, 0)), (std::vector<float>{1, 2, 3, 4, 7, 8}));
  EXPECT_EQ(values_of<float>(result(outputs, 1)), (std::vector<float>{2, 3, 7, 8}));
  EXPECT_EQ(values_of<float>(result(outputs, 2)), (std::vector<float>{2, 3, 7, 8}));
  EXPECT_EQ(values_of<float>(result(outputs, 3)), (std::vector<float>{1, 2, 3, 4, 0, 0, 7, 8}));
  EXPECT_EQ(values_of<int>(result(outputs, 4)), (std::vector<int>{0, 2, 3}));
  for (void* output : outputs) host.release(output);
  EXPECT_EQ(host.alive, 0);
}

TEST(Plan, TextsThatAreWrongSayWhy) {
  const struct {
    std::string text, message;
  } cases[] = {
      {"{", "the text of the program"},
      {R"({"version": 2})", "version 2"},
      {R"({"version": 1, "inputs": []})", "constants"},
      {program(R"({"op": "dance", "args": [], "out": ["y"]})", ""), "instruction 0, dance: it is not known"},
      {program(R"({"op": "t", "args": ["%y"], "out": ["z"]})", ""), "\"%y\" is read before it is written"},
      {program(R"({"op": "t", "args": ["%x"], "out": ["x"]})", ""), "\"x\" is written twice"},
      {program("", R"("%y")"), "\"%y\" is read before"},
      {program(R"({"op": "t", "args": [{"dtype": "float31"}], "out": ["y"]})", ""), "\"float31\" is not known"},
      {program(R"({"op": "t", "args": [{"wish": 1}], "out": ["y"]})", ""), "not known: {\"wish\":1}"},
      {program(R"({"op": "call", "name": "a::b", "args": ["%x"], "types": [], "out": ["y"]})", ""), "1 arguments, 0"},
      {program(R"({"op": "call", "name": "a::b", "args": ["%x"], "types": ["Scalar"], "out": ["y"]})", ""), "Scalar"},
      {program(R"({"op": "python", "name": "f", "args": [], "out": ["y"]})", ""), "no callable"},
  };
  for (const auto& c : cases) {
    std::unique_ptr<Plan> plan;
    const Status status = Plan::load(c.text, &plan);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(plan, nullptr);
    EXPECT_NE(status.message().find(c.message), std::string::npos) << status.message();
  }
}

// Arguments of other kinds than an operation wants, or too few, are errors of the run.
TEST(Plan, WrongArgumentsAreErrors) {
  for (const char* instruction :
       {R"({"op": "transpose", "args": [1, 0, 1], "out": ["y"]})",
        R"({"op": "transpose", "args": ["%x"], "out": ["y"]})",
        R"({"op": "transpose", "args": ["%x", "%x", 1], "out": ["y"]})",
        R"({"op": "size", "args": ["%x", 5], "out": ["y"]})", R"({"op": "unbind", "args": ["%x", 0], "out": ["y"]})",
        R"({"op": "cast", "args": ["%x", 3], "out": ["y"]})",
        R"({"op": "strop.linear_act", "args": ["%x", "%x", null, {"str": "sing"}], "out": ["y"]})",
        R"({"op": "strop.layer_norm", "args": ["%x", null, "%x", null, 0.1], "out": ["y"]})",
        R"({"op": "cpu.add", "args": ["%x", "%x"], "out": []})"}) {
    const auto plan = loaded(program(instruction, R"("%x")"));
    TestHost host;
    std::vector<float> x(6);
    EXPECT_FALSE(run(*plan, host, x, {2, 3}).status.ok()) << instruction;
  }
}

TEST(Plan, ScalarsConstantsAndProducts) {
  const auto plan = loaded(
      R"({"version": 1, "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}],
          "constants": [{"name": "w", "dtype": "float32", "shape": [3, 2]}],
          "scalars": [{"name": "c", "dtype": "float32", "value": -0.5}],
          "instructions": [
            {"op": "strop.linear_act", "args": ["%x", "%w", null, {"str": "relu"}, null], "out": ["h"]},
            {"op": "cpu.add", "args": ["%h", "%c"], "out": ["y"]}],
          "outputs": ["%y", "%w"]})");
  TestHost host;
  std::vector<float> x = {1, 2}, w = {1, 0, 0, 1, -1, -1};
  Constant constant;
  constant.tensor = tensor_over(w, DType::kFloat32, {3, 2});
  constant.tensor.block = kConstantBlock;
  const Value input = tensor_over(x, DType::kFloat32, {1, 2});
  std::vector<void*> outputs;
  const Status status = plan->run(host, {&constant, 1}, {&input, 1}, &outputs);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(values_of<float>(result(outputs, 0)), (std::vector<float>{0.5, 1.5, -0.5}));
  EXPECT_EQ(values_of<float>(result(outputs, 1)), w);
  EXPECT_NE(result(outputs, 1).data, w.data());  // a result is the caller's to change
  for (void* output : outputs) host.release(output);
  EXPECT_EQ(host.alive, 0);
}

// Not a bound, as machines differ: what an instruction costs beside its work.
TEST(Plan, HostTimePerInstruction) {
  const auto time = [](const std::string& instruction, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) {
      std::string one = instruction;
      one.replace(one.find("$"), 1, std::to_string(i));
      text += (i ? "," : "") + one;
    }
    const auto plan = loaded(program(text, R"("%x")"));
    TestHost host;
    std::vector<float> x(64);
    const Value input = tensor_over(x, DType::kFloat32, {8, 8});
    double best = 1e9;
    for (int round = 0; round < 200; ++round) {
      std::vector<void*> outputs;
      const auto begin = std::chrono::steady_clock::now();
      EXPECT_TRUE(plan->run(host, {}, {&input, 1}, &outputs).ok());
      best = std::min(best, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count());
      for (void* output : outputs) host.release(output);
    }
    return best;
  };
  constexpr int kCount = 200;
  for (const char* instruction :
       {R"({"op": "size", "args": ["%x", 0], "out": ["y$"]})",
        R"({"op": "transpose", "args": ["%x", 0, 1], "out": ["y$"]})",
        R"({"op": "reshape", "args": ["%x", [4, -1]], "out": ["y$"]})",
        R"({"op": "cpu.add", "args": ["%x", "%x"], "out": ["y$"]})",
        R"({"op": "strop.layer_norm", "args": ["%x", null, null, null, 0.1], "out": ["y$"]})"}) {
    const double none = time(instruction, 0), many = time(instruction, kCount);
    std::cout << instruction << ": " << (many - none) / kCount << " ns; a run without any " << none << " ns\n";
    EXPECT_GT(many, none);
  }
}

}  // namespace
}  // namespace strop::runtime
