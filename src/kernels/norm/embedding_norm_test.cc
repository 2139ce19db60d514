// Sums of embeddings, normalised, against the oracle, on every backend: what norm_test.cc, whose kernels they share,
// does not see. Suites whose name contains Small use small shapes only, so that they also run under slow tools
// (compute-sanitizer).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/norm/norm.h"
#include "strop/norm.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::norm {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kUnit = 0x1p-24;

struct Case {
  int tables = 3;
  std::int64_t rows = 1, n = 1;
  DType dtype = DType::kFloat32, weight_dtype = DType::kFloat32, id_dtype = DType::kInt64;
  Layout table_layout{}, id_layout{}, out_layout{};
  bool sum = false, weight = true, bias = true;
  double eps = 1e-12;  // BERT's

  // Rows of table k: words, positions, token types.
  std::int64_t size(int k) const { return k == 0 ? 23 : k == 1 ? 11 : 2; }
  std::string text() const {
    std::ostringstream out;
    out << tables << " tables, (" << rows << ", " << n << ") " << dtype_name(dtype) << " " << layout_name(table_layout)
        << ", ids " << dtype_name(id_dtype) << " " << layout_name(id_layout) << ", weight " << weight << " "
        << dtype_name(weight_dtype) << ", bias " << bias << ", out " << layout_name(out_layout) << ", sum " << sum
        << " eps " << eps;
    return out.str();
  }
};

struct Data {
  std::vector<Tensor> tables, ids;
  Tensor weight, bias, out, sum;

  Data(const Case& c, Random& random)
      : weight(c.weight_dtype, {c.n}),
        bias(c.weight_dtype, {c.n}),
        out(c.dtype, {c.rows, c.n}, c.out_layout),
        sum(c.dtype, {c.rows, c.n}, c.out_layout) {
    for (int k = 0; k < c.tables; ++k) {
      tables.emplace_back(c.dtype, std::vector{c.size(k), c.n}, c.table_layout);
      tables.back().fill([&](std::int64_t) { return random.normal(); });
      ids.emplace_back(c.id_dtype, std::vector{c.rows}, c.id_layout);
      ids.back().fill([&](std::int64_t) { return static_cast<double>(random.integer(0, c.size(k) - 1)); });
    }
    weight.fill([&](std::int64_t) { return 1 + 0.5 * random.normal(); });
    bias.fill([&](std::int64_t) { return random.normal(); });
  }

  Status run(const Case& c, const Backend& backend) {
    EmbeddingInputs in;
    for (int k = 0; k < c.tables; ++k) in.tables[k] = tables[k].on(backend), in.ids[k] = ids[k].on(backend);
    if (c.weight) in.weight = weight.on(backend);
    if (c.bias) in.bias = bias.on(backend);
    NormOutputs to{out.on(backend), {}};
    if (c.sum) to.residual_out = sum.on(backend);
    const Status status = embedding_norm(in, c.eps, to);
    synchronize(backend);
    out.fetch();
    if (c.sum) sum.fetch();
    return status;
  }

  // Without the library: plain loops in double. Tolerances as norm_test.cc derives them, with a sum of two roundings of
  // at most the terms' magnitudes.
  void check(const Case& c) const {
    int failures = 0;
    const auto expect = [&](const char* what, std::int64_t i, double got, double want, double tolerance) {
      if (std::isnan(want) ? std::isnan(got) : std::abs(got - want) <= tolerance) return;
      if (++failures < 5) {
        ADD_FAILURE() << what << " (" << i / c.n << ", " << i % c.n << ") is " << got << ", expected " << want << " +- "
                      << tolerance;
      }
    };
    std::vector<double> s(static_cast<std::size_t>(c.n)), magnitude(s.size());
    for (std::int64_t row = 0; row < c.rows; ++row) {
      double mean = 0, squares = 0, largest = 0;
      for (std::int64_t i = 0; i < c.n; ++i) {
        double& value = s[static_cast<std::size_t>(i)];
        double& size = magnitude[static_cast<std::size_t>(i)];
        value = size = 0;
        for (int k = 0; k < c.tables; ++k) {
          const auto id = static_cast<std::int64_t>(ids[k].get(row));
          const bool there = id >= 0 && id < c.size(k);
          const double term = there ? tables[k].get(id * c.n + i) : std::numeric_limits<double>::quiet_NaN();
          value += term, size += std::abs(term);
        }
        mean += value / static_cast<double>(c.n);
        largest = std::max(largest, size);
      }
      for (const double value : s) squares += (value - mean) * (value - mean);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(c.n) + static_cast<float>(c.eps));
      const double of_sum = c.tables > 1 ? 2 * largest * scale : 0;
      for (std::int64_t i = 0; i < c.n; ++i) {
        const double value = s[static_cast<std::size_t>(i)], z = (value - mean) * scale;
        const double w = c.weight ? weight.get(i) : 1, want = z * w + (c.bias ? bias.get(i) : 0);
        const double error =
            kUnit * (std::abs(w) * (49 * std::abs(z) + 64 + of_sum * (2 + std::abs(z))) + std::abs(want));
        expect("out", row * c.n + i, out.get(row * c.n + i), want,
               error + unit_roundoff(c.dtype) * (std::abs(want) + error) + subnormal_roundoff(c.dtype));
        if (!c.sum) continue;
        const double rounded = 2 * kUnit * magnitude[static_cast<std::size_t>(i)];
        expect("sum", row * c.n + i, sum.get(row * c.n + i), value,
               rounded + unit_roundoff(c.dtype) * (std::abs(value) + rounded) + subnormal_roundoff(c.dtype));
      }
    }
  }
};

void check(const Case& c, const Backend& backend, Data data) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  const UseBackend use(backend);
  Data again = data;
  const Status status = data.run(c, backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.out.expect_only_elements_changed("out");
  if (c.sum) data.sum.expect_only_elements_changed("sum");
  for (const Tensor& table : data.tables) table.expect_unchanged("a table");
  for (const Tensor& ids : data.ids) ids.expect_unchanged("ids");
  data.check(c);
  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.out.bytes() == again.out.bytes()) << "another result the second time";
}

void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

TEST(EmbeddingNormSmall, Shapes) {
  // One element; less than a vector; a warp's row, dense and not (BERT, MiniLM); a block's; one that no block holds.
  constexpr std::int64_t kShapes[][2] = {{1, 1}, {5, 3}, {9, 64}, {3, 100}, {4, 384}, {3, 768}, {2, 1096}, {2, 1301}};
  Random random(61);
  for (const Backend& backend : all_backends()) {
    for (const auto& shape : kShapes) {
      for (DType dtype : kFloats) {
        Case c;
        c.tables = static_cast<int>(random.integer(1, 3));
        c.rows = shape[0], c.n = shape[1];
        c.dtype = dtype, c.weight_dtype = random.pick(kFloats);
        c.id_dtype = random.chance(0.5) ? DType::kInt32 : DType::kInt64;
        c.sum = random.chance(0.5), c.weight = random.chance(0.8), c.bias = random.chance(0.8);
        check(c, backend, random);
      }
    }
  }
}

TEST(EmbeddingNorm, LongRows) {
  Random random(62);
  for (const Backend& backend : device_backends()) {
    for (std::int64_t n : {16392, 8195}) {  // dense and not: read once a pass
      Case c;
      c.rows = 2, c.n = n;
      c.dtype = DType::kFloat16;
      c.sum = true;
      check(c, backend, random);
    }
  }
}

TEST(EmbeddingNormSmall, Layouts) {
  Random random(63);
  for (const Backend& backend : all_backends()) {
    for (Layout layout : kLayouts) {
      for (DType id_dtype : {DType::kInt32, DType::kInt64}) {
        Case c;
        c.rows = 6, c.n = sized(61, 24);
        c.dtype = random.pick(kFloats);
        c.id_dtype = id_dtype;
        c.sum = true;
        c.table_layout = layout;
        check(c, backend, random);
        c.table_layout = {};
        // Token types are usually one 0 for all: a stride of 0.
        if (layout != Layout::kTransposed) c.id_layout = layout;
        check(c, backend, random);
        if (std::find(std::begin(kWritableLayouts), std::end(kWritableLayouts), layout) != std::end(kWritableLayouts)) {
          c.id_layout = {};
          c.out_layout = layout;
          check(c, backend, random);
        }
      }
    }
  }
}

// More rows than a grid takes at once, and many of them the same.
TEST(EmbeddingNorm, ManyRows) {
  Random random(64);
  for (const Backend& backend : device_backends()) {
    Case c;
    c.rows = sized(50000, 1300), c.n = sized(48, 8);
    c.dtype = DType::kBFloat16;
    check(c, backend, random);
  }
}

// An id that names no row: an error on the CPU, and nothing is written; NaN in its row alone on CUDA, and no memory is
// read for it.
TEST(EmbeddingNormSmall, IdsOutside) {
  for (const Backend& backend : all_backends()) {
    for (DType id_dtype : {DType::kInt32, DType::kInt64}) {
      for (std::int64_t n : {40, 41, 1040}) {
        for (int k = 0; k < 3; ++k) {
          for (std::int64_t id : {std::int64_t{-1}, Case().size(k), std::int64_t{1} << 30}) {
            Random random(65);
            Case c;
            c.rows = 4, c.n = n;
            c.id_dtype = id_dtype;
            c.sum = true;
            Data data(c, random);
            data.ids[k].set(2, static_cast<double>(id));
            if (backend.cuda()) {
              check(c, backend, data);
              continue;
            }
            const UseBackend use(backend);
            const Status status = data.run(c, backend);
            EXPECT_EQ(status.code(), StatusCode::kValueError);
            const std::string name = std::to_string(k);
            EXPECT_EQ(status.message(), "ids[" + name + "]: expected ids from 0 to " + std::to_string(c.size(k) - 1) +
                                            ", the rows of tables[" + name + "], got " + std::to_string(id) + " at 2");
            data.out.expect_unchanged("out");
            data.sum.expect_unchanged("sum");
          }
        }
      }
    }
  }
}

TEST(EmbeddingNormSmall, NoRows) {
  for (const Backend& backend : all_backends()) {
    Random random(66);
    Case c;
    c.rows = 0, c.n = 9;
    check(c, backend, random);
  }
}

// A row has the same bits alone and among others.
TEST(EmbeddingNormSmall, RowsDoNotInfluenceEachOther) {
  for (const Backend& backend : all_backends()) {
    for (std::int64_t n : {40, 1304}) {
      Random random(67);
      Case several;
      several.rows = 7, several.n = n;
      Case one = several;
      one.rows = 1;
      Data among(several, random), alone(one, random);
      alone.tables = among.tables, alone.weight = among.weight, alone.bias = among.bias;
      for (int k = 0; k < 3; ++k) alone.ids[k].set(0, among.ids[k].get(5));
      const UseBackend use(backend);
      ASSERT_TRUE(alone.run(one, backend).ok());
      Data later = among;  // tensors share device memory with their copies
      ASSERT_TRUE(later.run(several, backend).ok());
      for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(alone.out.get(i), later.out.get(5 * n + i)) << backend << i;
    }
  }
}

TEST(EmbeddingNormSmall, FloorBytes) {
  Problem p;
  float f[1];
  p.rows = 4096, p.n = 768;
  p.dtype = DType::kFloat16;
  p.out = {f, 768, 1};
  p.terms[0] = {{f, 768, 1}, {{f, 1, true}, 30522}};
  p.terms[1] = {{f, 768, 1}, {{f, 0, false}, 2}};
  EXPECT_EQ(floor_bytes(p), 4096 * 768 * 2 + 2 * 768 * 2 + 4096 * 8 + 4);
}

struct Mistake {
  std::function<void(EmbeddingInputs&, NormOutputs&, double&)> make;
  StatusCode code;
  std::string message;  // a part of it
};

const Mistake kMistakes[] = {
    {[](auto& in, auto&, auto&) { in.tables[0] = {}; }, StatusCode::kValueError, "tables[0]: expected shape (V, n)"},
    {[](auto& in, auto&, auto&) { in.tables[1].dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "tables[1]: expected float32 like tables[0], got float16"},
    {[](auto& in, auto&, auto&) { in.tables[2].dtype = DType::kInt64; }, StatusCode::kTypeError,
     "tables[2]: expected float32, float16 or bfloat16"},
    {[](auto& in, auto&, auto&) { in.tables[1].shape[1] = 6; }, StatusCode::kValueError,
     "tables[1]: expected rows of 7 elements like tables[0], got shape (11, 6)"},
    {[](auto& in, auto&, auto&) { in.tables[1] = {}, in.ids[1] = {}; }, StatusCode::kValueError,
     "tables[2]: expected none, as tables[1] is none"},
    {[](auto& in, auto&, auto&) { in.tables[2] = {}; }, StatusCode::kValueError,
     "ids[2]: expected none, as tables[2] is none"},
    {[](auto& in, auto&, auto&) { in.ids[0].dtype = DType::kFloat32; }, StatusCode::kTypeError,
     "ids[0]: expected int32 or int64, got float32"},
    {[](auto& in, auto&, auto&) { in.ids[1] = {}; }, StatusCode::kTypeError, "ids[1]: expected"},
    {[](auto& in, auto&, auto&) { in.ids[1].shape[0] = 3; }, StatusCode::kValueError,
     "ids[1]: expected shape (4,) like ids[0], got (3,)"},
    {[](auto& in, auto&, auto&) { in.ids[2].rank = 2; }, StatusCode::kValueError, "ids[2]: expected shape (R,)"},
    {[](auto& in, auto&, auto&) { in.ids[2].device = DeviceType::kOther; }, StatusCode::kValueError,
     "ids[2]: expected "},
    {[](auto& in, auto&, auto&) { in.weight.shape[0] = 4; }, StatusCode::kValueError, "weight: expected shape (7,)"},
    {[](auto& in, auto&, auto&) { in.bias.dtype = DType::kBool; }, StatusCode::kTypeError, "bias: expected float32"},
    {[](auto&, auto&, auto& eps) { eps = -1; }, StatusCode::kValueError, "eps: expected a finite number >= 0"},
    {[](auto&, auto& to, auto&) { to.out = {}; }, StatusCode::kValueError, "out: expected shape (4, 7)"},
    {[](auto& in, auto& to, auto&) { to.out.data = in.tables[0].data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with tables[0]"},
    {[](auto& in, auto& to, auto&) { to.residual_out.data = in.ids[1].data; }, StatusCode::kValueError,
     "residual_out: expected memory of its own, got memory shared with ids[1]"},
    {[](auto&, auto& to, auto&) { to.residual_out = to.out; }, StatusCode::kValueError,
     "residual_out: expected memory of its own, got memory shared with out"},
};

TEST(EmbeddingNormSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Random random(68);
      Case c;
      c.rows = 4, c.n = 7;
      Data data(c, random);
      EmbeddingInputs in;
      for (int k = 0; k < 3; ++k) in.tables[k] = data.tables[k].on(backend), in.ids[k] = data.ids[k].on(backend);
      in.weight = data.weight.on(backend), in.bias = data.bias.on(backend);
      NormOutputs to{data.out.on(backend), data.sum.on(backend)};
      double eps = 1e-5;
      mistake.make(in, to, eps);
      const Status status = embedding_norm(in, eps, to);
      expect_refused(status, mistake.code, mistake.message, backend, {&data.out, &data.sum});
    }
  }
}

}  // namespace
}  // namespace strop::norm
