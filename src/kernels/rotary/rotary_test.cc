// Rotary embeddings against the oracle, on every backend. Suites whose name contains Small use small shapes only, so
// that they also run under slow tools (compute-sanitizer).
#include "kernels/rotary/rotary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "strop/rotary.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::rotary {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kUnit = 0x1p-24;

struct Case {
  std::int64_t tokens = 1, heads = 1, d = 2, r = 2, rows = 17;
  bool neighbours = false, shared_columns = false, positions = true, in_place = false;
  DType dtype = DType::kFloat32, table_dtype = DType::kFloat32, position_dtype = DType::kInt64;
  Layout x_layout{}, table_layout{}, position_layout{}, out_layout{};
  std::int64_t parts = 1;  // without positions: how often the rows begin anew

  std::int64_t table_rows() const { return positions ? rows : tokens / parts; }

  std::string text() const {
    std::ostringstream out;
    out << "(" << tokens << ", " << heads << ", " << d << ") of which " << r << ", " << dtype_name(dtype) << " "
        << layout_name(x_layout) << ", " << (neighbours ? "neighbours" : "halves") << ", tables "
        << dtype_name(table_dtype) << " " << layout_name(table_layout) << (shared_columns ? " of half" : "")
        << ", positions " << positions << ", parts " << parts << " " << dtype_name(position_dtype) << " "
        << layout_name(position_layout) << ", out " << (in_place ? "x" : layout_name(out_layout));
    return out.str();
  }
};

struct Data {
  Tensor x, cos, sin, positions, out;

  Data(const Case& c, Random& random)
      : x(c.dtype, {c.tokens, c.heads, c.d}, c.x_layout),
        cos(c.table_dtype, {c.table_rows(), c.shared_columns ? c.r / 2 : c.r}, c.table_layout),
        sin(c.table_dtype, {c.table_rows(), c.shared_columns ? c.r / 2 : c.r}, c.table_layout),
        positions(c.position_dtype, {c.tokens}, c.position_layout),
        out(c.dtype, {c.tokens, c.heads, c.d}, c.out_layout) {
    x.fill([&](std::int64_t) { return random.normal(); });
    // Not of one angle: each column counts for itself.
    cos.fill([&](std::int64_t) { return std::cos(random.normal()); });
    sin.fill([&](std::int64_t) { return std::sin(random.normal()); });
    positions.fill([&](std::int64_t) { return static_cast<double>(random.integer(0, c.rows - 1)); });
  }

  Tensor& result(const Case& c) { return c.in_place ? x : out; }

  Problem problem(const Case& c) {
    const TensorView v = x.host(), cos_view = cos.host(), sin_view = sin.host(), at = positions.host();
    Problem p;
    p.tokens = c.tokens, p.heads = c.heads, p.d = c.d, p.r = c.r;
    p.neighbours = c.neighbours, p.shared_columns = c.shared_columns;
    p.dtype = c.dtype;
    p.x = {v.data, v.strides[0], v.strides[1], v.strides[2]};
    p.cos = {cos_view.data, cos_view.strides[0], cos_view.strides[1], cos_view.dtype};
    p.sin = {sin_view.data, sin_view.strides[0], sin_view.strides[1], sin_view.dtype};
    p.rows = c.table_rows();
    if (c.positions) p.positions = integers(at);
    return p;
  }

  RotaryInputs inputs(const Case& c, const Backend& backend) {
    RotaryInputs in;
    in.x = x.on(backend), in.cos = cos.on(backend), in.sin = sin.on(backend);
    if (c.positions) in.positions = positions.on(backend);
    in.rotary_dim = c.shared_columns ? c.r : 0;
    in.pairs = c.neighbours ? RotaryPairs::kNeighbours : RotaryPairs::kHalves;
    return in;
  }

  Status run(const Case& c, const Backend& backend) {
    const RotaryInputs in = inputs(c, backend);
    const Status status = rotary_embedding(in, c.in_place ? in.x : out.on(backend));
    synchronize(backend);
    result(c).fetch();
    return status;
  }
};

// a c is rounded, then the sum with b s, at most |a c| + |b s|: two units of those; then the one to the dtype. What is
// not turned is copied, bit by bit.
void check(const Case& c, const Backend& backend, Data data) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  std::vector<double> expected(static_cast<std::size_t>(c.tokens * c.heads * c.d));
  const Problem p = data.problem(c);
  reference(p, expected.data());
  Data before = data;
  const UseBackend use(backend);
  const Status status = data.run(c, backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.result(c).expect_only_elements_changed("out");
  if (!c.in_place) data.x.expect_unchanged("x");
  for (Tensor* input : {&data.cos, &data.sin}) input->expect_unchanged("a table");
  if (c.positions) data.positions.expect_unchanged("positions");
  int failures = 0;
  for (std::int64_t i = 0; i < c.tokens * c.heads * c.d && failures < 5; ++i) {
    const double got = data.result(c).get(i), want = expected[static_cast<std::size_t>(i)];
    const std::int64_t of_head = i % c.d, start = i - of_head;
    double tolerance = 0;
    if (of_head < c.r) {
      const std::int64_t half = c.r / 2, partner = c.neighbours     ? of_head ^ 1
                                                   : of_head < half ? of_head + half
                                                                    : of_head - half;
      const double size = std::abs(before.x.get(i)) + std::abs(before.x.get(start + partner));
      tolerance =
          2 * kUnit * size + unit_roundoff(c.dtype) * (std::abs(want) + 2 * kUnit * size) + subnormal_roundoff(c.dtype);
    }
    if (std::isnan(want) ? std::isnan(got) : std::abs(got - want) <= tolerance) continue;
    ADD_FAILURE() << "out (" << i / (c.heads * c.d) << ", " << i / c.d % c.heads << ", " << of_head << ") is " << got
                  << ", expected " << want << " +- " << tolerance;
    ++failures;
  }
  Data again = before;
  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.result(c).bytes() == again.result(c).bytes()) << "another result the second time";
}

void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

TEST(RotarySmall, Shapes) {
  struct Shape {
    std::int64_t tokens, heads, d, r;
  };
  constexpr Shape kShapes[] = {
      {1, 1, 2, 2},    {3, 2, 8, 4},     // single pairs; a part of the head
      {5, 3, 64, 64},  {7, 2, 64, 32},   // ModernBERT; vectors that are copied
      {2, 5, 80, 20},  {3, 1, 50, 34},   // no whole vectors
      {2, 9, 128, 96}, {2, 40, 64, 64},  // more than a block's threads
      {300, 1, 2, 2},                    // many tokens a block
  };
  Random random(71);
  for (const Backend& backend : all_backends()) {
    for (const Shape& shape : kShapes) {
      for (DType dtype : kFloats) {
        for (bool neighbours : {false, true}) {
          Case c;
          c.tokens = shape.tokens, c.heads = shape.heads, c.d = shape.d, c.r = shape.r;
          c.dtype = dtype, c.neighbours = neighbours;
          c.table_dtype = random.pick(kFloats);
          c.shared_columns = random.chance(0.5), c.positions = random.chance(0.5), c.in_place = random.chance(0.4);
          c.position_dtype = random.chance(0.5) ? DType::kInt32 : DType::kInt64;
          check(c, backend, random);
        }
      }
    }
  }
}

// Every option with every other, in vectors and not.
TEST(RotarySmall, Options) {
  Random random(72);
  for (const Backend& backend : all_backends()) {
    for (std::int64_t r : {32, 36}) {
      for (DType dtype : kFloats) {
        for (int options = 0; options < 16; ++options) {
          Case c;
          c.tokens = 3, c.heads = 2, c.d = 48, c.r = r;
          c.dtype = dtype, c.table_dtype = random.pick(kFloats);
          c.neighbours = options & 1, c.shared_columns = options & 2;
          c.positions = options & 4, c.in_place = options & 8;
          check(c, backend, random);
          if (c.positions) continue;
          c.tokens = 6, c.parts = 3;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(RotarySmall, Layouts) {
  Random random(73);
  for (const Backend& backend : all_backends()) {
    for (Layout layout : kLayouts) {
      const bool writable =
          std::find(std::begin(kWritableLayouts), std::end(kWritableLayouts), layout) != std::end(kWritableLayouts);
      for (int which = 0; which < 4; ++which) {  // each tensor alone in that layout
        Case c;
        c.tokens = 4, c.heads = 3, c.d = 40, c.r = 32;
        c.dtype = random.pick(kFloats), c.table_dtype = random.pick(kFloats);
        c.neighbours = random.chance(0.3), c.shared_columns = random.chance(0.5);
        if (which == 2 && layout == Layout::kTransposed) continue;  // of one dimension
        if (which == 3 && !writable) continue;
        (which == 0   ? c.x_layout
         : which == 1 ? c.table_layout
         : which == 2 ? c.position_layout
                      : c.out_layout) = layout;
        check(c, backend, random);
        if (which == 0 && writable) {
          c.in_place = true;
          check(c, backend, random);
        }
      }
    }
  }
}

// Heads of a wider tensor: tokens and the first head start at multiples of 16 bytes, the second head does not.
TEST(RotarySmall, HeadsThatStartAnywhere) {
  Random random(79);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      Case c;
      c.tokens = 3, c.heads = 8, c.d = c.r = 32;
      c.dtype = dtype;
      Case whole = c;
      whole.d = 33;
      Data narrow(c, random), wide(whole, random);
      for (std::int64_t i = 0; i < c.tokens * c.heads * c.d; ++i) wide.x.set(i / 32 * 33 + i % 32, narrow.x.get(i));
      const UseBackend use(backend);
      RotaryInputs in = narrow.inputs(c, backend);
      in.x = wide.x.on(backend);
      in.x.shape[2] = 32;
      const Status status = rotary_embedding(in, in.x);
      ASSERT_TRUE(status.ok()) << status.message();
      synchronize(backend);
      wide.x.fetch();
      ASSERT_TRUE(narrow.run(c, backend).ok());
      for (std::int64_t i = 0; i < c.tokens * c.heads * c.d; ++i)
        ASSERT_EQ(wide.x.get(i / 32 * 33 + i % 32), narrow.out.get(i)) << backend << " " << dtype_name(dtype) << i;
    }
  }
}

TEST(Rotary, Drawn) {
  Random random(74);
  for (const Backend& backend : device_backends()) {
    for (int repetition = 0; repetition < sized(200, 25); ++repetition) {
      Case c;
      c.d = random.log_integer(2, sized(300, 100));
      if (random.chance(0.6)) c.d = (c.d + 15) / 16 * 16;
      c.r = 2 * random.integer(1, c.d / 2);
      if (random.chance(0.5)) c.r = std::max<std::int64_t>(2, c.r / 16 * 16);
      c.heads = random.log_integer(1, 20);
      c.tokens = random.log_integer(1, std::max<std::int64_t>(1, sized(200000, 3000) / (c.heads * c.d)));
      c.dtype = random.pick(kFloats), c.table_dtype = random.pick(kFloats);
      c.x_layout = random.pick(kWritableLayouts), c.out_layout = random.pick(kWritableLayouts);
      c.neighbours = random.chance(0.3), c.shared_columns = random.chance(0.5);
      c.positions = random.chance(0.7), c.in_place = random.chance(0.4);
      if (!c.positions && random.chance(0.5)) c.parts = random.integer(2, 5), c.tokens *= c.parts;
      check(c, backend, random);
    }
  }
}

// More tokens than a grid takes at once; pairs beyond one of the CPU's tiles.
TEST(Rotary, Large) {
  Random random(75);
  for (const Backend& backend : device_backends()) {
    Case c;
    c.tokens = sized(200000, 66000), c.d = 2, c.r = 2;
    check(c, backend, random);
    c.tokens = 2, c.d = 2600, c.r = 2100;
    c.dtype = DType::kBFloat16;
    check(c, backend, random);
  }
}

// A position that names no row: an error on the CPU, and nothing is written; NaN in what is turned of its token on
// CUDA, and no memory is read for it.
TEST(RotarySmall, PositionsOutside) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : {DType::kInt32, DType::kInt64}) {
      for (std::int64_t position : {-1, 17, 1 << 30}) {
        for (std::int64_t r : {32, 30}) {
          Random random(76);
          Case c;
          c.tokens = 4, c.heads = 2, c.d = 40, c.r = r;
          c.position_dtype = dtype;
          Data data(c, random);
          data.positions.set(2, static_cast<double>(position));
          if (backend.cuda()) {
            check(c, backend, data);
            continue;
          }
          const UseBackend use(backend);
          const Status status = data.run(c, backend);
          EXPECT_EQ(status.code(), StatusCode::kValueError);
          EXPECT_EQ(status.message(), "positions: expected numbers from 0 to 16, the rows of cos, got " +
                                          std::to_string(position) + " at 2");
          data.out.expect_unchanged("out");
        }
      }
    }
  }
}

TEST(RotarySmall, NoTokens) {
  for (const Backend& backend : all_backends()) {
    Random random(77);
    Case c;
    c.tokens = 0;
    check(c, backend, random);
  }
}

struct Mistake {
  std::function<void(RotaryInputs&, TensorView&)> make;
  StatusCode code;
  std::string message;  // a part of it
};

const Mistake kMistakes[] = {
    {[](auto& in, auto&) { in.x = {}; }, StatusCode::kValueError, "x: expected shape (R, H, d), got none"},
    {[](auto& in, auto&) { in.x.dtype = DType::kFloat64; }, StatusCode::kTypeError, "x: expected float32"},
    {[](auto& in, auto&) { in.x.shape[2] = 1; }, StatusCode::kValueError, "x: expected at least 1 head"},
    {[](auto& in, auto&) { in.x.device = DeviceType::kOther; }, StatusCode::kValueError, "x: expected a CPU or CUDA"},
    {[](auto& in, auto&) { in.cos = {}; }, StatusCode::kValueError, "cos: expected shape (P, r), got none"},
    {[](auto& in, auto&) { in.cos.shape[1] = 5; }, StatusCode::kValueError,
     "cos: expected r columns, r an even number from 2 to 8, the elements of a head, got 5"},
    {[](auto& in, auto&) { in.cos.shape[1] = 10; }, StatusCode::kValueError, "got 10"},
    {[](auto& in, auto&) { in.rotary_dim = 7; }, StatusCode::kValueError, "rotary_dim: expected an even number"},
    {[](auto& in, auto&) { in.rotary_dim = 8; }, StatusCode::kValueError, "cos: expected shape (P, 4), got (17, 6)"},
    {[](auto& in, auto&) { in.cos.dtype = DType::kInt32; }, StatusCode::kTypeError, "cos: expected float32"},
    {[](auto& in, auto&) { in.sin.shape[0] = 3; }, StatusCode::kValueError,
     "sin: expected shape (17, 6) like cos, got (3, 6)"},
    {[](auto& in, auto&) { in.sin.shape[1] = 4; }, StatusCode::kValueError, "sin: expected shape (P, 6)"},
    {[](auto& in, auto&) { in.sin.device = DeviceType::kOther; }, StatusCode::kValueError, "sin: expected "},
    {[](auto& in, auto&) { in.positions = {}; }, StatusCode::kValueError,
     "cos: expected rows that divide x's 4, as there are no positions, got shape (17, 6)"},
    {[](auto& in, auto&) { in.positions = {}, in.cos.shape[0] = in.sin.shape[0] = 3; }, StatusCode::kValueError,
     "cos: expected rows that divide x's 4, as there are no positions, got shape (3, 6)"},
    {[](auto& in, auto&) { in.positions = {}, in.cos.shape[0] = in.sin.shape[0] = 0; }, StatusCode::kValueError,
     "cos: expected rows that divide x's 4, as there are no positions, got shape (0, 6)"},
    {[](auto& in, auto&) { in.positions.dtype = DType::kFloat32; }, StatusCode::kTypeError,
     "positions: expected int32 or int64, got float32"},
    {[](auto& in, auto&) { in.positions.shape[0] = 3; }, StatusCode::kValueError,
     "positions: expected shape (4,) of x's first dimension, got (3,)"},
    {[](auto&, auto& out) { out = {}; }, StatusCode::kValueError, "out: expected shape (4, 2, 8) like x, got none"},
    {[](auto&, auto& out) { out.dtype = DType::kFloat16; }, StatusCode::kTypeError, "out: expected float32 like x"},
    {[](auto&, auto& out) { out.strides[0] = 0; }, StatusCode::kValueError, "out: expected elements that share no"},
    {[](auto& in, auto& out) { out.data = static_cast<float*>(in.x.data) + 1; }, StatusCode::kValueError,
     "out: expected memory of its own or exactly that of x"},
    {[](auto& in, auto& out) { out.data = in.cos.data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with cos"},
};

TEST(RotarySmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Random random(78);
      Case c;
      c.tokens = 4, c.heads = 2, c.d = 8, c.r = 6;
      Data data(c, random);
      RotaryInputs in = data.inputs(c, backend);
      TensorView out = data.out.on(backend);
      mistake.make(in, out);
      const Status status = rotary_embedding(in, out);
      expect_refused(status, mistake.code, mistake.message, backend, {&data.out});
    }
  }
}

}  // namespace
}  // namespace strop::rotary
