#include "runtime/views.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

#include "runtime/pointwise.h"
#include "tests/support/plan_host.h"

namespace strop::runtime {
namespace {

using testing::tensor_over;
using testing::values_of;

std::vector<int> counted(int n) {
  std::vector<int> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

TEST(Views, TransposePermuteSelect) {
  std::vector<int> memory = counted(24);
  const Tensor t = tensor_over(memory, DType::kInt32, {2, 3, 4});
  EXPECT_EQ(values_of<int>(select(transpose(t, 1, -1), 1, -1)), (std::vector<int>{3, 7, 11, 15, 19, 23}));
  EXPECT_EQ(permute(t, {2, 0, 1}).sizes(), (Sizes{4, 2, 3}));
  EXPECT_EQ(values_of<int>(permute(t, {-1, 0, 1})), values_of<int>(transpose(transpose(t, 1, 2), 0, 1)));
  EXPECT_THROW(permute(t, {0, 0, 1}), Error);
  EXPECT_THROW(permute(t, {0, 1}), Error);
  EXPECT_THROW(transpose(t, 0, 3), Error);
  EXPECT_THROW(select(t, 0, 2), Error);
}

TEST(Views, SlicesAreCutAsInPython) {
  std::vector<int> memory = counted(7);
  const Tensor t = tensor_over(memory, DType::kInt32, {7});
  const auto all = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(values_of<int>(slice(t, 0, 2, 5, 1)), (std::vector<int>{2, 3, 4}));
  EXPECT_EQ(values_of<int>(slice(t, 0, -3, all, 1)), (std::vector<int>{4, 5, 6}));
  EXPECT_EQ(values_of<int>(slice(t, 0, 1, all, 3)), (std::vector<int>{1, 4}));
  EXPECT_EQ(values_of<int>(slice(t, 0, 5, 2, 1)), (std::vector<int>{}));
  EXPECT_EQ(values_of<int>(slice(t, 0, -100, 100, 1)), counted(7));
  EXPECT_THROW(slice(t, 0, 0, 3, 0), Error);
}

TEST(Views, ExpandAndSqueeze) {
  std::vector<int> memory = counted(3);
  const Tensor t = tensor_over(memory, DType::kInt32, {3, 1});
  const Tensor wide = expand(t, {2, -1, 2});
  EXPECT_EQ(values_of<int>(wide), (std::vector<int>{0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2}));
  EXPECT_THROW(expand(t, {2, 2}), Error);
  EXPECT_THROW(expand(t, {3}), Error);
  EXPECT_THROW(expand(t, {-1, 3, 1}), Error);
  EXPECT_EQ(squeeze(unsqueeze(t, 0)).sizes(), (Sizes{3}));
  EXPECT_EQ(squeeze(unsqueeze(t, 0), {0}).sizes(), (Sizes{3, 1}));
  EXPECT_EQ(squeeze(t, {0}).sizes(), (Sizes{3, 1}));
  EXPECT_EQ(unsqueeze(t, -1).sizes(), (Sizes{3, 1, 1}));
}

TEST(Views, ResolvesOneOpenSize) {
  EXPECT_EQ(resolved({2, -1, 4}, 24), (Sizes{2, 3, 4}));
  EXPECT_EQ(resolved({0, 4}, 0), (Sizes{0, 4}));
  EXPECT_THROW(resolved({2, -1, 5}, 24), Error);
  EXPECT_THROW(resolved({2, 3}, 24), Error);
  EXPECT_THROW(resolved({-1, -1}, 4), Error);
  EXPECT_THROW(resolved({0, -1}, 0), Error);
}

// Random chains of views, then a reshape: as a view where there is one, else by a copy; both have the elements in
// order.
TEST(Views, ReshapesKeepTheOrder) {
  std::mt19937 random(20);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const std::vector<Sizes> shapes = {{24}, {4, 6}, {2, 3, 4}, {1, 24}, {2, 12, 1}, {2, 2, 2, 3}, {3, 2, 1, 4}};
  int views = 0, copies = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<int> memory = counted(200);
    Tensor t = tensor_over(memory, DType::kInt32, shapes[static_cast<std::size_t>(below(7))]);
    for (int step = below(4); step > 0; --step) {
      switch (below(4)) {
        case 0:
          t = transpose(t, below(t.rank), below(t.rank));
          break;
        case 1:
          t = t.rank < 6 ? unsqueeze(t, below(t.rank + 1)) : t;
          break;
        case 2:
          t = t.numel() < 100 && t.rank < 6 ? expand(unsqueeze(t, 0),
                                                     [&] {
                                                       Sizes s = t.sizes(), r{2};
                                                       for (int d = 0; d < s.count; ++d) r.push(s[d]);
                                                       return r;
                                                     }())
                                            : t;
          break;
        default:
          t = t.shape[0] > 1 ? slice(t, 0, 1, t.shape[0], 1) : t;
      }
    }
    const std::vector<int> wanted = values_of<int>(t);
    Sizes to;
    for (std::int64_t rest = t.numel(); to.count < 5 && rest > 1;) {
      const std::int64_t factor = rest % 2 == 0 && below(2) ? 2 : rest % 3 == 0 ? 3 : rest;
      to.push(to.count == 4 ? rest : factor);
      rest /= factor;
    }
    if (t.numel() == 1) to = {1};
    Tensor view;
    if (reshaped(t, to, view)) {
      ++views;
      ASSERT_EQ(view.sizes(), to);
      ASSERT_EQ(values_of<int>(view), wanted);
    } else {
      ++copies;
      ASSERT_FALSE(t.contiguous());
    }
    std::vector<int> copied(wanted.size(), -1);
    Tensor c = tensor_over(copied, DType::kInt32, t.sizes());
    ASSERT_TRUE(copy_on_cpu(c, t));
    ASSERT_EQ(copied, wanted);
    for (int kept = 0; kept <= std::min(t.rank, 2); ++kept) {
      if (!flattened(t, kept, view)) continue;
      ASSERT_EQ(view.rank, kept + 1);
      ASSERT_EQ(values_of<int>(view), wanted);
    }
  }
  EXPECT_GT(views, 300);
  EXPECT_GT(copies, 300);
}

TEST(Pointwise, BroadcastsAndWraps) {
  std::vector<int> a = {1, 2, 3}, b = {10, 20}, out(6);
  const Tensor x = tensor_over(a, DType::kInt32, {1, 3}), y = tensor_over(b, DType::kInt32, {2, 1});
  Tensor o = tensor_over(out, DType::kInt32, broadcast(x.sizes(), y.sizes()));
  ASSERT_TRUE(pointwise_on_cpu(Pointwise::kAdd, x, y, o));
  EXPECT_EQ(out, (std::vector<int>{11, 12, 13, 21, 22, 23}));
  ASSERT_TRUE(pointwise_on_cpu(Pointwise::kSub, y, x, o));
  EXPECT_EQ(out, (std::vector<int>{9, 8, 7, 19, 18, 17}));
  a[0] = std::numeric_limits<int>::max();
  ASSERT_TRUE(pointwise_on_cpu(Pointwise::kMul, x, y, o));
  EXPECT_EQ(out[0], -10);
  EXPECT_THROW(broadcast({2, 3}, {4}), Error);
  o.dtype = DType::kFloat16;
  EXPECT_FALSE(pointwise_on_cpu(Pointwise::kAdd, o, o, o));
}

TEST(Pointwise, CastsAndLongRuns) {
  std::vector<std::int64_t> from(100000);
  std::iota(from.begin(), from.end(), -3);
  std::vector<float> to(from.size());
  const Sizes shape{static_cast<std::int64_t>(from.size())};
  ASSERT_TRUE(copy_on_cpu(tensor_over(to, DType::kFloat32, shape), tensor_over(from, DType::kInt64, shape)));
  for (std::size_t i = 0; i < to.size(); ++i) ASSERT_EQ(to[i], static_cast<float>(from[i]));
  std::vector<unsigned char> bits(from.size());
  ASSERT_TRUE(copy_on_cpu(tensor_over(bits, DType::kBool, shape), tensor_over(from, DType::kInt64, shape)));
  for (std::size_t i = 0; i < to.size(); ++i) ASSERT_EQ(bits[i], from[i] != 0);
}

}  // namespace
}  // namespace strop::runtime
