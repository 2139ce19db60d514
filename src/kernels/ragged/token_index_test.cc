// Token indices against the oracle, on every backend. Suites whose name contains Small use small shapes only, so that
// they also run under slow tools (compute-sanitizer).
#include "kernels/ragged/token_index.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/ragged/token_index_tuning.h"
#include "strop/ragged.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::ragged {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

// Where the padding is.
enum class Pattern { kNone, kAll, kRight, kLeft, kBothEnds, kHoles, kMixed, kOneToken };
constexpr Pattern kPatterns[] = {Pattern::kNone,     Pattern::kAll,   Pattern::kRight, Pattern::kLeft,
                                 Pattern::kBothEnds, Pattern::kHoles, Pattern::kMixed, Pattern::kOneToken};

struct Case {
  std::int64_t sequences = 1, length = 1;
  DType dtype = DType::kBool;
  Layout layout{}, out_layout{};
  Pattern pattern = Pattern::kMixed;

  std::string text() const {
    std::ostringstream out;
    out << "(" << sequences << ", " << length << ") " << dtype_name(dtype) << " " << layout_name(layout) << ", pattern "
        << static_cast<int>(pattern) << ", outputs " << layout_name(out_layout);
    return out.str();
  }
};

struct Data {
  Tensor mask, cu, rows, where, summary;

  Data(const Case& c, Random& random)
      : mask(c.dtype, {c.sequences, c.length}, c.layout),
        cu(DType::kInt32, {c.sequences + 1}, c.out_layout),
        rows(DType::kInt32, {c.sequences * c.length}, c.out_layout),
        where(DType::kInt32, {c.sequences * c.length}, c.out_layout),
        summary(DType::kInt64, {4}, c.out_layout) {
    // What is not written must not look like padding's -1, which memory starts as.
    for (Tensor* out : outputs()) out->fill([](std::int64_t) { return 1234567; });
    for (std::int64_t b = 0; b < c.sequences; ++b) {
      const std::int64_t begin = random.integer(0, c.length), end = random.integer(begin, c.length);
      const Pattern pattern = c.pattern == Pattern::kMixed ? random.pick(kPatterns) : c.pattern;
      const double density = random.uniform();
      for (std::int64_t l = 0; l < c.length; ++l) {
        bool real = true;
        switch (pattern) {
          case Pattern::kNone:
            break;
          case Pattern::kAll:
            real = false;
            break;
          case Pattern::kRight:
            real = l < end;
            break;
          case Pattern::kLeft:
            real = l >= begin;
            break;
          case Pattern::kBothEnds:
            real = l >= begin && l < end;
            break;
          case Pattern::kHoles:
          case Pattern::kMixed:
            real = random.chance(density);
            break;
          case Pattern::kOneToken:
            real = l == begin;
            break;
        }
        mask.set(b * c.length + l, real ? one(c, random) : 0);
      }
    }
  }

  // Values that count as real, negative and large ones and those of one high bit among them.
  static double one(const Case& c, Random& random) {
    switch (c.dtype) {
      case DType::kBool:
        return 1;
      case DType::kInt8:
        return random.chance(0.5) ? -128 : 1;
      case DType::kUInt8:
        return random.chance(0.5) ? 128 : 1;
      case DType::kInt16:
      case DType::kUInt16:
        return random.chance(0.5) ? 256 : 1;
      case DType::kInt32:
      case DType::kUInt32:
        return random.chance(0.5) ? 1 << 30 : 1;
      case DType::kInt64:
      case DType::kUInt64:
        return random.chance(0.5) ? 0x1p62 : 1;
      default:
        return random.chance(0.2) ? std::numeric_limits<double>::quiet_NaN() : random.chance(0.5) ? -0.25 : 1;
    }
  }

  std::vector<Tensor*> outputs() { return {&cu, &rows, &where, &summary}; }

  Status run(const Backend& backend) {
    const Status status =
        token_index(mask.on(backend), cu.on(backend), rows.on(backend), where.on(backend), summary.on(backend));
    synchronize(backend);
    for (Tensor* out : outputs()) out->fetch();
    mask.fetch();
    return status;
  }
};

constexpr const char* kOutputs[] = {"cu", "rows", "where", "summary"};

void check(const Case& c, const Backend& backend, Random& random) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  Data data(c, random), expected = data, again = data;
  Problem p;
  p.sequences = c.sequences, p.length = c.length;
  const TensorView mask = expected.mask.host();
  p.mask = {mask.data, mask.strides[0], mask.strides[1], mask.dtype};
  p.cu = static_cast<std::int32_t*>(expected.cu.host().data);
  p.rows = static_cast<std::int32_t*>(expected.rows.host().data);
  p.where = static_cast<std::int32_t*>(expected.where.host().data);
  p.summary = static_cast<std::int64_t*>(expected.summary.host().data);
  reference(p);
  const UseBackend use(backend);
  const Status status = data.run(backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.mask.expect_unchanged("mask");
  ASSERT_TRUE(again.run(backend).ok());
  for (std::size_t k = 0; k < 4; ++k) {
    data.outputs()[k]->expect_only_elements_changed(kOutputs[k]);
    EXPECT_TRUE(data.outputs()[k]->bytes() == again.outputs()[k]->bytes()) << "another " << kOutputs[k];
    int failures = 0;
    for (std::int64_t i = 0; i < data.outputs()[k]->numel() && failures < 5; ++i) {
      const double got = data.outputs()[k]->get(i), want = expected.outputs()[k]->get(i);
      if (got == want) continue;
      ADD_FAILURE() << kOutputs[k] << "[" << i << "] is " << got << ", expected " << want;
      ++failures;
    }
  }
}

TEST(TokenIndexSmall, Shapes) {
  struct Shape {
    std::int64_t sequences, length;
  };
  constexpr Shape kShapes[] = {
      {1, 1},   {3, 1},   {1, 5},   // single tokens; less than a word
      {40, 3},                      // many sequences in a warp's words
      {7, 31},  {7, 32},  {7, 33},  // around a word
      {2, 512}, {1, 513},           // whole warps; one more
      {3, 700},                     // several warps
  };
  Random random(91);
  for (const Backend& backend : all_backends()) {
    for (const Shape& shape : kShapes) {
      for (Pattern pattern : kPatterns) {
        Case c;
        c.sequences = shape.sequences, c.length = shape.length;
        c.dtype = random.chance(0.4) ? DType::kBool : random.pick(kMasks);
        c.pattern = pattern;
        check(c, backend, random);
      }
    }
  }
}

TEST(TokenIndexSmall, Dtypes) {
  Random random(92);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kMasks) {
      for (Layout layout : kLayouts) {
        Case c;
        c.sequences = 9, c.length = 67;
        c.dtype = dtype, c.layout = layout;
        c.out_layout = random.chance(0.5) ? Layout::kContiguous : Layout::kMisaligned;
        check(c, backend, random);
      }
    }
  }
}

// -0.0 is padding; so is nothing else that has bits.
TEST(TokenIndexSmall, NegativeZeroIsPadding) {
  Random random(93);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
      Case c;
      c.sequences = 2, c.length = 3;
      c.dtype = dtype, c.pattern = Pattern::kNone;
      Data data(c, random);
      data.mask.set(1, -0.0);
      const UseBackend use(backend);
      ASSERT_TRUE(data.run(backend).ok());
      EXPECT_EQ(data.summary.get(0), 5) << backend << " " << dtype_name(dtype);
      EXPECT_EQ(data.where.get(1), -1);
      EXPECT_EQ(data.summary.get(3), 1);
    }
  }
}

TEST(TokenIndexSmall, NothingThere) {
  Random random(94);
  for (const Backend& backend : all_backends()) {
    for (std::int64_t sequences : {0, 1, 70}) {
      for (std::int64_t length : {0, 6}) {
        if (sequences * length != 0) continue;
        Case c;
        c.sequences = sequences, c.length = length;
        check(c, backend, random);
      }
    }
  }
}

TEST(TokenIndex, Drawn) {
  Random random(95);
  for (const Backend& backend : device_backends()) {
    for (int repetition = 0; repetition < sized(200, 30); ++repetition) {
      Case c;
      c.length = random.log_integer(1, sized(20000, 3000));
      c.sequences = random.log_integer(1, std::max<std::int64_t>(1, sized(60000, 5000) / c.length));
      c.dtype = random.chance(0.3) ? DType::kBool : random.pick(kMasks);
      c.layout = random.pick(kLayouts);
      c.out_layout = random.chance(0.5) ? Layout::kContiguous : Layout::kMisaligned;
      c.pattern = random.pick(kPatterns);
      check(c, backend, random);
    }
  }
}

// Several passes of one block; several blocks, with one pass each and more.
TEST(TokenIndex, Large) {
  struct Shape {
    std::int64_t sequences, length;
    DType dtype;
  };
  const Shape kShapes[] = {
      {130, 128, DType::kBool},       // a pass and a bit
      {2, 20001, DType::kInt64},      // three passes
      {1, kOneBlock, DType::kUInt8},  // the most for one block
      {5, 13108, DType::kBool},       // the least for several, parts that end within sequences
      {sized(3000, 300), 257, DType::kBool},
      {sized(700, 230), 512, DType::kFloat16},
  };
  Random random(96);
  for (const Backend& backend : device_backends()) {
    for (const Shape& shape : kShapes) {
      Case c;
      c.sequences = shape.sequences, c.length = shape.length;
      c.dtype = shape.dtype;
      check(c, backend, random);
    }
  }
}

TEST(TokenIndexTuning, PartsMakeUpAllPositions) {
  Random random(97);
  for (int repetition = 0; repetition < 2000; ++repetition) {
    const std::int64_t positions = random.log_integer(1, std::numeric_limits<std::int32_t>::max());
    const Tuning t = tune(positions, static_cast<int>(random.log_integer(1, 2000)));
    SCOPED_TRACE(::testing::Message() << positions << ": " << t.parts << " parts of " << t.part);
    EXPECT_GE(t.parts * t.part, positions);
    EXPECT_LT((t.parts - 1) * t.part, positions) << "the last part is empty";
    EXPECT_LE(t.parts, t.block);
    EXPECT_EQ(t.block % 32, 0);
    if (t.parts > 1) {
      EXPECT_EQ(t.part % (t.block * kPositionsAThread), 0);
    }
  }
}

struct Mistake {
  std::function<void(TensorView (&)[5])> make;  // mask, cu, rows, where, summary
  StatusCode code;
  std::string message;  // a part of it
};

const Mistake kMistakes[] = {
    {[](auto& v) { v[0] = {}; }, StatusCode::kValueError, "mask: expected shape (B, L), got none"},
    {[](auto& v) { v[0].dtype = DType::kOther; }, StatusCode::kTypeError, "mask: expected bool, an integer or"},
    {[](auto& v) { v[0].device = DeviceType::kOther; }, StatusCode::kValueError, "mask: expected a CPU or CUDA"},
    {[](auto& v) { v[0].shape[0] = 1LL << 20, v[0].shape[1] = 1LL << 11; }, StatusCode::kValueError,
     "mask: expected fewer than 2^31 elements, got shape (1048576, 2048)"},
    {[](auto& v) { v[0].shape[0] = v[0].shape[1] = 1LL << 40; }, StatusCode::kValueError,
     "mask: expected fewer than 2^31 elements"},
    {[](auto& v) { v[1].dtype = DType::kInt64; }, StatusCode::kTypeError, "cu: expected int32, got int64"},
    {[](auto& v) { v[1].shape[0] = 4; }, StatusCode::kValueError, "cu: expected shape (5,), got (4,)"},
    {[](auto& v) { v[1].strides[0] = 2; }, StatusCode::kValueError, "cu: expected a contiguous tensor, got strides"},
    {[](auto& v) { v[1].data = nullptr; }, StatusCode::kValueError, "cu: expected a tensor, got none"},
    {[](auto& v) { v[1].device = DeviceType::kOther; }, StatusCode::kValueError, "cu: expected "},
    {[](auto& v) { v[2].shape[0] = 5; }, StatusCode::kValueError, "rows: expected shape (24,), got (5,)"},
    {[](auto& v) { v[2].data = v[1].data; }, StatusCode::kValueError,
     "rows: expected memory of its own, got memory shared with cu"},
    {[](auto& v) { v[3].data = static_cast<char*>(v[2].data) + 4; }, StatusCode::kValueError,
     "where: expected memory of its own, got memory shared with rows"},
    {[](auto& v) { v[3].data = v[0].data; }, StatusCode::kValueError,
     "where: expected memory of its own, got memory shared with mask"},
    {[](auto& v) { v[4].dtype = DType::kInt32; }, StatusCode::kTypeError, "summary: expected int64, got int32"},
    {[](auto& v) { v[4].shape[0] = 3; }, StatusCode::kValueError, "summary: expected shape (4,), got (3,)"},
    {[](auto& v) { v[4].data = static_cast<char*>(v[4].data) + 4; }, StatusCode::kValueError,
     "summary: expected data aligned to int64"},
};

TEST(TokenIndexSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Random random(98);
      Case c;
      c.sequences = 4, c.length = 6;
      Data data(c, random);
      TensorView views[] = {data.mask.on(backend), data.cu.on(backend), data.rows.on(backend), data.where.on(backend),
                            data.summary.on(backend)};
      mistake.make(views);
      const Status status = token_index(views[0], views[1], views[2], views[3], views[4]);
      expect_refused(status, mistake.code, mistake.message, backend,
                     {&data.cu, &data.rows, &data.where, &data.summary});
    }
  }
}

}  // namespace
}  // namespace strop::ragged
