#include "runtime/packing.h"

#include <gtest/gtest.h>

#include <vector>

#include "runtime/views.h"
#include "tests/support/plan_host.h"

namespace strop::runtime {
namespace {

using testing::tensor_over;
using testing::values_of;

// (batch, length, columns) of numbers that say where they are: 100 b + 10 l + c.
std::vector<float> numbers(std::int64_t batch, std::int64_t length, std::int64_t columns) {
  std::vector<float> values;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t l = 0; l < length; ++l)
      for (std::int64_t c = 0; c < columns; ++c) values.push_back(static_cast<float>(100 * b + 10 * l + c));
  return values;
}

Tokens tokens_of(std::vector<std::int64_t> mask, std::int64_t batch, std::int64_t length) {
  const auto found = locate(tensor_over(mask, DType::kInt64, {batch, length}), batch, length, false, false);
  EXPECT_TRUE(found.has_value());
  return found.value_or(Tokens());
}

std::vector<float> packed(const Tensor& t, const Packing& how, const Tokens& tokens, const Sizes& shape) {
  const Held rows = pack({t, nullptr}, how, tokens);
  EXPECT_EQ(rows.tensor.sizes(), shape);
  return values_of<float>(rows.tensor);
}

TEST(Packing, FindsTokens) {
  const Tokens tokens = tokens_of({1, 0, 1, 0, 0, 0, 0, 1, 1}, 3, 3);
  EXPECT_EQ(tokens.count, 4);
  EXPECT_EQ(tokens.longest, 2);
  EXPECT_EQ(values_of<std::int32_t>(tokens.cu.tensor), (std::vector<std::int32_t>{0, 2, 2, 4}));
  EXPECT_EQ(values_of<std::int32_t>(tokens.first.tensor), (std::vector<std::int32_t>{0, 2, 2}));
  EXPECT_EQ(values_of<std::int32_t>(tokens.rows.tensor), (std::vector<std::int32_t>{0, 2, 7, 8}));
  // The last sequence is empty: its first token is within bounds all the same.
  EXPECT_EQ(values_of<std::int32_t>(tokens_of({1, 1, 0, 0}, 2, 2).first.tensor), (std::vector<std::int32_t>{0, 1}));
  const Tokens whole = tokens_of({1, 1, 1, 1}, 2, 2);
  EXPECT_FALSE(whole.padded());
  EXPECT_EQ(values_of<std::int32_t>(whole.cu.tensor), (std::vector<std::int32_t>{0, 2, 4}));
}

TEST(Packing, CallsForThePaddedProgram) {
  std::vector<std::int64_t> none{0, 0}, late{0, 1}, hole{1, 0, 1};
  const auto given = [](std::vector<std::int64_t>& mask, bool first, bool whole) {
    const auto length = static_cast<std::int64_t>(mask.size());
    return locate(tensor_over(mask, DType::kInt64, {1, length}), 1, length, first, whole).has_value();
  };
  EXPECT_FALSE(given(none, false, false));
  EXPECT_TRUE(given(late, false, true));
  EXPECT_FALSE(given(late, true, false));
  EXPECT_TRUE(given(hole, true, false));
  EXPECT_FALSE(given(hole, false, true));
}

TEST(Packing, TensorsOfTokens) {
  std::vector<float> x = numbers(2, 3, 2);
  const Tensor t = tensor_over(x, DType::kFloat32, {2, 3, 2});
  const Tokens some = tokens_of({1, 1, 0, 1, 0, 1}, 2, 3), all = tokens_of({1, 1, 1, 1, 1, 1}, 2, 3);
  const std::vector<float> wanted{0, 1, 10, 11, 100, 101, 120, 121};
  EXPECT_EQ(packed(t, {false, {0, 1}, true}, some, {4, 2}), wanted);
  EXPECT_EQ(packed(t, {false, {0, 1}, true}, all, {6, 2}), x);
  // Batch and length elsewhere.
  EXPECT_EQ(packed(permute(t, {2, 1, 0}), {false, {2, 1}, true}, some, {4, 2}), wanted);
  EXPECT_EQ(packed(permute(t, {2, 1, 0}), {false, {2, 1}, true}, all, {6, 2}), x);
  EXPECT_EQ(packed(t, {true, {}, true}, some, {2, 3, 2}), x);
}

TEST(Packing, TensorsThatServeEverySequence) {
  std::vector<float> x = numbers(1, 3, 2);
  const Tensor t = tensor_over(x, DType::kFloat32, {1, 3, 2});
  const Tokens some = tokens_of({1, 1, 0, 1, 0, 1}, 2, 3), all = tokens_of({1, 1, 1, 1, 1, 1}, 2, 3);
  const std::vector<float> wanted{0, 1, 10, 11, 0, 1, 20, 21}, whole{0, 1, 10, 11, 20, 21, 0, 1, 10, 11, 20, 21};
  for (const Packing& how : {Packing{false, {0, 1}, true}, Packing{false, {0, 1}, false}}) {
    EXPECT_EQ(packed(t, how, some, {4, 2}), wanted);
    EXPECT_EQ(packed(t, how, all, {6, 2}), whole);
  }
  EXPECT_EQ(packed(select(t, 0, 0), {false, {-1, 0}, false}, some, {4, 2}), wanted);
  // A dimension of batch behind that of length.
  EXPECT_EQ(packed(transpose(t, 0, 1), {false, {1, 0}, false}, all, {6, 2}), whole);
}

TEST(Packing, OneRowThatIsRepeated) {
  std::vector<float> x{7};
  const Tensor t = expand(tensor_over(x, DType::kFloat32, {1, 1}), {3, 1});
  EXPECT_EQ(packed(t, {false, {0, 1}, true}, tokens_of({1, 1, 1}, 3, 1), {3}), (std::vector<float>{7, 7, 7}));
  EXPECT_EQ(packed(t, {false, {0, 1}, true}, tokens_of({1, 0, 1}, 3, 1), {2}), (std::vector<float>{7, 7}));
}

TEST(Packing, RowsOfSequences) {
  std::vector<float> x = numbers(2, 1, 2);
  const Tokens some = tokens_of({1, 1, 0, 1}, 2, 2);
  const Tensor t = tensor_over(x, DType::kFloat32, {2, 2});
  EXPECT_EQ(packed(transpose(t, 0, 1), {false, {1, -1}, true}, some, {2, 2}), x);
  EXPECT_EQ(values_of<float>(unpack({t, nullptr}, {1, -1}, some).tensor), (std::vector<float>{0, 100, 1, 101}));
}

TEST(Packing, BackInThePaddedLayout) {
  std::vector<float> rows{1, 2, 3, 4, 5, 6};
  const Held value{tensor_over(rows, DType::kFloat32, {3, 2}), nullptr};
  const Tokens some = tokens_of({1, 1, 0, 1}, 2, 2);
  EXPECT_EQ(values_of<float>(unpack(value, {0, 1}, some).tensor), (std::vector<float>{1, 2, 3, 4, 0, 0, 5, 6}));
  const Held turned = unpack(value, {2, 0}, some);  // (length, columns, batch)
  EXPECT_EQ(turned.tensor.sizes(), (Sizes{2, 2, 2}));
  EXPECT_EQ(values_of<float>(turned.tensor), (std::vector<float>{1, 0, 2, 0, 3, 5, 4, 6}));
  std::vector<float> column{1, 2, 3, 4};
  const Tokens all = tokens_of({1, 1, 1, 1}, 2, 2);
  const Tensor strided = transpose(tensor_over(column, DType::kFloat32, {1, 4}), 0, 1);
  EXPECT_EQ(values_of<float>(unpack({strided, nullptr}, {0, 1}, all).tensor), column);
}

}  // namespace
}  // namespace strop::runtime
