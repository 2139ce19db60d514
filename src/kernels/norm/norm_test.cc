// LayerNorm and RMSNorm against the oracle, on every backend. Suites whose name contains Small use small shapes only,
// so that they also run under slow tools (compute-sanitizer).
#include "kernels/norm/norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/norm/norm_tuning.h"
#include "strop/norm.h"
#include "tests/support/backend.h"
#include "tests/support/orders.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::norm {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kUnit = 0x1p-24;
constexpr Kind kKinds[] = {Kind::kLayer, Kind::kRms};

struct Case {
  Kind kind = Kind::kLayer;
  std::int64_t rows = 1, n = 1;
  DType dtype = DType::kFloat32, weight_dtype = DType::kFloat32, bias_dtype = DType::kFloat32;
  Layout x_layout{}, residual_layout{}, weight_layout{}, out_layout{}, residual_out_layout{};
  bool residual = false, residual_out = false, weight = true, bias = true;
  bool in_place = false;  // out is x and residual_out, where there is one, residual
  double mean = 0, spread = 1, eps = 1e-5;

  bool with_bias() const { return bias && kind == Kind::kLayer; }
  std::string text() const {
    std::ostringstream out;
    out << (kind == Kind::kLayer ? "LayerNorm (" : "RMSNorm (") << rows << ", " << n << ") " << dtype_name(dtype) << " "
        << layout_name(x_layout) << ", residual " << residual << residual_out << " " << layout_name(residual_layout)
        << ", weight " << weight << " " << dtype_name(weight_dtype) << " " << layout_name(weight_layout) << ", bias "
        << with_bias() << " " << dtype_name(bias_dtype) << ", out " << layout_name(out_layout) << ", residual_out "
        << layout_name(residual_out_layout) << ", in place " << in_place << ", mean " << mean << " spread " << spread
        << " eps " << eps;
    return out.str();
  }
};

// The tensors of a call.
struct Data {
  Tensor x, residual, weight, bias, out, residual_out;

  Data(const Case& c, Random& random)
      : x(c.dtype, {c.rows, c.n}, c.x_layout),
        residual(c.dtype, {c.rows, c.n}, c.residual_layout),
        weight(c.weight_dtype, {c.n}, c.weight_layout),
        bias(c.bias_dtype, {c.n}, c.weight_layout),
        out(c.dtype, {c.rows, c.n}, c.out_layout),
        residual_out(c.dtype, {c.rows, c.n}, c.residual_out_layout) {
    x.fill([&](std::int64_t) { return c.mean + c.spread * random.normal(); });
    residual.fill([&](std::int64_t) { return random.normal(); });
    weight.fill([&](std::int64_t) { return 1 + 0.5 * random.normal(); });
    bias.fill([&](std::int64_t) { return random.normal(); });
  }

  Tensor& result(const Case& c) { return c.in_place ? x : out; }
  Tensor& sum(const Case& c) { return c.in_place ? residual : residual_out; }

  Problem problem(const Case& c) {
    const auto matrix = [](const TensorView& view) { return Matrix{view.data, view.strides[0], view.strides[1]}; };
    const auto parameter = [](const TensorView& view) { return Parameter{view.data, view.strides[0], view.dtype}; };
    Problem p;
    p.kind = c.kind;
    p.rows = c.rows, p.n = c.n;
    p.dtype = c.dtype;
    p.terms[0] = {matrix(x.host()), {}};
    if (c.residual) p.terms[1] = {matrix(residual.host()), {}};
    if (c.weight) p.weight = parameter(weight.host());
    if (c.with_bias()) p.bias = parameter(bias.host());
    p.eps = static_cast<float>(c.eps);
    return p;
  }

  Status run(const Case& c, const Backend& backend) {
    NormInputs in;
    NormOutputs to;
    in.x = x.on(backend);
    if (c.residual) in.residual = residual.on(backend);
    if (c.weight) in.weight = weight.on(backend);
    if (c.with_bias()) in.bias = bias.on(backend);
    to.out = c.in_place ? in.x : out.on(backend);
    if (c.residual_out) to.residual_out = c.in_place ? in.residual : residual_out.on(backend);
    const Status status = c.kind == Kind::kLayer ? layer_norm(in, c.eps, to) : rms_norm(in, c.eps, to);
    synchronize(backend);
    result(c).fetch();
    if (c.residual_out) sum(c).fetch();
    return status;
  }
};

struct Expected {
  std::vector<double> out, out_tolerance, sum, sum_tolerance;
};

// The oracle's result and the error that fp32 arithmetic may have. With z the normalised value, scale = 1 / sqrt(var +
// eps), in units u of 2^-24:
// - sums of n terms are trees and chains of at most 256, of independent roundings: 64 units of the sum of magnitudes
//   is never reached. So mean(t^2) is off by 64 of itself and scale, a square root, by 32, with rsqrt's own 2 ulp (4)
//   and the roundings of the mean, of eps' addition and of 1/n below 36 + 8: 44 |z|.
// - LayerNorm: m's error is taken out again by d, a sum of t of whose magnitude mean|t| <= 1 / scale 64 units may be
//   wrong, 64 in z; t, t - d and their product with scale are rounded: 3 |z| (and d is small beside 1 / scale).
// - s, where there is a residual, is rounded: u |s|, in z u max|s| scale, for itself and for the mean, and once |z| for
//   the deviation. RMSNorm has no difference to blow it up: 2 |z|.
// - weight and bias in one rounding: 1 |out|; then the one to the dtype.
Expected expectation(const Case& c, Data& data) {
  Expected e;
  const auto size = static_cast<std::size_t>(c.rows * c.n);
  e.out.resize(size), e.out_tolerance.resize(size), e.sum.resize(size), e.sum_tolerance.resize(size);
  reference(data.problem(c), e.out.data(), e.sum.data());
  for (std::int64_t row = 0; row < c.rows; ++row) {
    const double* s = e.sum.data() + row * c.n;
    double mean = 0, squares = 0, largest = 0;
    for (std::int64_t i = 0; i < c.n; ++i) mean += s[i] / static_cast<double>(c.n);
    if (c.kind == Kind::kRms) mean = 0;
    for (std::int64_t i = 0; i < c.n; ++i) {
      squares += (s[i] - mean) * (s[i] - mean);
      largest = std::max(largest, std::abs(s[i]));
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(c.n) + static_cast<float>(c.eps));
    const double of_sum = c.residual && c.kind == Kind::kLayer ? largest * scale : 0;
    for (std::int64_t i = 0; i < c.n; ++i) {
      const auto k = static_cast<std::size_t>(row * c.n + i);
      const double z = std::abs(s[i] - mean) * scale, weight = c.weight ? std::abs(data.weight.get(i)) : 1;
      const double in_z = 49 * z + (c.kind == Kind::kLayer ? 64 : 0) + of_sum * (2 + z);
      const double error = kUnit * (weight * in_z + std::abs(e.out[k]));
      e.out_tolerance[k] = error + unit_roundoff(c.dtype) * (std::abs(e.out[k]) + error) + subnormal_roundoff(c.dtype);
      e.sum_tolerance[k] = (kUnit + unit_roundoff(c.dtype)) * std::abs(s[i]) + subnormal_roundoff(c.dtype);
    }
  }
  return e;
}

void compare(const char* what, const Case& c, const Tensor& got, const std::vector<double>& want,
             const std::vector<double>& tolerance) {
  int failures = 0;
  for (std::int64_t i = 0; i < c.rows * c.n && failures < 5; ++i) {
    const auto k = static_cast<std::size_t>(i);
    const double g = got.get(i), w = want[k];
    if (std::isnan(w) ? std::isnan(g) : std::isinf(w) ? g == w : std::abs(g - w) <= tolerance[k]) continue;
    ADD_FAILURE() << what << " (" << i / c.n << ", " << i % c.n << ") is " << g << ", expected " << w << " +- "
                  << tolerance[k];
    ++failures;
  }
}

// Runs what `data` holds twice, compares with the oracle and once with the other.
void check(const Case& c, const Backend& backend, Data data) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  const Expected expected = expectation(c, data);
  const UseBackend use(backend);
  Data again = data;
  const Status status = data.run(c, backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.result(c).expect_only_elements_changed("out");
  if (!c.in_place) data.x.expect_unchanged("x");
  if (c.residual_out) data.sum(c).expect_only_elements_changed("residual_out");
  if (c.residual && !(c.in_place && c.residual_out)) data.residual.expect_unchanged("residual");
  if (c.weight) data.weight.expect_unchanged("weight");
  if (c.with_bias()) data.bias.expect_unchanged("bias");
  compare("out", c, data.result(c), expected.out, expected.out_tolerance);
  if (c.residual_out) compare("residual_out", c, data.sum(c), expected.sum, expected.sum_tolerance);

  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.result(c).bytes() == again.result(c).bytes()) << "another result the second time";
  if (c.residual_out) {
    EXPECT_TRUE(data.sum(c).bytes() == again.sum(c).bytes()) << "another sum the second time";
  }
}

void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

// What a case leaves open: the residual, what is in place, and which parameters there are.
void draw(Case& c, Random& random) {
  c.residual = random.chance(0.5);
  c.residual_out = c.residual && random.chance(0.6);
  c.in_place = random.chance(0.4);
  c.weight = random.chance(0.8);
  c.bias = random.chance(0.6);
  c.weight_dtype = random.pick(kFloats);
  c.bias_dtype = random.pick(kFloats);
}

TEST(NormSmall, Shapes) {
  constexpr std::int64_t kShapes[][2] = {
      {1, 1},    {5, 1},                // one element: its own mean
      {3, 2},    {2, 7},    {4, 8},     // less than a vector, one
      {2, 15},   {5, 16},   {3, 17},    // around AVX-512's vectors
      {9, 31},   {1, 64},   {6, 100},   // several rows a block, and blocks that are not full
      {3, 255},  {2, 256},  {2, 264},   // what a warp holds with 8 elements a lane; the next size
      {2, 512},  {2, 513},              // what it holds in single elements
      {2, 768},                         // BERT: 24 elements a lane
      {2, 1023}, {3, 1024},             // what a warp holds at most
      {2, 1025}, {2, 1032}, {1, 1288},  // a block a row: odd, dense, threads with nothing to do
  };
  Random random(41);
  for (const Backend& backend : all_backends()) {
    for (const auto& shape : kShapes) {
      for (Kind kind : kKinds) {
        Case c;
        c.kind = kind;
        c.rows = shape[0], c.n = shape[1];
        for (DType dtype : kFloats) {
          c.dtype = dtype;
          draw(c, random);
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(Norm, Shapes) {
  using Shape = std::pair<std::int64_t, std::int64_t>;
  const std::vector<Shape> native = {
      {300, 768}, {257, 4096}, {3, 4097},                // more rows than the CPU has chunks; one of its tiles and more
      {2, 8192},  {2, 8200},   {1, 12345},               // 16 and 32 elements a thread
      {2, 32768}, {1, 32769},                            // what a block holds, and one more
      {2, 65536}, {1, 65537},  {1, 200000}, {40000, 5},  // more rows than a grid takes at once
  };
  const std::vector<Shape> emulated = {{1, 4104},  {1, 4099},  {1, 8200},  {1, 12296}, {1, 8193},
                                       {1, 16384}, {1, 16392}, {1, 33000}, {1100, 3}};
  Random random(42);
  for (const Backend& backend : device_backends()) {
    for (const auto& [rows, n] : sized(native, emulated)) {
      Case c;
      c.rows = rows, c.n = n;
      // Under the emulator, one of each device and not all.
      const Kind drawn_kind = random.pick(kKinds);
      const DType drawn = random.pick(kFloats);
      for (Kind kind : kKinds) {
        for (DType dtype : kFloats) {
          if (kEmulated && (kind != drawn_kind || dtype != drawn)) continue;
          c.kind = kind;
          c.dtype = dtype;
          draw(c, random);
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(NormSmall, DtypesMixed) {
  Random random(43);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      for (DType weight : kFloats) {
        for (DType bias : kFloats) {
          Case c;
          draw(c, random);
          c.rows = 2;
          c.n = random.pick({40, 56, 61, 1600});
          c.dtype = dtype, c.weight_dtype = weight, c.bias_dtype = bias;
          c.weight = c.bias = true;
          check(c, backend, random);
        }
      }
    }
  }
}

// Every option with every other, in rows of a warp and of a block, dense and not.
TEST(NormSmall, Options) {
  Random random(44);
  for (const Backend& backend : all_backends()) {
    for (Kind kind : kKinds) {
      for (std::int64_t n : {48, 51, 1040, 1041}) {
        for (int options = 0; options < 32; ++options) {
          Case c;
          c.kind = kind;
          c.rows = 2, c.n = n;
          c.residual = options & 1, c.residual_out = options & 2, c.in_place = options & 4;
          c.weight = options & 8, c.bias = options & 16;
          if ((c.residual_out && !c.residual) || (kind == Kind::kRms && c.bias)) continue;
          c.dtype = random.pick(kFloats), c.weight_dtype = random.pick(kFloats), c.bias_dtype = random.pick(kFloats);
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(NormSmall, Layouts) {
  Random random(45);
  for (const Backend& backend : all_backends()) {
    for (Layout layout : kLayouts) {
      for (int which = 0; which < 5; ++which) {  // each tensor alone in that layout, and the other sizes of row
        for (std::int64_t n : {sized<std::int64_t>(64, 24), sized<std::int64_t>(61, 21), std::int64_t{1100}}) {
          Case c;
          c.kind = random.pick(kKinds);
          c.rows = 3, c.n = n;
          c.dtype = random.pick(kFloats), c.weight_dtype = random.pick(kFloats), c.bias_dtype = random.pick(kFloats);
          c.residual = c.residual_out = true;
          const bool writable =
              std::find(std::begin(kWritableLayouts), std::end(kWritableLayouts), layout) != std::end(kWritableLayouts);
          if (which >= 3 && !writable) continue;
          (which == 0   ? c.x_layout
           : which == 1 ? c.residual_layout
           : which == 2 ? c.weight_layout
           : which == 3 ? c.out_layout
                        : c.residual_out_layout) = layout;
          check(c, backend, random);
          if (which > 1 || !writable) continue;
          c.in_place = true;
          check(c, backend, random);
        }
      }
    }
  }
}

// Rows that start at multiples of 16 bytes and end in the middle of a vector.
TEST(NormSmall, PaddedRows) {
  Random random(46);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      for (std::int64_t n : {5, 99, 1037}) {
        const std::int64_t pitch = (n + 15) / 16 * 16;
        Case c;
        c.dtype = dtype;
        c.rows = 3, c.n = pitch;
        Data wide(c, random);
        c.n = n;
        Data narrow(c, random);
        for (std::int64_t row = 0; row < c.rows; ++row) {
          for (std::int64_t i = 0; i < n; ++i) wide.x.set(row * pitch + i, narrow.x.get(row * n + i));
        }
        SCOPED_TRACE(::testing::Message() << backend << " " << c.text());
        const UseBackend use(backend);
        NormInputs in{wide.x.on(backend), {}, narrow.weight.on(backend), narrow.bias.on(backend)};
        NormOutputs to{wide.out.on(backend), {}};
        in.x.shape[1] = to.out.shape[1] = n;
        const Status status = layer_norm(in, c.eps, to);
        ASSERT_TRUE(status.ok()) << status.message();
        synchronize(backend);
        wide.out.fetch();
        const Expected expected = expectation(c, narrow);
        for (std::int64_t row = 0; row < c.rows; ++row) {
          for (std::int64_t i = 0; i < pitch; ++i) {
            const double got = wide.out.get(row * pitch + i);
            if (i >= n) {
              ASSERT_TRUE(std::isnan(got)) << "written to behind a row";
              continue;
            }
            const auto k = static_cast<std::size_t>(row * n + i);
            ASSERT_NEAR(got, expected.out[k], expected.out_tolerance[k]) << row << " " << i;
          }
        }
      }
    }
  }
}

// The tolerance is that of the spread, not of the offset. With E[s^2] - E[s]^2 the variance would be off by several
// times itself; with a mean that is rounded to fp32 every output by up to 5e-4.
TEST(NormSmall, LargeOffsets) {
  Random random(47);
  for (const Backend& backend : all_backends()) {
    for (double mean : {1e4, -3e4, 7e6}) {
      for (std::int64_t n : {17, 768, 1096}) {
        Case c;
        c.rows = 2, c.n = n;
        c.mean = mean;
        c.residual = false;
        c.spread = mean == 7e6 ? 100 : 1;
        check(c, backend, random);
        c.kind = Kind::kRms;
        check(c, backend, random);
      }
    }
    // fp16, whose numbers around 1e4 are 8 apart, and a residual that fp16 alone would lose.
    Case c;
    c.rows = 2, c.n = 512;
    c.dtype = DType::kFloat16;
    c.mean = 1e4, c.spread = 50;
    c.residual = c.residual_out = true;
    check(c, backend, random);
  }
}

// The norm is that of the sum before it is rounded: x = 2048 + 4 k and residuals of 1 and 0, whose sums fp16 rounds to
// multiples of 2.
TEST(NormSmall, SumIsNotRounded) {
  for (const Backend& backend : all_backends()) {
    Random random(48);
    Case c;
    c.n = 64;
    c.dtype = DType::kFloat16, c.residual = c.residual_out = true;
    c.weight = c.bias = false;
    Data data(c, random);
    data.x.fill([](std::int64_t) { return 2048; });
    data.residual.fill([](std::int64_t i) { return i % 2; });
    const UseBackend use(backend);
    ASSERT_TRUE(data.run(c, backend).ok());
    for (std::int64_t i = 0; i < c.n; ++i) {
      ASSERT_EQ(data.residual_out.get(i), 2048) << backend;  // ties to even
      ASSERT_NEAR(data.out.get(i), i % 2 == 0 ? -1 : 1, 1e-3) << backend;
    }
  }
}

TEST(NormSmall, Eps) {
  Random random(49);
  for (const Backend& backend : all_backends()) {
    for (Kind kind : kKinds) {
      for (double eps : {0.0, 1e-12, 1e-3, 10.0}) {
        for (double spread : {1.0, 1e-3, 1e-10}) {
          Case c;
          c.kind = kind;
          c.rows = 2, c.n = 200;
          c.eps = eps, c.spread = spread;
          check(c, backend, random);
        }
      }
    }
  }
}

// All elements the same: no variance, and eps alone keeps the quotient finite.
TEST(NormSmall, ConstantRows) {
  for (const Backend& backend : all_backends()) {
    for (std::int64_t n : {1, 3, 100, 1111}) {
      for (double value : {0.0, 0.1, -12345.678}) {
        Random random(50);
        Case c;
        c.n = n;
        Data data(c, random);
        data.x.fill([&](std::int64_t) { return value; });
        check(c, backend, data);
      }
    }
  }
}

// BERT's eps is far below the square of what m is off by here, at most some 20 units of 2^-24 of the value. d takes
// that out again but for 64 units of itself, which 1 / sqrt(eps) enlarges; m alone would leave outputs of +-1.
TEST(NormSmall, ConstantRowsWithTinyEps) {
  for (const Backend& backend : all_backends()) {
    for (std::int64_t n : {100, 391, 1111}) {
      Random random(57);
      Case c;
      c.rows = 12, c.n = n;
      c.eps = 1e-12;
      c.weight = c.bias = false;
      Data data(c, random);
      std::vector<double> values(static_cast<std::size_t>(c.rows));
      for (double& value : values) value = 4e6 * random.normal();
      data.x.fill([&](std::int64_t i) { return values[i / n]; });
      const UseBackend use(backend);
      ASSERT_TRUE(data.run(c, backend).ok());
      for (std::int64_t i = 0; i < c.rows * n; ++i) {
        const double off = 20 * kUnit * std::abs(values[static_cast<std::size_t>(i / n)]);
        ASSERT_NEAR(data.out.get(i), 0, 64 * kUnit * off * 1e6) << backend << " n " << n << " of " << values[i / n];
      }
    }
  }
}

// Rows that a block does not hold are read again after the first pass: in place, nothing may be written before the
// last.
TEST(Norm, LongRowsInPlace) {
  Random random(58);
  for (const Backend& backend : device_backends()) {
    for (std::int64_t n : {16392, 8195}) {  // dense and not
      Case c;
      c.n = n;
      c.dtype = DType::kBFloat16, c.weight_dtype = DType::kBFloat16;
      c.bias = false;
      c.residual = c.residual_out = c.in_place = true;
      check(c, backend, random);
    }
  }
}

TEST(NormSmall, NanAndInfinityStayInTheirRow) {
  for (const Backend& backend : all_backends()) {
    for (Kind kind : kKinds) {
      for (double special : {kNan, kInf, -kInf}) {
        for (std::int64_t n : {9, 64, 1200}) {
          for (bool in_residual : {false, true}) {
            Random random(51);
            Case c;
            c.kind = kind;
            c.rows = 3, c.n = n;
            c.residual = true;
            Data data(c, random);
            (in_residual ? data.residual : data.x).set(n + n / 2, special);
            check(c, backend, data);
            const UseBackend use(backend);
            ASSERT_TRUE(data.run(c, backend).ok());
            for (std::int64_t i = 0; i < 3 * n; ++i) {
              const bool nan = i / n == 1 && (kind == Kind::kLayer || std::isnan(special) || i == n + n / 2);
              ASSERT_EQ(std::isnan(data.out.get(i)), nan) << backend << " " << c.text() << " " << i;
            }
          }
        }
      }
    }
  }
}

// A row has the same bits alone, among others and wherever it stands among them.
TEST(NormSmall, RowsDoNotInfluenceEachOther) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      for (std::int64_t n : {40, 1304}) {
        Random random(52);
        Case one;
        one.n = n;
        one.dtype = dtype;
        Case several = one;
        several.rows = 7;
        Data alone(one, random), among(several, random);
        for (std::int64_t i = 0; i < n; ++i) {
          among.x.set(5 * n + i, alone.x.get(i));
          among.weight.set(i, alone.weight.get(i));
          among.bias.set(i, alone.bias.get(i));
        }
        const UseBackend use(backend);
        ASSERT_TRUE(alone.run(one, backend).ok());
        ASSERT_TRUE(among.run(several, backend).ok());
        for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(alone.out.get(i), among.out.get(5 * n + i)) << backend << i;
      }
    }
  }
}

TEST(NormSmall, NoRows) {
  for (const Backend& backend : all_backends()) {
    for (Kind kind : kKinds) {
      for (bool residual : {false, true}) {
        Random random(53);
        Case c;
        c.kind = kind;
        c.rows = 0, c.n = 9;
        c.residual = c.residual_out = residual;
        check(c, backend, random);
      }
    }
  }
}

// Column ranges of one buffer share no element.
TEST(NormSmall, ColumnRanges) {
  for (const Backend& backend : all_backends()) {
    Random random(54);
    Case c;
    c.rows = 3, c.n = 64;
    Data data(c, random);
    const UseBackend use(backend);
    Data apart = data;
    NormInputs in{data.x.on(backend), {}, {}, {}};
    in.x.shape[1] = 32;
    NormOutputs to{in.x, {}};
    to.out.data = static_cast<float*>(in.x.data) + 32;
    const Status status = rms_norm(in, 1e-5, to);
    ASSERT_TRUE(status.ok()) << status.message();
    synchronize(backend);
    data.x.fetch();
    for (std::int64_t row = 0; row < 3; ++row) {
      double squares = 0;
      for (std::int64_t i = 0; i < 32; ++i) squares += std::pow(apart.x.get(row * 64 + i), 2);
      for (std::int64_t i = 0; i < 32; ++i) {
        ASSERT_EQ(data.x.get(row * 64 + i), apart.x.get(row * 64 + i));
        ASSERT_NEAR(data.x.get(row * 64 + 32 + i), apart.x.get(row * 64 + i) / std::sqrt(squares / 32 + 1e-5), 1e-5);
      }
    }
  }
}

TEST(Norm, Drawn) {
  Random random(55);
  for (const Backend& backend : device_backends()) {
    for (int repetition = 0; repetition < sized(200, 25); ++repetition) {
      Case c;
      draw(c, random);
      c.kind = random.pick(kKinds);
      c.dtype = random.pick(kFloats);
      c.n = random.log_integer(1, sized(20000, 3000));
      if (random.chance(0.5)) c.n = (c.n + 7) / 8 * 8;
      c.rows = random.log_integer(1, std::max<std::int64_t>(1, sized(50000, 3000) / c.n));
      c.x_layout = random.pick(kWritableLayouts), c.residual_layout = random.pick(kWritableLayouts);
      c.weight_layout = random.pick(kWritableLayouts);
      c.out_layout = random.pick(kWritableLayouts), c.residual_out_layout = random.pick(kWritableLayouts);
      c.mean = random.pick({0.0, 1.0, -30.0});
      c.spread = random.pick({0.01, 1.0, 20.0});
      check(c, backend, random);
    }
  }
}

// The CPU's result is bitwise the same whatever runs its rows.
TEST(Norm, ThreadsDoNotChangeResults) {
  if (kEmulated) GTEST_SKIP() << "of the CPU";
  Case c;
  c.rows = 300, c.n = 500;
  const Backend& cpu = device_backends()[0];
  const auto run = [&] {
    Random random(56);
    Data data(c, random);
    EXPECT_TRUE(data.run(c, cpu).ok());
    return data.out.bytes();
  };
  expect_threads_change_nothing(run);
}

TEST(NormSmall, Tuning) {
  for (bool dense : {false, true}) {
    const std::int64_t by_warp = dense ? 1024 : 512, longest = dense ? 16384 : 8192;
    for (std::int64_t n : {1, 256, 257, 512, 513, 768, 1024, 1025, 4097, 8192, 8193, 16384, 16385, 1000000}) {
      const Tuning t = tune(n, dense);
      EXPECT_EQ(t.held, n <= longest);
      EXPECT_LE(t.threads, t.held ? kMaxThreads : kLongThreads);
      EXPECT_EQ(t.threads % 32, 0);
      if (t.held) {
        EXPECT_GE(std::int64_t{t.threads} * t.floats, n) << n;
      }
      EXPECT_EQ(t.threads == 32, n <= by_warp);
    }
  }
  EXPECT_EQ(warps_a_block(0, 132), 1);
  EXPECT_EQ(warps_a_block(264, 132), 1);
  EXPECT_EQ(warps_a_block(265, 132), 2);
  EXPECT_EQ(warps_a_block(std::int64_t{1} << 40, 132), kRowsABlock);
}

TEST(NormSmall, FloorBytes) {
  Problem p;
  EXPECT_EQ(floor_bytes(p), 0);
  float f[1];
  p.rows = 4096, p.n = 768;
  p.dtype = DType::kFloat16;
  p.out = {f, 768, 1};
  p.terms[0] = {p.out, {}};
  p.weight = p.bias = {f, 1, DType::kFloat16};
  EXPECT_EQ(floor_bytes(p), 2 * 4096 * 768 * 2 + 2 * 768 * 2);
  p.residual_out = p.out;
  p.terms[1] = p.terms[0];
  EXPECT_EQ(floor_bytes(p), 4 * 4096 * 768 * 2 + 2 * 768 * 2);
}

// ---------------------------------------------------------------------------------------------- Bad input

struct Call {
  Tensor x{DType::kFloat32, {4, 7}}, residual{DType::kFloat32, {4, 7}};
  Tensor weight{DType::kFloat32, {7}}, bias{DType::kFloat32, {7}};
  Tensor out{DType::kFloat32, {4, 7}}, residual_out{DType::kFloat32, {4, 7}};
  NormInputs in;
  NormOutputs to;
  double eps = 1e-5;
  Kind kind = Kind::kLayer;

  explicit Call(const Backend& backend) {
    for (Tensor* tensor : {&x, &residual, &weight, &bias}) tensor->fill([](std::int64_t i) { return i; });
    in = {x.on(backend), residual.on(backend), weight.on(backend), bias.on(backend)};
    to = {out.on(backend), residual_out.on(backend)};
  }
};

struct Mistake {
  std::function<void(Call&)> make;
  StatusCode code;
  std::string message;  // a part of it
};

void move_by(TensorView& view, std::int64_t bytes) { view.data = static_cast<char*>(view.data) + bytes; }

const Mistake kMistakes[] = {
    {[](Call& c) { c.in.x = {}; }, StatusCode::kValueError, "x: expected 2 dimensions (R, n), got none"},
    {[](Call& c) { c.in.x.data = nullptr; }, StatusCode::kValueError, "x: expected a tensor, got none"},
    {[](Call& c) { c.in.x.dtype = DType::kFloat64; }, StatusCode::kTypeError,
     "x: expected float32, float16 or bfloat16, got float64"},
    {[](Call& c) { c.in.x.dtype = DType::kInt32; }, StatusCode::kTypeError, "x: expected float32, float16 or bfloat16"},
    {[](Call& c) { c.in.x.rank = 1; }, StatusCode::kValueError, "x: expected 2 dimensions (R, n), got shape (4,)"},
    {[](Call& c) { c.in.x.shape[1] = 0; }, StatusCode::kValueError, "x: expected rows of at least 1 element"},
    {[](Call& c) { c.in.x.device = DeviceType::kOther; }, StatusCode::kValueError, "x: expected a CPU or CUDA tensor"},
    {[](Call& c) { move_by(c.in.x, 2); }, StatusCode::kValueError, "x: expected data aligned to float32"},
    {[](Call& c) { c.in.residual.dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "residual: expected float32 like x, got float16"},
    {[](Call& c) { c.in.residual.shape[0] = 5; }, StatusCode::kValueError,
     "residual: expected shape (4, 7) like x, got (5, 7)"},
    {[](Call& c) { c.in.residual.device = DeviceType::kOther; }, StatusCode::kValueError, "residual: expected "},
    {[](Call& c) { c.in.weight.shape[0] = 4; }, StatusCode::kValueError,
     "weight: expected shape (7,) of x's last dimension, got (4,)"},
    {[](Call& c) { c.in.weight.rank = 2; }, StatusCode::kValueError, "weight: expected shape (7,)"},
    {[](Call& c) { c.in.weight.dtype = DType::kFloat64; }, StatusCode::kTypeError, "weight: expected float32"},
    {[](Call& c) { c.in.bias.dtype = DType::kBool; }, StatusCode::kTypeError, "bias: expected float32"},
    {[](Call& c) { c.in.bias.device = DeviceType::kOther; }, StatusCode::kValueError, "bias: expected "},
    {[](Call& c) { c.kind = Kind::kRms; }, StatusCode::kValueError, "bias: expected none"},
    {[](Call& c) { c.eps = -1e-5; }, StatusCode::kValueError, "eps: expected a finite number >= 0"},
    {[](Call& c) { c.eps = kNan; }, StatusCode::kValueError, "eps: expected a finite number >= 0"},
    {[](Call& c) { c.eps = 1e300; }, StatusCode::kValueError, "eps: expected a finite number >= 0"},
    {[](Call& c) { c.to.out = {}; }, StatusCode::kValueError, "out: expected shape (4, 7) like x, got none"},
    {[](Call& c) { c.to.out.data = nullptr; }, StatusCode::kValueError, "out: expected a tensor, got none"},
    {[](Call& c) { c.to.out.dtype = DType::kBFloat16; }, StatusCode::kTypeError, "out: expected float32 like x"},
    {[](Call& c) { c.to.out.strides[0] = 6; }, StatusCode::kValueError,
     "out: expected elements that share no memory, got shape (4, 7) with strides (6, 1)"},
    {[](Call& c) {
       c.to.out = c.in.x;
       c.to.out.shape[0] = c.in.x.shape[0] = c.in.residual.shape[0] = c.to.residual_out.shape[0] = 3;
       move_by(c.to.out, 4);
     },
     StatusCode::kValueError,
     "out: expected memory of its own or exactly that of x, got memory shared with x in another layout"},
    {[](Call& c) { c.to.out = c.in.residual; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with residual"},
    {[](Call& c) { c.in.weight.data = c.to.out.data; }, StatusCode::kValueError, "memory shared with weight"},
    {[](Call& c) { c.in.bias.data = c.to.residual_out.data; }, StatusCode::kValueError, "memory shared with bias"},
    {[](Call& c) { c.in.residual = c.in.x, c.to.out = c.in.x; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with residual"},
    {[](Call& c) { c.in.residual.data = nullptr; }, StatusCode::kValueError, "residual_out: expected none"},
    {[](Call& c) { c.to.residual_out.shape[1] = 6; }, StatusCode::kValueError,
     "residual_out: expected shape (4, 7) like x, got (4, 6)"},
    {[](Call& c) { c.to.residual_out = c.to.out; }, StatusCode::kValueError,
     "residual_out: expected memory of its own, got memory shared with out"},
    {[](Call& c) { c.to.residual_out = c.in.x; }, StatusCode::kValueError,
     "residual_out: expected memory of its own, got memory shared with x"},
};

TEST(NormSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Call c(backend);
      mistake.make(c);
      const Status status = c.kind == Kind::kLayer ? layer_norm(c.in, c.eps, c.to) : rms_norm(c.in, c.eps, c.to);
      expect_refused(status, mistake.code, mistake.message, backend, {&c.x, &c.residual, &c.out, &c.residual_out});
    }
  }
}

}  // namespace
}  // namespace strop::norm
