// Reverse KL against the oracle, on every backend. Suites whose name contains Small use small shapes only, so that
// they also run under slow tools (compute-sanitizer).
#include "kernels/reverse_kl/reverse_kl.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <thread>
#include <vector>

#include "strop/losses.h"
#include "tests/support/backend.h"
#include "tests/support/orders.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::reverse_kl {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kUnit = 0x1p-24;

enum class Gradient { kNone, kOwn, kInPlace };
enum class Banned { kNone, kBoth, kStudent };  // logits of -inf

struct Case {
  std::int64_t outer = 1, inner = 1, vocab = 1;
  bool flat = false;  // logits of shape (R, V) with R = inner
  DType student = DType::kFloat32, teacher = DType::kFloat32, mask = DType::kBool;
  Layout student_layout{}, teacher_layout{}, mask_layout{}, grad_layout{};
  Gradient gradient = Gradient::kOwn;
  Banned banned = Banned::kNone;
  double valid = 0.7;   // share of valid rows
  double scale = 2;     // of the student's logits
  double spread = 0.5;  // of teacher - student

  std::vector<std::int64_t> shape() const {
    return flat ? std::vector{inner, vocab} : std::vector{outer, inner, vocab};
  }
  std::string text() const {
    std::ostringstream out;
    out << "(" << (flat ? 1 : outer) << ", " << inner << ", " << vocab << ")" << (flat ? " flat" : "") << " student "
        << dtype_name(student) << " " << layout_name(student_layout) << ", teacher " << dtype_name(teacher) << " "
        << layout_name(teacher_layout) << ", mask " << dtype_name(mask) << " " << layout_name(mask_layout)
        << ", gradient " << static_cast<int>(gradient) << " " << layout_name(grad_layout) << ", banned "
        << static_cast<int>(banned) << " valid " << valid << " scale " << scale << " spread " << spread;
    return out.str();
  }
};

// The tensors of a call. Masked rows hold NaN wherever no valid row shares their memory.
struct Data {
  Tensor student, teacher, mask, loss, grad;
  std::int64_t rows, vocab;

  Data(const Case& c, Random& random)
      : student(c.student, c.shape(), c.student_layout),
        teacher(c.teacher, c.shape(), c.teacher_layout),
        mask(c.mask, c.flat ? std::vector{c.inner} : std::vector{c.outer, c.inner}, c.mask_layout),
        loss(DType::kFloat32, {}),
        grad(c.student, c.shape(), c.grad_layout),
        rows((c.flat ? 1 : c.outer) * c.inner),
        vocab(c.vocab) {
    mask.fill([&](std::int64_t) { return random.chance(c.valid) ? 1.0 : 0.0; });
    student.fill([&](std::int64_t) { return c.scale * random.normal(); });
    teacher.fill([&](std::int64_t i) { return student.get(i) + c.spread * random.normal(); });
    if (c.banned != Banned::kNone && !student.expanded() && !teacher.expanded()) {
      bool row_bans = false;  // not all do
      for (std::int64_t i = 0; i < rows * vocab; ++i) {
        if (i % vocab == 0) {  // one logit of each row is left
          row_bans = random.chance(0.7);
          continue;
        }
        if (!row_bans || random.chance(0.5)) continue;
        student.set(i, -kInf);
        if (c.banned == Banned::kBoth) teacher.set(i, -kInf);
      }
    }
    for (Tensor* tensor : {&student, &teacher}) {
      if (tensor->expanded()) continue;
      for (std::int64_t i = 0; i < rows * vocab; ++i) {
        if (!valid(i / vocab)) tensor->set(i, kNan);
      }
    }
  }

  bool valid(std::int64_t row) const { return mask.get(row) != 0; }

  Problem problem() {
    const auto logits = [](const TensorView& view) {
      const bool flat = view.rank == 2;
      return Logits{view.data, flat ? 0 : view.strides[0], view.strides[flat ? 0 : 1], view.strides[flat ? 1 : 2],
                    view.dtype};
    };
    Problem p;
    const TensorView view = student.host(), mask_view = mask.host();
    p.outer = view.rank == 2 ? 1 : view.shape[0];
    p.inner = view.shape[view.rank - 2];
    p.vocab = vocab;
    p.student = logits(view);
    p.teacher = logits(teacher.host());
    p.mask = {mask_view.data, view.rank == 2 ? 0 : mask_view.strides[0], mask_view.strides[view.rank - 2],
              mask_view.dtype};
    return p;
  }

  Status run(const Case& c, const Backend& backend, const Workspace& workspace) {
    const TensorView view = student.on(backend);
    const TensorView grad_view = c.gradient == Gradient::kOwn       ? grad.on(backend)
                                 : c.gradient == Gradient::kInPlace ? view
                                                                    : TensorView{};
    const Status status = reverse_kl_loss({view, teacher.on(backend), mask.on(backend)}, loss.on(backend), grad_view,
                                          {workspace.data(), nullptr});
    synchronize(backend);
    loss.fetch();
    if (c.gradient == Gradient::kInPlace) student.fetch();
    if (c.gradient == Gradient::kOwn) grad.fetch();
    return status;
  }
};

struct Expected {
  double loss, loss_tolerance;
  std::vector<double> grad, grad_tolerance;
};

// The oracle's result and the error that fp32 arithmetic may have. With a = x - max x, b = y - max y, d = a - b, in
// units of 2^-24:
// - a, b and d are rounded: |a| + |b| + |d|, which e^a turns into relative errors; on the GPU, which works in base 2, a
//   and b once for the shift, once for a change of shift, and a quarter for the rounded log2(e): 2.5 (|a| + |b|);
// - exp may have 2 ulp (4 units), and |a| / 4 from its argument's reduction: e^a is off by (4 + 2 |a|) of itself, and
//   (4 + 2 |b|) the same for e^b;
// - sums: at most 256 terms in a row in fp32 before they meet in a tree or in double, and independent roundings, so
//   that 64 units of the sum of magnitudes is never reached.
// - a gradient is w p (d - mean): 4 more roundings, then the one to the gradient's dtype.
Expected expectation(Data& data, DType grad_dtype) {
  Expected expected;
  const auto n = static_cast<std::size_t>(data.rows * data.vocab);
  expected.grad.resize(n);
  expected.grad_tolerance.resize(n);
  reference(data.problem(), &expected.loss, expected.grad.data());
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < data.rows; ++row) count += data.valid(row);
  const double weight = 1.0 / static_cast<double>(std::max<std::int64_t>(count, 1));
  expected.loss_tolerance = 4 * kUnit * std::abs(expected.loss) + 0x1p-149;
  std::vector<double> x(static_cast<std::size_t>(data.vocab)), y(x.size());
  for (std::int64_t row = 0; row < data.rows; ++row) {
    if (!data.valid(row)) continue;
    double x_max = -kInf, y_max = -kInf;
    for (std::int64_t v = 0; v < data.vocab; ++v) {
      const auto i = static_cast<std::size_t>(v);
      x_max = std::max(x_max, x[i] = data.student.get(row * data.vocab + v));
      y_max = std::max(y_max, y[i] = data.teacher.get(row * data.vocab + v));
    }
    double x_sum = 0, y_sum = 0, product = 0, x_error = 0, y_error = 0, product_error = 0, magnitude = 0;
    for (std::size_t v = 0; v < x.size(); ++v) {
      const double a = x[v] - x_max, b = y[v] - y_max, d = a - b, e = std::exp(a), f = std::exp(b);
      y_sum += f;
      if (f > 0) y_error += f * (4 + 2 * std::abs(b));
      if (e == 0) continue;
      x_sum += e;
      x_error += e * (4 + 2 * std::abs(a));
      if (std::isinf(d)) continue;
      product += e * d;
      magnitude += e * std::abs(d);
      product_error += e * (2.5 * (std::abs(a) + std::abs(b)) + std::abs(d) + (6 + 2 * std::abs(a)) * std::abs(d));
    }
    const double x_relative = x_error / x_sum + 64, y_relative = y_error / y_sum + 64;
    const double mean = product / x_sum;
    const double mean_error = kUnit * ((product_error + 64 * magnitude) / x_sum + std::abs(mean) * (x_relative + 2));
    const double logs = std::abs(std::log(x_sum)) + std::abs(std::log(y_sum));
    expected.loss_tolerance += weight * (mean_error + kUnit * (x_relative + y_relative + 4 * logs + 4));
    for (std::size_t v = 0; v < x.size(); ++v) {
      const double a = x[v] - x_max, b = y[v] - y_max, d = a - b, p = std::exp(a) / x_sum;
      const std::size_t i = static_cast<std::size_t>(row) * x.size() + v;
      if (p == 0) continue;
      const double relative = kUnit * (8 + 2 * std::abs(a) + x_relative);
      const double error =
          weight * p *
          (relative * std::abs(d - mean) + kUnit * (2.5 * (std::abs(a) + std::abs(b)) + 2 * std::abs(d)) + mean_error +
           kUnit * std::abs(mean));
      expected.grad_tolerance[i] = error + unit_roundoff(grad_dtype) * (std::abs(expected.grad[i]) + error);
      // The oracle's own roundings, in double.
      expected.grad_tolerance[i] += weight * p * 0x1p-45 * (16 + std::abs(x[v]) + std::abs(y[v]));
      // p may be flushed where it leaves fp32's normal numbers.
      if (p < 1e-36) expected.grad_tolerance[i] += 2 * weight * p * (std::abs(d) + std::abs(mean));
    }
  }
  for (double& tolerance : expected.grad_tolerance) tolerance += subnormal_roundoff(grad_dtype) + 0x1p-149;
  return expected;
}

void compare(const Case& c, const Expected& expected, Data& data) {
  const double loss = data.loss.get(0);
  if (std::isfinite(expected.loss)) {
    EXPECT_LE(std::abs(loss - expected.loss), expected.loss_tolerance) << "loss " << loss << " for " << expected.loss;
  } else if (std::isnan(expected.loss)) {
    EXPECT_TRUE(std::isnan(loss)) << "loss " << loss << " for NaN";
  } else {
    EXPECT_EQ(loss, expected.loss);
  }
  if (c.gradient == Gradient::kNone) return;
  const Tensor& grad = c.gradient == Gradient::kInPlace ? data.student : data.grad;
  int failures = 0;
  for (std::int64_t i = 0; i < data.rows * data.vocab && failures < 5; ++i) {
    const double want = expected.grad[static_cast<std::size_t>(i)], got = grad.get(i);
    const double tolerance = expected.grad_tolerance[static_cast<std::size_t>(i)];
    const bool right = !data.valid(i / data.vocab) ? grad.bits_zero(i)
                       : std::isnan(want)          ? std::isnan(got)
                       : std::isinf(want)          ? got == want
                                                   : std::abs(got - want) <= tolerance;
    if (right) continue;
    ADD_FAILURE() << "gradient (" << i / data.vocab << ", " << i % data.vocab << ") is " << got << ", expected " << want
                  << " +- " << tolerance << (data.valid(i / data.vocab) ? "" : ", the row being masked");
    ++failures;
  }
}

// Runs what `data` holds twice, compares with the oracle and once with the other.
void check(const Case& c, const Backend& backend, Data data) {
  const Expected expected = expectation(data, c.student);
  Workspace workspace(backend);
  const UseBackend use(backend);
  Data again = data;
  const Status status = data.run(c, backend, workspace);
  ASSERT_TRUE(status.ok()) << status.message();
  if (c.gradient == Gradient::kInPlace) {
    data.student.expect_only_elements_changed("student_logits");
  } else {
    data.student.expect_unchanged("student_logits");
  }
  data.teacher.expect_unchanged("teacher_logits");
  data.mask.expect_unchanged("completions_mask");
  data.loss.expect_only_elements_changed("loss");
  if (c.gradient == Gradient::kOwn) data.grad.expect_only_elements_changed("grad");
  workspace.expect_intact();
  compare(c, expected, data);

  again.loss.set(0, 1);
  ASSERT_TRUE(again.run(c, backend, workspace).ok());
  EXPECT_TRUE(data.loss.bytes() == again.loss.bytes()) << "another loss the second time";
  EXPECT_TRUE(data.grad.bytes() == again.grad.bytes()) << "another gradient the second time";
  EXPECT_TRUE(data.student.bytes() == again.student.bytes()) << "another in-place gradient the second time";
}

void check(const Case& c, const Backend& backend, Random& random) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  check(c, backend, Data(c, random));
}

TEST(ReverseKlSmall, Shapes) {
  constexpr std::int64_t kShapes[][3] = {
      {1, 1, 1},    {2, 3, 1},                   // one logit: no divergence, no gradient
      {1, 1, 2},    {1, 3, 7},    {2, 2, 15},    // less than a vector
      {1, 2, 16},   {3, 1, 17},   {1, 2, 31},    // around AVX-512's vectors
      {2, 2, 61},   {1, 5, 127},                 // odd V: rows are misaligned
      {1, 2, 1023}, {1, 1, 1024}, {1, 2, 1025},  // around a tile of the CPU and a thread block's width
      {1, 1, 4099},                              // several tiles and a rest
  };
  Random random(21);
  for (const Backend& backend : all_backends()) {
    for (const auto& shape : kShapes) {
      for (Gradient gradient : {Gradient::kNone, Gradient::kOwn, Gradient::kInPlace}) {
        for (DType dtype : kFloats) {
          Case c;
          c.outer = shape[0];
          c.inner = shape[1];
          c.vocab = shape[2];
          c.gradient = gradient;
          c.student = c.teacher = dtype;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(ReverseKl, Shapes) {
  using Shape = std::array<std::int64_t, 3>;
  const std::vector<Shape> native = {
      {1, 1, 16385},  {1, 3, 32768},   // one part of a row and one logit, two parts
      {2, 2, 50257},                   // GPT-2's vocabulary: odd, so rows are misaligned
      {1, 2, 151936}, {1, 1, 248320},  // few big rows, which threads share
      {2, 9, 32000},                   // enough rows for whole ones
      {3, 67, 97},    {1, 300, 33},    // more rows than chunks
      {1, 70001, 2},  {66000, 1, 3},   // more rows than a grid has in y
  };
  // Rows that one block of the small devices keeps, that two and more share, and that all cannot keep; more rows than
  // blocks.
  const std::vector<Shape> emulated = {{1, 3, 800},   {2, 1, 2100}, {1, 2, 7001}, {1, 5, 13000},
                                       {1, 1, 61000}, {3, 27, 33},  {40, 1, 3}};
  const auto shapes = sized(native, emulated);
  Random random(22);
  for (const Backend& backend : device_backends()) {
    for (const auto& shape : shapes) {
      for (DType dtype : kFloats) {
        Case c;
        c.outer = shape[0];
        c.inner = shape[1];
        c.vocab = shape[2];
        c.gradient = random.pick({Gradient::kOwn, Gradient::kInPlace});
        c.valid = random.pick({1.0, 0.6});
        c.student = c.teacher = dtype;
        check(c, backend, random);
      }
    }
  }
}

// Places for what warps and blocks tell each other come round every few rows; here each group has more of them. On the
// small emulated devices parts of 1000 logits are kept until their gradient is written, those of 3500 are read again.
TEST(ReverseKl, ManyRowsAGroup) {
  struct Shape {
    std::int64_t rows, vocab;
    Gradient gradient;
  };
  // Without a gradient the smallest emulated device shares a row of 3,072 logits between 2 blocks, of 9,216 between 6.
  const std::vector<Shape> native = {{64, 250000, Gradient::kOwn}, {200, 250000, Gradient::kNone}};
  const std::vector<Shape> emulated = {{50, 3500, Gradient::kNone},    {30, 9300, Gradient::kNone},
                                       {42, 1000, Gradient::kNone},    {42, 1000, Gradient::kOwn},
                                       {42, 1000, Gradient::kInPlace}, {20, 3500, Gradient::kNone},
                                       {20, 3500, Gradient::kOwn},     {20, 3500, Gradient::kInPlace}};
  Random random(37);
  for (const Backend& backend : device_backends()) {
    if (!backend.cuda()) continue;  // a CPU has no groups
    for (const Shape& shape : sized(native, emulated)) {
      Case c;
      c.inner = shape.rows;
      c.vocab = shape.vocab;
      c.valid = 1;
      c.gradient = shape.gradient;
      c.student = c.teacher = sized(DType::kBFloat16, DType::kFloat32);
      check(c, backend, random);
    }
  }
}

// More rows than a block keeps the mask of in shared memory.
TEST(ReverseKlSmall, ManyMaskedRows) {
  Random random(41);
  for (const Backend& backend : all_backends()) {
    for (const std::int64_t outer : {1, 2}) {
      Case c;
      c.outer = outer;
      c.inner = 8300 / outer;
      c.vocab = 3;
      c.valid = 0.05;
      if (outer > 1) c.mask_layout = Layout::kSliced;  // else (outer, inner) would be one dimension
      check(c, backend, random);
    }
  }
}

TEST(ReverseKlSmall, DtypesMixed) {
  Random random(23);
  for (const Backend& backend : all_backends()) {
    for (DType student : kFloats) {
      for (DType teacher : kFloats) {
        for (Gradient gradient : {Gradient::kNone, Gradient::kOwn, Gradient::kInPlace}) {
          Case c;
          c.outer = 2;
          c.inner = 2;
          c.vocab = random.integer(2, 1500);
          c.student = student;
          c.teacher = teacher;
          c.gradient = gradient;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(ReverseKlSmall, Masks) {
  Random random(24);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kMasks) {
      for (double valid : {1.0, 0.0, 0.5}) {
        Case c;
        c.outer = 3;
        c.inner = 5;
        c.vocab = 40;
        c.flat = random.chance(0.3);
        c.mask = dtype;
        c.mask_layout = random.pick(kLayouts);
        c.valid = valid;
        Data data(c, random);
        SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
        check(c, backend, data);
        if (valid > 0) continue;
        Workspace workspace(backend);
        const UseBackend use(backend);
        ASSERT_TRUE(data.run(c, backend, workspace).ok());
        EXPECT_TRUE(data.loss.bits_zero(0));
      }
    }
  }
}

TEST(ReverseKlSmall, Layouts) {
  Random random(25);
  for (const Backend& backend : all_backends()) {
    for (Layout layout : kLayouts) {
      for (DType dtype : kFloats) {
        for (bool flat : {false, true}) {
          Case c;
          c.outer = 2;
          c.inner = 3;
          c.vocab = random.integer(2, 700);
          c.flat = flat;
          c.student = c.teacher = dtype;
          c.student_layout = c.teacher_layout = layout;
          c.grad_layout = random.pick(kWritableLayouts);
          check(c, backend, random);
          c.student_layout = random.pick(kWritableLayouts);
          c.gradient = Gradient::kInPlace;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(ReverseKlSmall, BannedTokens) {
  Random random(26);
  for (const Backend& backend : all_backends()) {
    for (Banned banned : {Banned::kBoth, Banned::kStudent}) {
      for (DType dtype : kFloats) {
        for (std::int64_t vocab : {3, 50, 2300}) {
          Case c;
          c.inner = 9;
          c.vocab = vocab;
          c.banned = banned;
          c.student = c.teacher = dtype;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(ReverseKl, Fuzz) {
  Random random(27);
  for (int i = 0; i < sized(120, 60); ++i) {
    Case c;
    c.flat = random.chance(0.3);
    c.outer = random.log_integer(1, 20);
    c.inner = random.log_integer(1, 40);
    c.vocab = random.log_integer(1, std::max<std::int64_t>(2, sized(60000, 12000) / (c.outer * c.inner)));
    c.student = random.pick(kFloats);
    c.teacher = random.chance(0.5) ? c.student : random.pick(kFloats);
    c.mask = random.pick(kMasks);
    c.gradient = random.pick({Gradient::kNone, Gradient::kOwn, Gradient::kInPlace});
    if (random.chance(0.3)) c.student_layout = random.pick(kWritableLayouts);
    if (random.chance(0.3)) c.teacher_layout = random.pick(kLayouts);
    if (random.chance(0.3)) c.mask_layout = random.pick(kLayouts);
    if (random.chance(0.3)) c.grad_layout = random.pick(kWritableLayouts);
    c.banned = random.pick({Banned::kNone, Banned::kNone, Banned::kBoth, Banned::kStudent});
    c.valid = random.pick({1.0, 0.5});
    c.scale = random.pick({0.1, 2.0, 20.0});
    c.spread = random.pick({0.0, 0.01, 0.5, 5.0});
    if (!kEmulated) {
      for (const Backend& backend : device_backends()) check(c, backend, random);
    }
    check(c, all_backends()[static_cast<std::size_t>(i) % all_backends().size()], random);
  }
}

// Logits that make running maxima move: every tile starts over, or everything but the last tiles vanishes.
TEST(ReverseKlSmall, MovingMaxima) {
  Random random(28);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      for (double slope : {0.02, -0.02, 0.2, -0.2}) {
        for (double teacher_slope : {slope, -slope, 0.0}) {
          Case c;
          c.vocab = 5000;
          c.valid = 1;
          c.student = c.teacher = dtype;
          Data data(c, random);
          data.student.fill([&](std::int64_t v) { return slope * static_cast<double>(v) + random.normal(); });
          data.teacher.fill([&](std::int64_t v) { return teacher_slope * static_cast<double>(v) + random.normal(); });
          SCOPED_TRACE(::testing::Message() << backend << " " << dtype_name(dtype) << " slope " << slope << " "
                                            << teacher_slope << ", seed " << test_seed());
          check(c, backend, data);
        }
      }
    }
  }
}

// A common offset of all logits changes nothing; it must not cost precision either.
TEST(ReverseKlSmall, Offsets) {
  Random random(29);
  for (const Backend& backend : all_backends()) {
    for (double offset : {1e3, -1e4, 3e4}) {
      Case c;
      c.vocab = 3000;
      c.valid = 1;
      Data data(c, random);
      data.student.fill([&](std::int64_t) { return offset + 2 * random.normal(); });
      data.teacher.fill([&](std::int64_t v) { return data.student.get(v) - 2 * offset + 0.3 * random.normal(); });
      SCOPED_TRACE(::testing::Message() << backend << " offset " << offset << ", seed " << test_seed());
      check(c, backend, data);
    }
  }
}

// Infinities and NaN in valid rows, where the tiles of the CPU and the blocks of the GPU begin and elsewhere.
TEST(ReverseKlSmall, NonFiniteLogits) {
  struct Special {
    const char* what;
    double student, teacher, expected_loss;  // NaN: by the oracle
  };
  const Special kSpecials[] = {{"NaN in the student", kNan, 0, kNan},
                               {"NaN in the teacher", 0, kNan, kNan},
                               {"NaN in the teacher where the student has no mass", -kInf, kNan, kNan},
                               {"+inf in the student", kInf, 0, kNan},
                               {"+inf in the teacher", 0, kInf, kNan},
                               {"-inf in the teacher alone", 0, -kInf, kInf}};
  for (const Backend& backend : all_backends()) {
    for (const Special& special : kSpecials) {
      for (std::int64_t where : {0, 1023, 1024, 2500, 2999}) {
        for (Gradient gradient : {Gradient::kNone, Gradient::kOwn}) {
          Random random(30);
          Case c;
          c.inner = 2;
          c.vocab = 3000;
          c.valid = 1;
          c.gradient = gradient;
          Data data(c, random);
          data.student.set(c.vocab + where, special.student);
          data.teacher.set(c.vocab + where, special.teacher);
          const std::int64_t banned = c.vocab + (where + 1) % c.vocab;
          if (special.expected_loss == kInf) data.student.set(banned, -kInf);
          SCOPED_TRACE(::testing::Message() << backend << " " << special.what << " at " << where);
          const Expected expected = expectation(data, c.student);
          Workspace workspace(backend);
          const UseBackend use(backend);
          ASSERT_TRUE(data.run(c, backend, workspace).ok());
          const double loss = data.loss.get(0);
          EXPECT_TRUE(std::isnan(special.expected_loss) ? std::isnan(loss) : loss == special.expected_loss) << loss;
          if (gradient == Gradient::kNone) continue;
          for (std::int64_t v = 0; v < c.vocab; ++v) {  // the other row is as it should be
            const auto i = static_cast<std::size_t>(v);
            ASSERT_NEAR(data.grad.get(v), expected.grad[i], expected.grad_tolerance[i]);
          }
          // A banned token has no gradient even beside an infinite divergence.
          if (special.expected_loss == kInf) {
            ASSERT_EQ(data.grad.get(banned), 0);
          }
          for (std::int64_t v = 0; v < c.vocab; v += 7) {  // and this one says that something is wrong
            // Beside -inf, and +inf, the student has no mass and no gradient.
            if (data.student.get(c.vocab + v) == -kInf || (special.student == kInf && v != where)) continue;
            ASSERT_FALSE(std::isfinite(data.grad.get(c.vocab + v))) << v;
          }
        }
      }
    }
  }
}

// -inf in whole stretches, so that some tiles, parts or threads have no finite logit at all.
TEST(ReverseKlSmall, BannedStretches) {
  for (const Backend& backend : all_backends()) {
    for (std::int64_t kept : {0, 1500, 4095, 4999}) {
      for (bool teacher_too : {false, true}) {
        Random random(31);
        Case c;
        c.vocab = 5000;
        c.valid = 1;
        Data data(c, random);
        for (std::int64_t v = 0; v < c.vocab; ++v) {
          if (v / 8 == kept / 8) continue;
          data.student.set(v, -kInf);
          if (teacher_too) data.teacher.set(v, -kInf);
        }
        SCOPED_TRACE(::testing::Message() << backend << " kept " << kept << " " << teacher_too);
        check(c, backend, data);
      }
    }
    // Mass that is gone by the end: the teacher bans a token that at first has all of the student's mass, and in the
    // end less than fp32 can say.
    Random random(32);
    Case c;
    c.vocab = 3000;
    c.valid = 1;
    Data data(c, random);
    data.student.set(0, 10);
    data.teacher.set(0, -kInf);
    data.student.set(2900, 1000);
    SCOPED_TRACE(::testing::Message() << backend << " mass that is gone");
    check(c, backend, data);
    // All of a row: log_softmax is NaN there.
    for (bool student : {true, false}) {
      Data all(c, random);
      (student ? all.student : all.teacher).fill([](std::int64_t) { return -kInf; });
      Workspace workspace(backend);
      const UseBackend use(backend);
      ASSERT_TRUE(all.run(c, backend, workspace).ok());
      EXPECT_TRUE(std::isnan(all.loss.get(0))) << backend << " all of the " << (student ? "student" : "teacher");
    }
  }
}

TEST(ReverseKlSmall, EqualLogitsGiveZero) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      Random random(33);
      Case c;
      c.inner = 2;
      c.vocab = 777;
      c.valid = 1;
      c.student = c.teacher = dtype;
      Data data(c, random);
      data.teacher.fill([&](std::int64_t i) { return data.student.get(i); });
      Workspace workspace(backend);
      const UseBackend use(backend);
      ASSERT_TRUE(data.run(c, backend, workspace).ok());
      // The same arithmetic on both sides, so that everything cancels exactly, or nearly so.
      EXPECT_NEAR(data.loss.get(0), 0, 1e-7);
      for (std::int64_t i = 0; i < data.rows * data.vocab; ++i) ASSERT_NEAR(data.grad.get(i), 0, 1e-7);
    }
  }
}

// The header's count: 993 kB forward and 1490 kB fused a valid row of 248320 bf16 logits, 497 kB a masked one.
TEST(ReverseKlSmall, FloorBytes) {
  Problem p;
  p.outer = 2, p.inner = 3, p.vocab = 248320;
  p.student = p.teacher = {nullptr, 3 * p.vocab, p.vocab, 1, DType::kBFloat16};
  p.mask = {nullptr, 3, 1, DType::kBool};
  const std::int64_t row = 2 * p.vocab;
  EXPECT_EQ(row, 496640);
  EXPECT_EQ(floor_bytes(p, 6), 6 + 6 * 2 * row + 4);
  EXPECT_EQ(floor_bytes(p, 1), 6 + 2 * row + 4);
  float grad;
  p.grad = p.student;
  p.grad.data = &grad;
  EXPECT_EQ(floor_bytes(p, 6), 6 + 6 * 3 * row + 4);
  EXPECT_EQ(floor_bytes(p, 0), 6 + 6 * row + 4);
  p.teacher.stride_outer = 0;  // three rows, for six
  EXPECT_EQ(floor_bytes(p, 6), 6 + 6 * row + 3 * row + 6 * row + 4);
}

TEST(ReverseKlSmall, Empty) {
  for (const Backend& backend : all_backends()) {
    for (Gradient gradient : {Gradient::kNone, Gradient::kOwn, Gradient::kInPlace}) {
      for (const auto& [outer, inner] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {5, 0}, {0, 0}}) {
        for (bool flat : {false, true}) {
          Random random(34);
          Case c;
          c.outer = outer;
          c.inner = flat ? 0 : inner;
          c.vocab = 9;
          c.flat = flat;
          c.gradient = gradient;
          Data data(c, random);
          Workspace workspace(backend);
          const UseBackend use(backend);
          const Status status = data.run(c, backend, workspace);
          ASSERT_TRUE(status.ok()) << status.message();
          EXPECT_TRUE(data.loss.bits_zero(0)) << backend;
        }
      }
    }
  }
}

// A row's gradient does not depend on the rows beside it: with a power of two of copies it is that much smaller.
TEST(ReverseKl, RowsDoNotInfluenceEachOther) {
  for (const Backend& backend : all_backends()) {
    for (std::int64_t vocab : {1000, sized(40000, 5000)}) {
      Random random(35);
      Case one;
      one.vocab = vocab;
      one.valid = 1;
      Case eight = one;
      eight.inner = 8;
      Data single(one, random), several(eight, random);
      for (std::int64_t v = 0; v < vocab; ++v) {
        several.student.set(5 * vocab + v, single.student.get(v));
        several.teacher.set(5 * vocab + v, single.teacher.get(v));
      }
      Workspace workspace(backend);
      const UseBackend use(backend);
      ASSERT_TRUE(single.run(one, backend, workspace).ok());
      ASSERT_TRUE(several.run(eight, backend, workspace).ok());
      for (std::int64_t v = 0; v < vocab; ++v) {
        ASSERT_EQ(single.grad.get(v), 8 * several.grad.get(5 * vocab + v)) << backend << " " << v;
      }
    }
  }
}

TEST(ReverseKl, SeveralThreadsAtOnce) {
  for (const Backend& backend : device_backends()) {
    const auto make = [&](int thread) {
      Case c;
      c.inner = 2 + 3 * thread;
      c.vocab = sized(20000, 2000);
      Random random(200 + thread);
      return std::pair(c, Data(c, random));
    };
    constexpr int kThreads = 4;
    std::vector<std::vector<std::uint8_t>> losses(kThreads), grads(kThreads);
    std::vector<std::thread> threads;
    for (int repetition = 0; repetition < 2; ++repetition) {  // first one after the other, then at once
      for (int i = 0; i < kThreads; ++i) {
        const auto work = [&, i, repetition] {
          for (int k = 0; k < 1 + sized(5, 2) * repetition; ++k) {
            auto [c, data] = make(i);
            Workspace workspace(backend);
            const UseBackend use(backend);
            EXPECT_TRUE(data.run(c, backend, workspace).ok());
            if (repetition == 0) {
              losses[i] = data.loss.bytes();
              grads[i] = data.grad.bytes();
            }
            EXPECT_TRUE(losses[i] == data.loss.bytes());
            EXPECT_TRUE(grads[i] == data.grad.bytes());
          }
        };
        if (repetition == 0) {
          work();
        } else {
          threads.emplace_back(work);
        }
      }
    }
    for (std::thread& thread : threads) thread.join();
  }
}

// The CPU's result is bitwise the same whatever cuts and runs its work: whole rows or parts of rows.
TEST(ReverseKl, ThreadsDoNotChangeResults) {
  if (kEmulated) GTEST_SKIP() << "of the CPU";
  for (const auto& [rows, vocab] : {std::pair<std::int64_t, std::int64_t>{1, 100000}, {3, 50000}, {300, 500}}) {
    Case c;
    c.inner = rows;
    c.vocab = vocab;
    const Backend& cpu = device_backends()[0];
    const auto run = [&] {
      Random random(36);
      Data data(c, random);
      Workspace workspace(cpu);
      EXPECT_TRUE(data.run(c, cpu, workspace).ok());
      return std::pair(data.loss.bytes(), data.grad.bytes());
    };
    expect_threads_change_nothing(run);
  }
}

}  // namespace
}  // namespace strop::reverse_kl
