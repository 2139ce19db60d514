// gather_rows and scatter_rows against the oracle, on every backend. Suites whose name contains Small use small shapes
// only, so that they also run under slow tools (compute-sanitizer).
#include "kernels/ragged/take_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "strop/ragged.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::ragged {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

struct Case {
  std::int64_t x_rows = 1, rows = 1, n = 1;
  DType dtype = DType::kFloat32, index_dtype = DType::kInt32;
  Layout x_layout{}, index_layout{}, out_layout{};
  bool scatter = false, repeated = false;

  std::string text() const {
    std::ostringstream out;
    out << (scatter    ? "scatter "
            : repeated ? "gather repeated "
                       : "gather ")
        << rows << " of " << x_rows << " rows of " << n << " " << dtype_name(dtype) << " " << layout_name(x_layout)
        << ", numbers " << dtype_name(index_dtype) << " " << layout_name(index_layout) << ", out "
        << layout_name(out_layout);
    return out.str();
  }
};

struct Data {
  Tensor x, index, out;

  Data(const Case& c, Random& random)
      : x(c.dtype, {c.x_rows, c.n}, c.x_layout),
        index(c.index_dtype, {c.rows}, c.index_layout),
        out(c.dtype, {c.rows, c.n}, c.out_layout) {
    // Not 0, which is what missing rows give.
    x.fill([&](std::int64_t) { return c.dtype == DType::kBool ? 1 : static_cast<double>(random.integer(1, 127)); });
    index.fill([&](std::int64_t) {
      const bool none = c.x_rows == 0 || (c.scatter && random.chance(0.3));
      return static_cast<double>(none ? -random.integer(1, 5)
                                      : random.integer(0, (c.repeated ? 40 : 1) * c.x_rows - 1));
    });
  }

  Status run(const Case& c, const Backend& backend) {
    const TensorView from = x.on(backend), numbers = index.on(backend), to = out.on(backend);
    const Status status = c.scatter    ? scatter_rows(from, numbers, to)
                          : c.repeated ? gather_repeated_rows(from, numbers, to)
                                       : gather_rows(from, numbers, to);
    synchronize(backend);
    for (Tensor* tensor : {&x, &index, &out}) tensor->fetch();
    return status;
  }
};

// Bits are copied: the oracle's memory and the result's are the same, guards included.
void check(const Case& c, const Backend& backend, Data data) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  Data expected = data, again = data;
  const TensorView x = expected.x.host(), index = expected.index.host(), out = expected.out.host();
  TakeRows p;
  p.rows = c.rows, p.n = c.n, p.x_rows = c.x_rows;
  p.bytes = dtype_size(c.dtype);
  p.x = {x.data, x.strides[0], x.strides[1]}, p.out = {out.data, out.strides[0], out.strides[1]};
  p.index = integers(index), p.repeated = c.repeated;
  reference(p);
  const UseBackend use(backend);
  const Status status = data.run(c, backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.x.expect_unchanged("x"), data.index.expect_unchanged("the numbers");
  data.out.expect_only_elements_changed("out");
  int failures = 0;
  for (std::int64_t i = 0; i < c.rows * c.n && failures < 5; ++i) {
    if (data.out.get(i) == expected.out.get(i)) continue;
    ADD_FAILURE() << "out (" << i / c.n << ", " << i % c.n << ") is " << data.out.get(i) << ", expected "
                  << expected.out.get(i) << ", row " << data.index.get(i / c.n);
    ++failures;
  }
  EXPECT_TRUE(data.out.bytes() == expected.out.bytes());
  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.out.bytes() == again.out.bytes()) << "another result the second time";
}
void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

constexpr DType kAll[] = {DType::kFloat16, DType::kInt64, DType::kFloat32, DType::kBool, DType::kBFloat16,
                          DType::kFloat64, DType::kInt8,  DType::kInt16,   DType::kInt32};

TEST(TakeRowsSmall, Shapes) {
  struct Shape {
    std::int64_t x_rows, rows, n;
  };
  constexpr Shape kShapes[] = {
      {1, 1, 1},    {300, 1500, 1},  // ids: single elements, more than a block's rows
      {5, 7, 3},    {9, 4, 33},      // rows that start anywhere
      {12, 20, 64}, {6, 5, 768},     // whole vectors; an encoder's hidden size
      {2, 3, 4100},                  // more than a block has in flight
      {4, 0, 8},                     // nothing wanted
  };
  Random random(101);
  for (const Backend& backend : all_backends()) {
    for (const Shape& shape : kShapes) {
      for (bool scatter : {false, true}) {
        for (DType dtype : {DType::kFloat16, DType::kInt64, random.pick(kAll)}) {
          Case c;
          c.x_rows = shape.x_rows, c.rows = shape.rows, c.n = shape.n;
          c.dtype = dtype, c.scatter = scatter, c.repeated = !scatter && random.chance(0.5);
          c.index_dtype = random.chance(0.5) ? DType::kInt32 : DType::kInt64;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(TakeRowsSmall, DtypesAndLayouts) {
  Random random(102);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kAll) {
      for (std::int64_t n : {1, 12, 16}) {
        for (Layout layout : kLayouts) {
          Case c;
          c.x_rows = 6, c.rows = 9, c.n = n;
          c.dtype = dtype, c.scatter = random.chance(0.5);
          c.x_layout = layout, c.out_layout = random.pick(kWritableLayouts);
          c.index_layout = random.pick(kLayouts);
          if (c.index_layout == Layout::kTransposed) c.index_layout = Layout::kContiguous;  // of one dimension
          check(c, backend, random);
        }
      }
    }
  }
}

// Columns of wider tensors: the first row starts at a multiple of 16 bytes, the others do not.
TEST(TakeRowsSmall, RowsThatStartAnywhere) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kInt64, DType::kInt8}) {
      for (bool wide_out : {false, true}) {
        Random random(109);
        const std::int64_t rows = 5, n = 16, width = 19;
        Tensor x(dtype, {rows, wide_out ? n : width}), out(dtype, {rows, wide_out ? width : n});
        Tensor index(DType::kInt32, {rows});
        x.fill([&](std::int64_t) { return static_cast<double>(random.integer(1, 127)); });
        index.fill([&](std::int64_t i) { return static_cast<double>(rows - 1 - i); });
        const UseBackend use(backend);
        TensorView from = x.on(backend), to = out.on(backend);
        from.shape[1] = to.shape[1] = n;
        const Status status = gather_rows(from, index.on(backend), to);
        ASSERT_TRUE(status.ok()) << status.message();
        synchronize(backend);
        out.fetch();
        for (std::int64_t i = 0; i < rows * n; ++i) {
          const std::int64_t row = i / n, j = i % n;
          ASSERT_EQ(out.get(row * out.shape()[1] + j), x.get((rows - 1 - row) * x.shape()[1] + j))
              << backend << " " << dtype_name(dtype) << " (" << row << ", " << j << ")";
        }
      }
    }
  }
}

// Nothing to take from: scattered rows are all zeros.
TEST(TakeRowsSmall, NothingPacked) {
  Random random(103);
  for (const Backend& backend : all_backends()) {
    Case c;
    c.x_rows = 0, c.rows = 5, c.n = 24, c.scatter = true;
    check(c, backend, random);
  }
}

TEST(TakeRows, Drawn) {
  Random random(104);
  for (const Backend& backend : device_backends()) {
    for (int repetition = 0; repetition < sized(300, 40); ++repetition) {
      Case c;
      c.n = random.log_integer(1, sized(3000, 600));
      if (random.chance(0.5)) c.n = (c.n + 15) / 16 * 16;
      c.x_rows = random.log_integer(1, std::max<std::int64_t>(1, sized(200000, 4000) / c.n));
      c.rows = random.log_integer(1, std::max<std::int64_t>(1, sized(200000, 4000) / c.n));
      c.dtype = random.pick(kAll), c.scatter = random.chance(0.5);
      c.repeated = !c.scatter && random.chance(0.3);
      c.repeated = !c.scatter && random.chance(0.3);
      c.index_dtype = random.chance(0.5) ? DType::kInt32 : DType::kInt64;
      c.x_layout = random.pick(kLayouts), c.out_layout = random.pick(kWritableLayouts);
      check(c, backend, random);
    }
  }
}

// More rows than a grid takes at once.
TEST(TakeRows, ManyRows) {
  Random random(105);
  for (const Backend& backend : device_backends()) {
    Case c;
    c.x_rows = 100, c.rows = sized<std::int64_t>(13000, 400), c.n = 1023;  // single bytes: a row a block
    c.dtype = DType::kInt8;
    check(c, backend, random);
  }
}

// What is packed by rows and spread by where is the padded tensor again, zeros in the padding.
TEST(TakeRowsSmall, ThereAndBack) {
  Random random(106);
  for (const Backend& backend : all_backends()) {
    const std::int64_t sequences = 5, length = 13, n = 40, positions = sequences * length;
    Tensor mask(DType::kInt64, {sequences, length}), x(DType::kBFloat16, {positions, n});
    mask.fill([&](std::int64_t) { return random.chance(0.6); });
    x.fill([&](std::int64_t) { return random.normal(); });
    Tensor cu(DType::kInt32, {sequences + 1}), rows(DType::kInt32, {positions}), where = rows;
    Tensor summary(DType::kInt64, {4}), packed(DType::kBFloat16, {positions, n}), back = packed;
    const UseBackend use(backend);
    const TensorView rows_view = rows.on(backend), where_view = where.on(backend), packed_view = packed.on(backend);
    ASSERT_TRUE(token_index(mask.on(backend), cu.on(backend), rows_view, where_view, summary.on(backend)).ok());
    ASSERT_TRUE(gather_rows(x.on(backend), rows_view, packed_view).ok());
    ASSERT_TRUE(scatter_rows(packed_view, where_view, back.on(backend)).ok());
    synchronize(backend);
    back.fetch();
    for (std::int64_t i = 0; i < positions * n; ++i)
      ASSERT_EQ(back.get(i), mask.get(i / n) != 0 ? x.get(i) : 0) << backend << " " << i;
  }
}

// A row that x does not have: an error on the CPU, and nothing is written; zeros on CUDA, and no memory is read for it.
TEST(TakeRowsSmall, NumbersOutside) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : {DType::kInt32, DType::kInt64}) {
      for (bool scatter : {false, true}) {
        for (std::int64_t number : {-1, 6, 1 << 30}) {
          if (scatter && number < 0) continue;
          Random random(107);
          Case c;
          c.x_rows = 6, c.rows = 4, c.n = 24, c.scatter = scatter;
          c.index_dtype = dtype;
          Data data(c, random);
          data.index.set(2, static_cast<double>(number));
          if (backend.cuda()) {
            check(c, backend, data);
            continue;
          }
          const UseBackend use(backend);
          const Status status = data.run(c, backend);
          EXPECT_EQ(status.code(), StatusCode::kValueError);
          EXPECT_EQ(status.message(),
                    std::string(scatter ? "where: expected numbers below 6" : "rows: expected numbers from 0 to 5") +
                        ", the rows of x, got " + std::to_string(number) + " at 2");
          data.out.expect_unchanged("out");
        }
      }
    }
  }
}

struct Mistake {
  std::function<void(TensorView&, TensorView&, TensorView&)> make;  // x, the numbers, out
  StatusCode code;
  std::string message;  // a part of it; # stands for the numbers' name
};

const Mistake kMistakes[] = {
    {[](auto& x, auto&, auto&) { x = {}; }, StatusCode::kValueError, "x: expected 2 dimensions (rows, n), got none"},
    {[](auto& x, auto&, auto&) { x.dtype = DType::kOther; }, StatusCode::kTypeError, "x: expected a dtype of 1, 2, 4"},
    {[](auto& x, auto&, auto&) { x.shape[1] = 0; }, StatusCode::kValueError, "x: expected rows of at least 1 element"},
    {[](auto& x, auto&, auto&) { x.device = DeviceType::kOther; }, StatusCode::kValueError,
     "x: expected a CPU or CUDA"},
    {[](auto& x, auto&, auto&) { x.data = nullptr; }, StatusCode::kValueError, "x: expected a tensor, got none"},
    {[](auto&, auto& i, auto&) { i.dtype = DType::kFloat32; }, StatusCode::kTypeError,
     "#: expected int32 or int64, got float32"},
    {[](auto&, auto& i, auto&) { i.rank = 2; }, StatusCode::kValueError, "#: expected 1 dimension, got shape"},
    {[](auto&, auto& i, auto&) { i.device = DeviceType::kOther; }, StatusCode::kValueError, "#: expected "},
    {[](auto&, auto&, auto& out) { out.dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "out: expected float32 like x, got float16"},
    {[](auto&, auto&, auto& out) { out.shape[0] = 3; }, StatusCode::kValueError,
     "out: expected shape (4, 8) of # and x's rows, got (3, 8)"},
    {[](auto&, auto&, auto& out) { out.strides[0] = 4; }, StatusCode::kValueError,
     "out: expected elements that share no memory"},
    {[](auto& x, auto&, auto& out) { out.data = x.data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with x"},
    {[](auto&, auto& i, auto& out) { out.data = i.data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with #"},
};

TEST(TakeRowsSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      for (bool scatter : {false, true}) {
        const UseBackend use(backend);
        Random random(108);
        Case c;
        c.x_rows = 6, c.rows = 4, c.n = 8, c.scatter = scatter;
        Data data(c, random);
        TensorView x = data.x.on(backend), index = data.index.on(backend), out = data.out.on(backend);
        mistake.make(x, index, out);
        const Status status = scatter ? scatter_rows(x, index, out) : gather_rows(x, index, out);
        std::string message = mistake.message;
        if (const auto at = message.find('#'); at != std::string::npos)
          message.replace(at, 1, scatter ? "where" : "rows");
        expect_refused(status, mistake.code, message, backend, {&data.out});
      }
    }
  }
}

}  // namespace
}  // namespace strop::ragged
