// pack_starts and pack_tokens against the oracle, on every backend.
#include "kernels/ragged/pack_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "strop/ragged.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::ragged {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

void check(const Backend& backend, Random& random, std::int64_t sequences, std::int64_t most, DType dtype,
           Layout layout) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << sequences << " of " << most
                                    << " sequences, " << dtype_name(dtype) << " " << layout_name(layout));
  Tensor cu(dtype, {sequences + 1}, layout), cu_out(DType::kInt32, {most + 1}), first_out(DType::kInt32, {most});
  std::int64_t count = 0;
  cu.fill([&](std::int64_t i) {  // with sequences of no token, also behind the last one
    if (i > 0 && random.chance(0.7)) count += random.integer(1, 9);
    return static_cast<double>(count);
  });
  Tensor expected_cu = cu_out, expected_first = first_out;
  const TensorView a = expected_cu.host(), b = expected_first.host();
  MoveTokens p;
  p.sequences = sequences, p.most = most, p.count = count;
  p.cu = integers(cu.host());
  p.cu_out = static_cast<std::int32_t*>(a.data), p.first_out = static_cast<std::int32_t*>(b.data);
  reference(p);
  const UseBackend use(backend);
  const Status status = pack_starts(cu.on(backend), count, cu_out.on(backend), first_out.on(backend));
  ASSERT_TRUE(status.ok()) << status.message();
  synchronize(backend);
  for (Tensor* tensor : {&cu, &cu_out, &first_out}) tensor->fetch();
  cu.expect_unchanged("cu");
  EXPECT_TRUE(cu_out.bytes() == expected_cu.bytes());
  EXPECT_TRUE(first_out.bytes() == expected_first.bytes());
}

TEST(PackStartsSmall, Sizes) {
  Random random(111);
  for (const Backend& backend : all_backends()) {
    for (std::int64_t sequences : {0, 1, 3, 127, 128, 300}) {
      for (std::int64_t more : {0, 1, 5, 130}) {
        for (DType dtype : {DType::kInt32, DType::kInt64}) {
          check(backend, random, sequences, sequences + more, dtype,
                random.chance(0.5) ? Layout::kContiguous : Layout::kStepped);
        }
      }
    }
  }
}

TEST(PackStartsSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    const auto message = [&](std::int64_t sequences, DType dtype, std::int64_t count, std::int64_t most,
                             std::int64_t firsts, DType out) {
      const UseBackend use(backend);
      Tensor cu(dtype, {sequences}), cu_out(out, {most}), first_out(DType::kInt32, {firsts});
      cu.fill([](std::int64_t) { return 0; });
      const Status status = pack_starts(cu.on(backend), count, cu_out.on(backend), first_out.on(backend));
      synchronize(backend);
      cu_out.fetch(), first_out.fetch();
      cu_out.expect_unchanged("cu_out"), first_out.expect_unchanged("first_out");
      return status.message();
    };
    const DType i32 = DType::kInt32;
    EXPECT_EQ(message(3, DType::kFloat32, 1, 5, 4, i32), "cu: expected int32 or int64, got float32");
    EXPECT_EQ(message(0, i32, 1, 5, 4, i32), "cu: expected shape (B + 1,), got (0,)");
    EXPECT_EQ(message(3, i32, -1, 5, 4, i32), "count: expected a number from 0 to 2^31 - 1, got -1");
    EXPECT_EQ(message(3, i32, 1, 2, 1, i32), "cu_out: expected at least cu's 3 numbers, got 2");
    EXPECT_EQ(message(3, i32, 1, 5, 3, i32), "first_out: expected shape (4,), got (3,)");
    EXPECT_EQ(message(3, i32, 1, 5, 4, DType::kInt64), "cu_out: expected int32, got int64");
  }
}

struct Input {
  Tensor x, out;
  bool repeated = false;
};

// `length` positions a sequence, some of them real; inputs of all kinds of rows, with rows of out to spare.
void check_tokens(const Backend& backend, Random& random, std::int64_t sequences, std::int64_t length, bool dense) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << sequences << " of " << length
                                    << (dense ? ", dense" : ""));
  const std::int64_t places = sequences * length, most = sequences + random.integer(0, 9);
  std::vector<std::int64_t> real;
  Tensor cu(DType::kInt32, {sequences + 1}), rows(DType::kInt32, {places});
  cu.fill([&](std::int64_t b) {
    for (std::int64_t l = 0; b > 0 && l < length; ++l) {
      if (dense || random.chance(0.6)) real.push_back((b - 1) * length + l);
    }
    return static_cast<double>(real.size());
  });
  rows.fill([&](std::int64_t t) {
    return t < static_cast<std::int64_t>(real.size()) ? static_cast<double>(real[static_cast<std::size_t>(t)]) : -7;
  });
  const auto count = static_cast<std::int64_t>(real.size());
  std::vector<Input> inputs;
  for (int k = static_cast<int>(random.integer(1, kMostParts)); k > 0; --k) {
    constexpr DType kDtypes[] = {DType::kInt64, DType::kInt32, DType::kFloat16, DType::kBool, DType::kFloat32};
    const DType dtype = random.pick(kDtypes);
    const bool repeated = random.chance(0.3);
    constexpr std::int64_t kWidths[] = {3, 8, 64};
    const std::int64_t n = random.chance(0.5) ? 1 : random.pick(kWidths), x_rows = repeated ? length : places;
    inputs.push_back({Tensor(dtype, {x_rows, n}, random.chance(0.5) ? Layout::kContiguous : Layout::kSliced),
                      Tensor(dtype, {count + random.integer(0, 5), n}), repeated});
    inputs.back().x.fill(
        [&](std::int64_t) { return dtype == DType::kBool ? 1 : static_cast<double>(random.integer(1, 127)); });
  }
  Tensor cu_out(DType::kInt32, {most + 1}), first_out(DType::kInt32, {most});
  // What is expected is said without the oracle's own loops: the numbers are in `real`.
  const UseBackend use(backend);
  std::vector<TokenRows> given;
  for (Input& in : inputs)
    given.push_back(
        {in.x.on(backend), in.out.on(backend), in.repeated ? TokenRows::Kind::kRepeated : TokenRows::Kind::kTokens});
  const Status status = pack_tokens(given, dense && random.chance(0.5) ? TensorView{} : rows.on(backend),
                                    cu.on(backend), count, cu_out.on(backend), first_out.on(backend));
  ASSERT_TRUE(status.ok()) << status.message();
  synchronize(backend);
  for (Tensor* tensor : {&cu, &rows, &cu_out, &first_out}) tensor->fetch();
  for (std::int64_t i = 0; i <= most; ++i)
    EXPECT_EQ(cu_out.get(i), i <= sequences ? cu.get(i) : static_cast<double>(count));
  for (std::int64_t i = 0; i < most; ++i)
    EXPECT_EQ(first_out.get(i), i < sequences ? std::min(cu.get(i), static_cast<double>(count - 1)) : 0.0);
  for (Input& in : inputs) {
    in.x.fetch(), in.out.fetch();
    in.x.expect_unchanged("x");
    const std::int64_t n = in.x.shape()[1];
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t place = real[static_cast<std::size_t>(t)], row = in.repeated ? place % length : place;
      for (std::int64_t j = 0; j < n; ++j) ASSERT_EQ(in.out.get(t * n + j), in.x.get(row * n + j)) << t << ", " << j;
    }
  }
}

TEST(PackTokensSmall, Inputs) {
  Random random(112);
  for (const Backend& backend : all_backends()) {
    for (bool dense : {false, true}) {
      for (int repetition = 0; repetition < 6; ++repetition)
        check_tokens(backend, random, random.integer(1, 9), random.integer(1, 40), dense);
    }
  }
}

// Places that padding has, results of sequences, and a packed batch without padding.
TEST(PackTokensSmall, Results) {
  Random random(114);
  for (const Backend& backend : all_backends()) {
    for (bool dense : {false, true}) {
      const std::int64_t places = 37, sequences = 5, n = 12, wide = 64;
      Tensor where(DType::kInt32, {places}), tokens(DType::kFloat16, {places + 3, n}),
          firsts(DType::kFloat32, {8, wide});
      where.fill([&](std::int64_t i) { return i % 3 == 0 ? -1.0 : static_cast<double>(i / 2); });
      for (Tensor* x : {&tokens, &firsts})
        x->fill([&](std::int64_t) { return static_cast<double>(random.integer(1, 127)); });
      Tensor out(DType::kFloat16, {places, n}), pooled(DType::kFloat32, {sequences, wide});
      const UseBackend use(backend);
      const TokenRows results[] = {{tokens.on(backend), out.on(backend)},
                                   {firsts.on(backend), pooled.on(backend), TokenRows::Kind::kPlain}};
      const Status status = unpack_tokens(results, dense ? TensorView{} : where.on(backend));
      ASSERT_TRUE(status.ok()) << backend << ": " << status.message();
      synchronize(backend);
      for (Tensor* tensor : {&tokens, &firsts, &out, &pooled}) tensor->fetch();
      tokens.expect_unchanged("tokens"), firsts.expect_unchanged("firsts");
      for (std::int64_t i = 0; i < places * n; ++i) {
        const std::int64_t place = i / n, row = dense ? place : place % 3 == 0 ? -1 : place / 2;
        ASSERT_EQ(out.get(i), row < 0 ? 0.0 : tokens.get(row * n + i % n)) << backend << " " << i;
      }
      for (std::int64_t i = 0; i < sequences * wide; ++i)
        ASSERT_EQ(pooled.get(i), firsts.get(i)) << backend << " " << i;
    }
  }
}

TEST(PackTokensSmall, BadResults) {
  for (const Backend& backend : device_backends()) {
    const auto message = [&](std::int64_t rows, std::int64_t places, bool numbered, TokenRows::Kind kind) {
      const UseBackend use(backend);
      Tensor where(DType::kInt32, {4}), x(DType::kInt32, {rows, 2}), out(DType::kInt32, {places, 2});
      where.fill([](std::int64_t i) { return static_cast<double>(i); });
      const TokenRows result = {x.on(backend), out.on(backend), kind};
      const Status status = unpack_tokens({&result, 1}, numbered ? where.on(backend) : TensorView{});
      synchronize(backend);
      out.fetch();
      out.expect_unchanged("out");
      return status.message();
    };
    using Kind = TokenRows::Kind;
    EXPECT_EQ(message(4, 5, true, Kind::kTokens), "out: expected a row for each of where's 4 places, got (5, 2)");
    EXPECT_EQ(message(4, 5, false, Kind::kTokens), "x: expected a row for each of 5 tokens, got (4, 2)");
    EXPECT_EQ(message(4, 5, true, Kind::kPlain), "x: expected a row for each of 5 of out, got (4, 2)");
    EXPECT_EQ(message(4, 4, true, Kind::kRepeated),
              "results: expected rows of tokens or plain ones, got repeated ones");
  }
}

// More than a grid takes at once.
TEST(PackTokens, ManyTokens) {
  Random random(113);
  for (const Backend& backend : device_backends()) check_tokens(backend, random, sized(150, 20), 500, false);
}

TEST(PackTokensSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    const auto message = [&](std::int64_t x_rows, DType x_dtype, std::int64_t out_rows, std::int64_t n, DType out_dtype,
                             DType rows_dtype, bool numbered, std::size_t inputs) {
      const UseBackend use(backend);
      Tensor cu(DType::kInt32, {2}), cu_out(DType::kInt32, {2}), first_out(DType::kInt32, {1});
      Tensor x(x_dtype, {x_rows, 2}), out(out_dtype, {out_rows, n}), rows(rows_dtype, {4});
      cu.fill([](std::int64_t i) { return 3.0 * static_cast<double>(i); });
      rows.fill([](std::int64_t i) { return static_cast<double>(i); });
      const std::vector<TokenRows> given(inputs, TokenRows{x.on(backend), out.on(backend)});
      const Status status = pack_tokens(given, numbered ? rows.on(backend) : TensorView{}, cu.on(backend), 3,
                                        cu_out.on(backend), first_out.on(backend));
      synchronize(backend);
      cu_out.fetch(), out.fetch();
      cu_out.expect_unchanged("cu_out"), out.expect_unchanged("out");
      return status.message();
    };
    const DType i32 = DType::kInt32, i64 = DType::kInt64;
    EXPECT_EQ(message(4, i32, 2, 2, i32, i32, true, 1), "out: expected at least shape (3, 2), got (2, 2)");
    EXPECT_EQ(message(4, i32, 3, 3, i32, i32, true, 1), "out: expected at least shape (3, 2), got (3, 3)");
    EXPECT_EQ(message(4, i32, 3, 2, i64, i32, true, 1), "out: expected int32 like x, got int64");
    EXPECT_EQ(message(4, i32, 3, 2, i32, i64, true, 1), "rows: expected int32, got int64");
    EXPECT_EQ(message(2, i32, 3, 2, i32, i32, false, 1), "x: expected a row for each of 3 tokens, got (2, 2)");
    EXPECT_EQ(message(4, i32, 3, 2, i32, i32, true, 9), "inputs: expected at most 8, got 9");
  }
}

// On CUDA, where numbers cannot be looked at without waiting, such rows are zeros.
TEST(PackTokensSmall, RowsThatAreNotThere) {
  for (const Backend& backend : device_backends()) {
    const UseBackend use(backend);
    Tensor cu(DType::kInt32, {2}), cu_out(DType::kInt32, {2}), first_out(DType::kInt32, {1});
    Tensor x(DType::kInt64, {2, 1}), out(DType::kInt64, {3, 1}), rows(DType::kInt32, {3});
    cu.fill([](std::int64_t i) { return 3.0 * static_cast<double>(i); });
    x.fill([](std::int64_t i) { return static_cast<double>(i + 5); });
    rows.fill([](std::int64_t i) { return static_cast<double>(i); });
    const TokenRows input = {x.on(backend), out.on(backend)};
    const Status status =
        pack_tokens({&input, 1}, rows.on(backend), cu.on(backend), 3, cu_out.on(backend), first_out.on(backend));
    synchronize(backend);
    out.fetch();
    if (backend.device == DeviceType::kCpu) {
      EXPECT_EQ(status.message(), "rows: expected numbers of rows of x, below 2, got 2 at 2");
      out.expect_unchanged("out");
    } else {
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_EQ(out.get(1), 6);
      EXPECT_EQ(out.get(2), 0);
    }
  }
}

}  // namespace
}  // namespace strop::ragged
