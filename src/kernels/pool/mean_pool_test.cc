// Mean pooling against the oracle, on every backend. Suites whose name contains Small use small shapes only, so that
// they also run under slow tools (compute-sanitizer).
#include "kernels/pool/mean_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "strop/pool.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::pool {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kUnit = 0x1p-24;

struct Case {
  std::int64_t sequences = 1, length = 1, n = 1;  // packed: `length` is the longest sequence
  bool packed = false;
  DType dtype = DType::kFloat32, mask_dtype = DType::kInt64;  // packed: of cu
  Layout x_layout{}, mask_layout{}, out_layout{};
  double least = 1e-9;

  std::string text() const {
    std::ostringstream out;
    out << (packed ? "packed " : "padded ") << "(" << sequences << ", " << length << ", " << n << ") "
        << dtype_name(dtype) << " " << layout_name(x_layout) << ", " << (packed ? "cu " : "mask ")
        << dtype_name(mask_dtype) << " " << layout_name(mask_layout) << ", least " << least << ", out "
        << layout_name(out_layout);
    return out.str();
  }
};

// Tokens of a packed case, some sequences empty.
std::vector<std::int64_t> draw_ends(const Case& c, Random& random) {
  std::vector<std::int64_t> ends = {random.chance(0.3) ? 2 : 0};  // the first token need not be in a sequence
  for (std::int64_t b = 0; b < c.sequences; ++b)
    ends.push_back(ends.back() + (random.chance(0.2) ? 0 : random.integer(0, c.length)));
  return ends;
}

// `mask` is cu where the case is packed.
struct Data {
  Tensor x, mask, out;

  Data(const Case& c, Random& random) : out(c.dtype, {c.sequences, c.n}, c.out_layout) {
    if (c.packed) {
      const std::vector<std::int64_t> ends = draw_ends(c, random);
      x = Tensor(c.dtype, {ends.back() + random.integer(0, 2), c.n}, c.x_layout);
      mask = Tensor(c.mask_dtype, {c.sequences + 1}, c.mask_layout);
      mask.fill([&](std::int64_t i) { return static_cast<double>(ends[static_cast<std::size_t>(i)]); });
      x.fill([&](std::int64_t) { return random.normal(); });
      return;
    }
    x = Tensor(c.dtype, {c.sequences, c.length, c.n}, c.x_layout);
    mask = Tensor(c.mask_dtype, {c.sequences, c.length}, c.mask_layout);
    for (std::int64_t b = 0; b < c.sequences; ++b) {
      const double density = random.chance(0.2) ? 0 : random.uniform();
      for (std::int64_t l = 0; l < c.length; ++l)
        mask.set(b * c.length + l, random.chance(density) ? weight(c, random) : 0);
    }
    // NaN where nothing may be read; not in layouts in which elements of several tokens share memory.
    x.fill([&](std::int64_t i) {
      const bool read = mask.get(i / c.n) != 0 || x.expanded();
      return read ? random.normal() : std::numeric_limits<double>::quiet_NaN();
    });
  }

  // Whole numbers and fractions, of which float32 has all exactly; not of both signs, which might cancel.
  static double weight(const Case& c, Random& random) {
    switch (c.mask_dtype) {
      case DType::kBool:
        return 1;
      case DType::kFloat32:
      case DType::kFloat16:
      case DType::kBFloat16:
      case DType::kFloat64:
        return static_cast<double>(random.integer(1, 16)) / 8;
      default:
        return random.chance(0.5) ? 1 : static_cast<double>(random.integer(1, 127));
    }
  }

  Problem problem(const Case& c) {
    const TensorView v = x.host(), m = mask.host();
    Problem p;
    p.sequences = c.sequences, p.n = c.n;
    p.dtype = c.dtype;
    p.x = v.data;
    p.stride_sequence = c.packed ? 0 : v.strides[0];
    p.stride_token = v.strides[v.rank - 2], p.stride = v.strides[v.rank - 1];
    p.length = v.shape[v.rank - 2];
    p.least = static_cast<float>(c.least);
    if (c.packed) {
      p.cu = integers(m);
    } else {
      p.mask = {m.data, m.strides[0], m.strides[1], m.dtype};
    }
    return p;
  }

  Status run(const Case& c, const Backend& backend) {
    const TensorView from = x.on(backend), by = mask.on(backend), to = out.on(backend);
    const Status status = c.packed ? mean_pool_packed(from, by, c.least, to) : mean_pool(from, by, c.least, to);
    synchronize(backend);
    for (Tensor* tensor : {&x, &mask, &out}) tensor->fetch();
    return status;
  }
};

// The largest error that rounding explains. Of N tokens, a backend adds chains and then chains of chains: on CUDA N /
// 16 tokens at most, then 16 warps (of dense rows, N / 64, 2 shuffles and 16 warps), on the CPU 64 and then N / 64; no
// more than N additions in any case. Each chain step rounds once where the product is fused and twice where it is not:
// so many units of sum |w x|, and as many of the quotient for sum w, whose weights have one sign. A division and the
// rounding to the dtype follow.
double tolerance(const Case& c, const Problem& p, std::int64_t b, std::int64_t j, double want, Tensor& x,
                 Tensor& mask) {
  double size = 0, weights = 0;
  const Span span = span_of(p, b);
  const std::int64_t first = c.packed ? static_cast<std::int64_t>(mask.get(b)) : b * c.length;
  for (std::int64_t t = 0; t < span.n; ++t) {
    const double w = c.packed ? 1 : mask.get(b * c.length + t);
    if (w == 0) continue;
    size += w * std::abs(x.get((first + t) * c.n + j)), weights += w;
  }
  const double n = static_cast<double>(std::max<std::int64_t>(span.n, 0));
  const double chain = std::min(n, std::max(n / 16 + 17, 64 + n / 64 + 1));
  const double divisor = std::max(weights, c.least);
  const double exact = divisor == 0 ? 0 : (2 * chain * kUnit * size / divisor + (chain + 2) * kUnit * std::abs(want));
  return exact + unit_roundoff(c.dtype) * (std::abs(want) + exact) + subnormal_roundoff(c.dtype);
}

void check(const Case& c, const Backend& backend, Data data) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  std::vector<double> expected(static_cast<std::size_t>(c.sequences * c.n));
  const Problem p = data.problem(c);
  reference(p, expected.data());
  Data again = data;
  const UseBackend use(backend);
  const Status status = data.run(c, backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.x.expect_unchanged("x"), data.mask.expect_unchanged(c.packed ? "cu" : "mask");
  data.out.expect_only_elements_changed("out");
  int failures = 0;
  for (std::int64_t i = 0; i < c.sequences * c.n && failures < 5; ++i) {
    const double got = data.out.get(i), want = expected[static_cast<std::size_t>(i)];
    if (std::isnan(want)) {
      if (std::isnan(got)) continue;
    } else if (std::abs(got - want) <= tolerance(c, p, i / c.n, i % c.n, want, data.x, data.mask)) {
      continue;
    }
    ADD_FAILURE() << "out (" << i / c.n << ", " << i % c.n << ") is " << got << ", expected " << want << " +- "
                  << tolerance(c, p, i / c.n, i % c.n, want, data.x, data.mask);
    ++failures;
  }
  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.out.bytes() == again.out.bytes()) << "another result the second time";
}
void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

DType draw_mask_dtype(const Case& c, Random& random) {
  return !c.packed ? random.pick(kMasks) : random.chance(0.5) ? DType::kInt32 : DType::kInt64;
}

TEST(MeanPoolSmall, Shapes) {
  struct Shape {
    std::int64_t sequences, length, n;
  };
  constexpr Shape kShapes[] = {
      {1, 1, 1},    {2, 3, 5},   // single elements; rows that start anywhere
      {3, 17, 33},  {2, 70, 8},  // more tokens than strands; a part of a block's columns
      {2, 5, 64},   {3, 9, 72},  // a block's columns; one vector more
      {1, 300, 16},              // more tokens than are in flight
      {1, 6, 600},               // several tiles of columns on the CPU
  };
  Random random(111);
  for (const Backend& backend : all_backends()) {
    for (const Shape& shape : kShapes) {
      for (DType dtype : kFloats) {
        for (bool packed : {false, true}) {
          Case c;
          c.sequences = shape.sequences, c.length = shape.length, c.n = shape.n;
          c.dtype = dtype, c.packed = packed;
          c.mask_dtype = draw_mask_dtype(c, random);
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(MeanPoolSmall, WeightsOfAnyDtype) {
  Random random(112);
  int turn = 0;
  for (const Backend& backend : all_backends()) {
    for (DType mask_dtype : kMasks) {
      for (Layout layout : kLayouts) {
        if (left_out(turn, 4)) continue;
        Case c;
        c.sequences = 4, c.length = 11, c.n = 16;
        c.dtype = random.pick(kFloats), c.mask_dtype = mask_dtype, c.mask_layout = layout;
        check(c, backend, random);
      }
    }
  }
}

TEST(MeanPoolSmall, Layouts) {
  Random random(113);
  for (const Backend& backend : all_backends()) {
    for (Layout layout : kLayouts) {
      for (Layout out_layout : kWritableLayouts) {
        for (bool packed : {false, true}) {
          Case c;
          c.sequences = 3, c.length = 6, c.n = 24;
          c.dtype = random.pick(kFloats), c.packed = packed;
          c.mask_dtype = draw_mask_dtype(c, random);
          c.x_layout = layout, c.out_layout = out_layout;
          if (packed && random.chance(0.5)) c.mask_layout = Layout::kStepped;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(MeanPoolSmall, NothingThere) {
  Random random(114);
  for (const Backend& backend : all_backends()) {
    for (bool packed : {false, true}) {
      for (std::int64_t sequences : {0, 5}) {
        for (std::int64_t length : {0, 4}) {
          for (double least : {0.0, 1e-9, 3.0}) {  // of no tokens 0 / 0 where padded, 0 where packed
            Case c;
            c.sequences = sequences, c.length = length, c.n = 8;
            c.packed = packed, c.least = least;
            c.dtype = DType::kFloat16;
            check(c, backend, random);
          }
        }
      }
    }
  }
}

// Sums of weights on both sides of `least`.
TEST(MeanPoolSmall, Least) {
  Random random(115);
  for (const Backend& backend : all_backends()) {
    for (bool packed : {false, true}) {
      Case c;
      c.sequences = 20, c.length = 12, c.n = 8;
      c.packed = packed, c.least = 6;
      c.mask_dtype = packed ? DType::kInt32 : DType::kFloat32;
      check(c, backend, random);
    }
  }
}

// A weight that is NaN, infinite or negative is a weight; so are NaN and infinities of x where the weight is not 0.
TEST(MeanPoolSmall, NumbersThatAreNot) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  Random random(116);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      Case c;
      c.sequences = 5, c.length = 3, c.n = 8;
      c.dtype = dtype, c.mask_dtype = DType::kFloat32;
      Data data(c, random);
      data.mask.fill([&](std::int64_t i) { return i % 3 == 2 ? 0 : 1; });
      data.x.fill([&](std::int64_t i) { return i / 8 % 3 == 2 ? kNaN : 0.5; });
      data.mask.set(3, kNaN), data.mask.set(6, kInf), data.mask.set(9, -0.5);
      data.x.set(12 * 8 + 1, kNaN), data.x.set(13 * 8 + 2, kInf);
      const UseBackend use(backend);
      ASSERT_TRUE(data.run(c, backend).ok());
      for (std::int64_t j = 0; j < 8; ++j) {
        EXPECT_EQ(data.out.get(j), 0.5) << backend;
        EXPECT_TRUE(std::isnan(data.out.get(8 + j))) << backend;
        EXPECT_TRUE(std::isnan(data.out.get(16 + j))) << backend;  // inf / inf
        EXPECT_EQ(data.out.get(24 + j), 0.5) << backend;           // (-0.25 + 0.5) / 0.5
      }
      EXPECT_EQ(data.out.get(32), 0.5);
      EXPECT_TRUE(std::isnan(data.out.get(33)));
      EXPECT_EQ(data.out.get(34), kInf);
    }
  }
}

TEST(MeanPool, Drawn) {
  Random random(117);
  for (const Backend& backend : device_backends()) {
    for (int repetition = 0; repetition < sized(150, 30); ++repetition) {
      Case c;
      c.n = random.log_integer(1, sized(2000, 200));
      if (random.chance(0.6)) c.n = (c.n + 7) / 8 * 8;
      c.length = random.log_integer(1, std::max<std::int64_t>(1, sized(100000, 4000) / c.n));
      c.sequences = random.log_integer(1, std::max<std::int64_t>(1, sized(200000, 5000) / (c.n * c.length)));
      c.dtype = random.pick(kFloats), c.packed = random.chance(0.5);
      c.mask_dtype = draw_mask_dtype(c, random);
      c.x_layout = random.chance(0.6) ? Layout::kContiguous : random.pick(kLayouts);
      c.out_layout = random.pick(kWritableLayouts);
      c.least = random.chance(0.3) ? 4 : 1e-9;
      check(c, backend, random);
    }
  }
}

// More tiles than a grid has blocks: blocks take several, one after the other.
TEST(MeanPool, ManySequences) {
  Random random(118);
  for (const Backend& backend : device_backends()) {
    Case c;
    c.sequences = sized(20000, 390), c.length = 2, c.n = 8;
    check(c, backend, random);
  }
}

// The first token starts at a multiple of 16 bytes; the others do not, or those of the other sequences.
TEST(MeanPoolSmall, TokensThatStartAnywhere) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      for (bool sequences_alone : {false, true}) {
        Random random(122);
        const std::int64_t sequences = 2, length = 3, n = 16;
        const std::int64_t token = sequences_alone ? n : n + 3, sequence = length * token + (sequences_alone ? 3 : 0);
        Tensor x(dtype, {sequences, sequence}), mask(DType::kBool, {sequences, length}), out(dtype, {sequences, n});
        x.fill([&](std::int64_t) { return static_cast<double>(random.integer(-8, 8)); });
        mask.fill([](std::int64_t i) { return i % 3 < 2; });
        const UseBackend use(backend);
        TensorView from = x.on(backend);
        from.rank = 3;
        from.shape[1] = length, from.shape[2] = n;
        from.strides[1] = token, from.strides[2] = 1;
        const Status status = mean_pool(from, mask.on(backend), 1e-9, out.on(backend));
        ASSERT_TRUE(status.ok()) << status.message();
        synchronize(backend);
        out.fetch();
        for (std::int64_t i = 0; i < sequences * n; ++i) {
          const std::int64_t at = i / n * sequence + i % n;  // small whole numbers: exact
          ASSERT_EQ(out.get(i), (x.get(at) + x.get(at + token)) / 2) << backend << " " << dtype_name(dtype) << " " << i;
        }
      }
    }
  }
}

// A sequence by itself, among others, padded to another length and packed: the same bits.
TEST(MeanPoolSmall, SameBitsWhateverSharesTheBatch) {
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kFloats) {
      for (std::int64_t n : {40, 33}) {  // read in vectors, and not
        Random random(119);
        const std::int64_t lengths[] = {150, 0, 37, 90}, longest = 150;
        Tensor x(dtype, {4, longest, n}), mask(DType::kBool, {4, longest}), out(dtype, {4, n});
        x.fill([&](std::int64_t) { return random.normal(); });
        mask.fill([&](std::int64_t i) { return i % longest < lengths[i / longest]; });
        Tensor packed(dtype, {277, n}), cu(DType::kInt32, {5}), of_packed(dtype, {4, n});
        std::int64_t t = 0;
        for (std::int64_t b = 0; b < 4; ++b) {
          cu.set(b, static_cast<double>(t));
          for (std::int64_t l = 0; l < lengths[b]; ++l, ++t) {
            for (std::int64_t j = 0; j < n; ++j) packed.set(t * n + j, x.get((b * longest + l) * n + j));
          }
        }
        cu.set(4, static_cast<double>(t));
        const UseBackend use(backend);
        ASSERT_TRUE(mean_pool(x.on(backend), mask.on(backend), 1e-9, out.on(backend)).ok());
        ASSERT_TRUE(mean_pool_packed(packed.on(backend), cu.on(backend), 1e-9, of_packed.on(backend)).ok());
        synchronize(backend);
        out.fetch(), of_packed.fetch();
        for (std::int64_t b = 0; b < 4; ++b) {
          Tensor one(dtype, {1, longest + 7, n}), all(DType::kInt64, {1, longest + 7}), mean(dtype, {1, n});
          one.fill([&](std::int64_t i) { return i / n < lengths[b] ? x.get(b * longest * n + i) : 1e3; });
          all.fill([&](std::int64_t i) { return i < lengths[b]; });
          ASSERT_TRUE(mean_pool(one.on(backend), all.on(backend), 1e-9, mean.on(backend)).ok());
          synchronize(backend);
          mean.fetch();
          for (std::int64_t j = 0; j < n; ++j) {
            EXPECT_EQ(out.get(b * n + j), of_packed.get(b * n + j)) << backend << " " << b << " " << j;
            EXPECT_EQ(out.get(b * n + j), mean.get(j)) << backend << " " << b << " " << j;
          }
        }
      }
    }
  }
}

// Ends that are wrong: an error on the CPU, and nothing is written; NaN for the sequences they are of on CUDA, and no
// memory is read for those.
TEST(MeanPoolSmall, EndsOutside) {
  struct Wrong {
    std::int64_t place, end;
    const char* message;
  };
  constexpr Wrong kWrong[] = {
      {0, -1, "-1 at 0"}, {2, 3, "3 at 2"}, {3, 10, "10 at 3"}, {1, 1 << 30, "1073741824 at 1"}};
  for (const Backend& backend : all_backends()) {
    for (DType dtype : {DType::kInt32, DType::kInt64}) {
      for (const Wrong& wrong : kWrong) {
        Random random(120);
        Case c;
        c.sequences = 3, c.length = 3, c.n = 24, c.packed = true;
        c.mask_dtype = dtype;
        Data data(c, random);
        data.x = Tensor(c.dtype, {9, c.n});
        data.x.fill([&](std::int64_t) { return random.normal(); });
        data.mask.fill([](std::int64_t i) { return std::min<double>(4.0 * static_cast<double>(i), 9); });
        data.mask.set(wrong.place, static_cast<double>(wrong.end));
        if (backend.cuda()) {
          check(c, backend, data);
          continue;
        }
        const UseBackend use(backend);
        const Status status = data.run(c, backend);
        EXPECT_EQ(status.code(), StatusCode::kValueError);
        EXPECT_EQ(
            status.message(),
            std::string("cu: expected numbers that do not decrease, from 0 to 9, the rows of x, got ") + wrong.message);
        data.out.expect_unchanged("out");
      }
    }
  }
}

struct Mistake {
  bool packed;
  std::function<void(TensorView&, TensorView&, double&, TensorView&)> make;  // x, mask or cu, least, out
  StatusCode code;
  std::string message;  // a part of it
};

const Mistake kMistakes[] = {
    {false, [](auto& x, auto&, auto&, auto&) { x = {}; }, StatusCode::kValueError,
     "x: expected shape (B, L, n), got none"},
    {true, [](auto& x, auto&, auto&, auto&) { x = {}; }, StatusCode::kValueError, "x: expected shape (T, n), got none"},
    {false, [](auto& x, auto&, auto&, auto&) { x.dtype = DType::kFloat64; }, StatusCode::kTypeError,
     "x: expected float32"},
    {false, [](auto& x, auto&, auto&, auto&) { x.shape[2] = 0; }, StatusCode::kValueError,
     "x: expected tokens of at least 1 element"},
    {true, [](auto& x, auto&, auto&, auto&) { x.device = DeviceType::kOther; }, StatusCode::kValueError,
     "x: expected a CPU or CUDA"},
    {false, [](auto&, auto& m, auto&, auto&) { m.dtype = DType::kOther; }, StatusCode::kTypeError,
     "mask: expected bool"},
    {false, [](auto&, auto& m, auto&, auto&) { m.shape[1] = 7; }, StatusCode::kValueError,
     "mask: expected shape (4, 5) of x's first dimensions, got (4, 7)"},
    {false, [](auto&, auto& m, auto&, auto&) { m.device = DeviceType::kOther; }, StatusCode::kValueError,
     "mask: expected "},
    {true, [](auto&, auto& cu, auto&, auto&) { cu.dtype = DType::kFloat32; }, StatusCode::kTypeError,
     "cu: expected int32 or int64, got float32"},
    {true, [](auto&, auto& cu, auto&, auto&) { cu.shape[0] = 0; }, StatusCode::kValueError,
     "cu: expected shape (B + 1,), got (0,)"},
    {true,
     [](auto&, auto& cu, auto&, auto&) {
       cu = {};
       cu.dtype = DType::kInt32;
     },
     StatusCode::kValueError, "cu: expected shape (B + 1,), got none"},
    {false, [](auto&, auto&, auto& least, auto&) { least = -1; }, StatusCode::kValueError,
     "least: expected a finite number >= 0, got -1"},
    {true, [](auto&, auto&, auto& least, auto&) { least = 1e300; }, StatusCode::kValueError,
     "least: expected a finite"},
    {true, [](auto&, auto&, auto& least, auto&) { least = std::numeric_limits<double>::quiet_NaN(); },
     StatusCode::kValueError, "least: expected a finite"},
    {false, [](auto&, auto&, auto&, auto& out) { out.dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "out: expected float32 like x, got float16"},
    {false, [](auto&, auto&, auto&, auto& out) { out.shape[0] = 3; }, StatusCode::kValueError,
     "out: expected shape (4, 8), got (3, 8)"},
    {true, [](auto&, auto&, auto&, auto& out) { out.shape[1] = 3; }, StatusCode::kValueError,
     "out: expected shape (4, 8), got (4, 3)"},
    {false, [](auto&, auto&, auto&, auto& out) { out.strides[0] = 0; }, StatusCode::kValueError,
     "out: expected elements that share no memory"},
    {false, [](auto& x, auto&, auto&, auto& out) { out.data = x.data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with x"},
    {true, [](auto&, auto& cu, auto&, auto& out) { out.data = cu.data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with cu"},
};

TEST(MeanPoolSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Random random(121);
      Case c;
      c.sequences = 4, c.length = 5, c.n = 8, c.packed = mistake.packed;
      Data data(c, random);
      if (c.packed) data.x = Tensor(c.dtype, {22, c.n});
      TensorView x = data.x.on(backend), mask = data.mask.on(backend), out = data.out.on(backend);
      mistake.make(x, mask, c.least, out);
      const Status status = c.packed ? mean_pool_packed(x, mask, c.least, out) : mean_pool(x, mask, c.least, out);
      expect_refused(status, mistake.code, mistake.message, backend, {&data.out});
    }
  }
}

}  // namespace
}  // namespace strop::pool
