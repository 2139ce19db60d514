// Linear layers against the oracle, on every backend. Suites whose name contains Small use small shapes only, so that
// they also run under slow tools (compute-sanitizer).
#include "strop/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "base/device.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_tuning.h"
#ifndef STROP_WITH_CUDA
#define STROP_WITH_CUDA 0
#endif
#if STROP_EMULATED
#include "strop/emu.h"
#endif
#include "tests/support/backend.h"
#include "tests/support/orders.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::lin {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kUnit = 0x1p-24;
constexpr Activation kActivations[] = {Activation::kNone,     Activation::kRelu, Activation::kGelu,
                                       Activation::kGeluTanh, Activation::kSilu, Activation::kTanh};
constexpr DType kHalves[] = {DType::kFloat16, DType::kBFloat16};

struct Case {
  bool product = true;  // else the epilogue alone, of which k is not looked at
  std::int64_t m = 1, n = 1, k = 1;
  DType dtype = DType::kFloat32, bias_dtype = DType::kFloat32;
  LinearOptions options;
  bool apart = false;  // gated: two weights
  bool bias = true, up_bias = true, residual = false;
  bool in_place = false;  // out is the residual or, without one, y
  Layout x_layout{}, weight_layout{}, up_layout{}, bias_layout{}, residual_layout{}, out_layout{};
  double scale = 1;  // of x, or y

  bool two_weights() const { return product && options.gated && apart; }
  std::int64_t rows_of_weight() const { return options.gated && !two_weights() ? 2 * n : n; }
  std::string text() const {
    std::ostringstream out;
    out << (product ? "" : "epilogue ") << m << "x" << n << "x" << k << " " << dtype_name(dtype) << " activation "
        << static_cast<int>(options.activation) << " gated " << options.gated << " apart " << apart << " bias " << bias
        << " up " << up_bias << " " << dtype_name(bias_dtype) << " " << layout_name(bias_layout) << " residual "
        << residual << " " << layout_name(residual_layout) << " in place " << in_place << " x " << layout_name(x_layout)
        << " weight " << layout_name(weight_layout) << " up " << layout_name(up_layout) << " out "
        << layout_name(out_layout);
    return out.str();
  }
};

Matrix matrix(const TensorView& view) { return {view.data, view.strides[0], view.strides[1]}; }
Vector vector(const TensorView& view) { return {view.data, view.strides[0], view.dtype}; }
char* moved(const void* data, DType dtype, std::int64_t elements) {
  return static_cast<char*>(const_cast<void*>(data)) + elements * dtype_size(dtype);
}

struct Data {
  Tensor x;  // or y
  Tensor weight, up_weight, bias, up_bias, residual, out;

  Data(const Case& c, Random& random)
      : x(c.dtype, {c.m, c.product ? c.k : c.rows_of_weight()}, c.x_layout),
        weight(c.dtype, {c.rows_of_weight(), c.k}, c.weight_layout),
        up_weight(c.dtype, {c.n, c.k}, c.up_layout),
        bias(c.bias_dtype, {c.rows_of_weight()}, c.bias_layout),
        up_bias(c.bias_dtype, {c.n}, c.bias_layout),
        residual(c.dtype, {c.m, c.n}, c.residual_layout),
        out(c.dtype, {c.m, c.n}, c.out_layout) {
    const double spread = 1 / std::sqrt(static_cast<double>(c.k));  // products as large as x, as trained weights make
    x.fill([&](std::int64_t) { return c.scale * random.normal(); });
    for (Tensor* w : {&weight, &up_weight}) w->fill([&](std::int64_t) { return spread * random.normal(); });
    for (Tensor* t : {&bias, &up_bias, &residual}) t->fill([&](std::int64_t) { return random.normal(); });
  }

  // Where the result is.
  Tensor& result(const Case& c) { return !c.in_place ? out : c.residual ? residual : x; }

  template <class On>
  LinearInputs inputs(const Case& c, On&& on) {
    LinearInputs in;
    in.x = on(x), in.weight = on(weight);
    if (c.bias) in.bias = on(bias);
    if (c.two_weights()) {
      in.up_weight = on(up_weight);
      if (c.up_bias) in.up_bias = on(up_bias);
    }
    if (c.residual) in.residual = on(residual);
    return in;
  }

  // Host views, as the oracle and run_cuda take them.
  template <class On>
  Problem problem(const Case& c, On&& on) {
    const LinearInputs in = inputs(c, on);
    Problem p;
    p.epilogue.m = c.m, p.epilogue.n = c.n, p.k = c.k;
    p.epilogue.dtype = c.dtype;
    p.epilogue.activation = c.options.activation, p.epilogue.gated = c.options.gated;
    p.x = matrix(in.x);
    p.weight[0] = p.weight[1] = matrix(in.weight);
    if (c.bias) p.epilogue.bias[0] = p.epilogue.bias[1] = vector(in.bias);
    if (c.two_weights()) {
      p.weight[1] = matrix(in.up_weight);
      p.epilogue.bias[1] = c.up_bias ? vector(in.up_bias) : Vector{};
    } else if (c.options.gated) {
      p.weight[1].data = moved(in.weight.data, c.dtype, c.n * in.weight.strides[0]);
      if (c.bias) p.epilogue.bias[1].data = moved(in.bias.data, c.bias_dtype, c.n * in.bias.strides[0]);
    }
    if (c.residual) p.epilogue.residual = matrix(in.residual);
    return p;
  }

  Status run(const Case& c, const Backend& backend) {
    const auto on = [&](Tensor& t) { return t.on(backend); };
    const LinearInputs in = inputs(c, on);
    const TensorView to = !c.in_place ? out.on(backend) : c.residual ? in.residual : in.x;
    Status status;
    if (c.product) {
      const Scratch scratch(backend, linear_workspace_bytes(in, c.options));
      status = linear(in, c.options, to, {scratch.data(), nullptr});
      synchronize(backend);
      scratch.expect_cleared(split_tiles(c.m, c.n, c.options.gated), true);
    } else {
      status = linear_epilogue({in.x, in.bias, in.residual}, c.options, to);
      synchronize(backend);
    }
    result(c).fetch();
    return status;
  }
};

struct Wanted {
  std::vector<double> out, tolerance;
};

// The oracle's result and the error that the arithmetic may have, in units u of 2^-24:
// - a sum of K products: each of K additions rounds a partial sum of at most sum |x| |w|, independently; six standard
//   deviations are 2 sqrt(K) units of it. Tensor cores cut off what they add, which adds up: a unit of half of it, on
//   the average, for each of K / 16 instructions, and as much within an instruction: K / 8.
// - bias, the cut along K and the CPU's parts: 16 more.
// - activations: slopes are at most 1.13; their own error is within 16 units of their argument (exponentials of 2 ulp,
//   their arguments' roundings, a quotient; of gelu the error function's, times the argument).
// - a gate's product and the residual's sum round once each, and so does the result, to its dtype.
Wanted expectation(const Case& c, Data& data, bool cuda) {
  const auto size = static_cast<std::size_t>(c.m * c.n);
  Wanted w{std::vector<double>(size), std::vector<double>(size)};
  std::vector<double> y[2], magnitude[2];
  for (int half = 0; half < 2; ++half) y[half].resize(size), magnitude[half].resize(size);
  const Expected expected{w.out.data(), {y[0].data(), y[1].data()}, {magnitude[0].data(), magnitude[1].data()}};
  const Problem p = data.problem(c, [](Tensor& t) { return t.host(); });
  if (c.product) {
    reference(p, expected);
  } else {
    Matrix halves[2] = {p.x, p.x};
    halves[1].data = moved(p.x.data, c.dtype, c.n * p.x.stride);
    reference_epilogue(p.epilogue, halves, expected);
  }
  const auto depth = static_cast<double>(c.k);
  const double units =
      !c.product ? 1 : 2 * std::sqrt(depth) + 16 + (cuda && c.dtype != DType::kFloat32 ? depth / 8 : 0);
  for (std::size_t i = 0; i < size; ++i) {
    const double of_y = kUnit * units * magnitude[0][i];
    double error = 1.2 * of_y + (c.options.activation == Activation::kNone ? 0 : 16 * kUnit * std::abs(y[0][i]));
    if (c.options.gated) {
      const double residual = c.residual ? data.residual.get(static_cast<std::int64_t>(i)) : 0;
      const double gate = y[1][i], product = w.out[i] - residual, of_gate = kUnit * units * magnitude[1][i];
      const double first = gate == 0 ? std::abs(y[0][i]) : std::abs(product / gate);
      error = first * of_gate + std::abs(gate) * error + error * of_gate + kUnit * std::abs(product);
    }
    if (c.residual) error += kUnit * (std::abs(w.out[i]) + error);
    w.tolerance[i] = error + unit_roundoff(c.dtype) * (std::abs(w.out[i]) + error) + subnormal_roundoff(c.dtype);
  }
  return w;
}

void compare(const Case& c, const Tensor& out, const Wanted& wanted) {
  int failures = 0;
  for (std::int64_t i = 0; i < c.m * c.n && failures < 5; ++i) {
    const double got = out.get(i), want = wanted.out[static_cast<std::size_t>(i)],
                 tolerance = wanted.tolerance[static_cast<std::size_t>(i)];
    if (std::isnan(want) ? std::isnan(got) : std::abs(got - want) <= tolerance) continue;
    ADD_FAILURE() << "out (" << i / c.n << ", " << i % c.n << ") is " << got << ", expected " << want << " +- "
                  << tolerance;
    ++failures;
  }
}

// Runs what `data` holds twice, compares with the oracle and once with the other.
void check(const Case& c, const Backend& backend, Data data) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  const Wanted wanted = expectation(c, data, backend.cuda());
  const UseBackend use(backend);
  Data again = data;
  const Status status = data.run(c, backend);
  ASSERT_TRUE(status.ok()) << status.message();
  data.result(c).expect_only_elements_changed("out");
  const bool used[] = {true, c.product, c.two_weights(), c.bias, c.up_bias && c.two_weights(), c.residual};
  int i = 0;
  for (Tensor* input : {&data.x, &data.weight, &data.up_weight, &data.bias, &data.up_bias, &data.residual}) {
    if (!used[i++] || input == &data.result(c)) continue;
    input->fetch();
    input->expect_unchanged("an input");
  }
  compare(c, data.result(c), wanted);
  if (kEmulated) return;  // slow; SchedulesDoNotChangeResults and others compare runs
  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.result(c).bytes() == again.result(c).bytes()) << "another result the second time";
}
void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

void draw_options(Case& c, Random& random) {
  c.options = {random.pick(kActivations), random.chance(0.4)};
  c.apart = random.chance(0.5);
  c.bias = random.chance(0.7), c.up_bias = random.chance(0.7), c.residual = random.chance(0.5);
  c.bias_dtype = random.pick(kFloats);
  c.in_place = random.chance(0.3) && (c.residual || (!c.product && !c.options.gated));
}

TEST(LinearSmall, Shapes) {
  // One element; less than a vector; around the CPU's six rows and its panels; tiles of 16, 32 and 64 rows, cut along K
  // and not; four rows of tiles; above all cuts.
  constexpr std::int64_t kShapes[][3] = {{1, 1, 1},     {1, 24, 8},    {3, 5, 7},     {8, 70, 65},
                                         {9, 33, 40},   {13, 129, 24}, {16, 64, 320}, {17, 72, 136},
                                         {33, 40, 200}, {64, 16, 129}, {65, 30, 264}, {257, 10, 100}};
  Random random(91);
  int turn = 0;
  for (const Backend& backend : kEmulated ? few_backends() : all_backends()) {
    for (const auto& shape : kShapes) {
      for (DType dtype : kFloats) {
        if (left_out(turn, 2) && dtype == DType::kFloat32) continue;
        Case c;
        c.m = shape[0], c.n = shape[1], c.k = shape[2];
        c.dtype = dtype;
        draw_options(c, random);
        check(c, backend, random);
      }
    }
  }
}

// The layers of BERT-base, and a GLU.
TEST(Linear, Models) {
  if (kEmulated) GTEST_SKIP() << "too large";
  constexpr std::int64_t kShapes[][2] = {{768, 768}, {2304, 768}, {3072, 768}, {768, 3072}};
  Random random(92);
  for (const Backend& backend : device_backends()) {
    for (const auto& shape : kShapes) {
      for (std::int64_t m : {1, 15, 32, 64, 129}) {
        if (!backend.cuda() && m > 15) continue;
        Case c;
        c.m = m, c.n = shape[0], c.k = shape[1];
        c.dtype = random.pick(kFloats);
        draw_options(c, random);
        check(c, backend, random);
      }
    }
  }
}

TEST(LinearSmall, Activations) {
  Random random(93);
  int turn = 0;
  for (const Backend& backend : kEmulated ? few_backends() : all_backends()) {
    for (Activation activation : kActivations) {
      for (int gate = 0; gate < 3; ++gate) {
        for (bool product : {true, false}) {
          if (left_out(turn, 3)) continue;
          for (double scale : {1.0, 30.0}) {
            Case c;
            c.product = product;
            c.m = 5, c.n = 24, c.k = 40;
            c.dtype = random.pick(kFloats);
            c.options = {activation, gate > 0};
            c.apart = gate == 2;
            c.scale = scale;
            check(c, backend, random);
          }
        }
      }
    }
  }
}

// Over all of the activations' range, against the oracle on the CPU: from where they are as good as 0 to where they
// are x or 1, and around 0.
TEST(LinearSmall, ActivationsEverywhere) {
  for (const Backend& backend : all_backends()) {
    for (Activation activation : kActivations) {
      Random random(94);
      Case c;
      c.product = false;
      c.n = sized(4001, 501);
      c.bias = false;
      c.options.activation = activation;
      Data data(c, random);
      data.x.fill([&](std::int64_t i) {
        const double at = 2.0 * static_cast<double>(i) / static_cast<double>(c.n - 1) - 1;
        return i % 3 == 0 ? 120 * at : i % 3 == 1 ? 6 * at : std::copysign(std::exp2(-30 * std::abs(at)), at);
      });
      check(c, backend, data);
    }
  }
}

TEST(LinearSmall, NanAndInfinity) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (const Backend& backend : all_backends()) {
    for (bool product : {true, false}) {
      for (Activation activation : kActivations) {
        Random random(95);
        Case c;
        c.product = product;
        c.m = 3, c.n = 9, c.k = 9;
        c.options.activation = activation;
        Data data(c, random);
        data.x.set(9 + 4, kNan);
        const UseBackend use(backend);
        ASSERT_TRUE(data.run(c, backend).ok());
        for (std::int64_t i = 0; i < c.m * c.n; ++i) {
          const bool nan = product ? i / 9 == 1 : i == 13;
          ASSERT_EQ(std::isnan(data.out.get(i)), nan) << backend << " " << c.text() << " " << i;
        }
        if (product) continue;
        data.x.set(9 + 4, kInf);
        ASSERT_TRUE(data.run(c, backend).ok());
        EXPECT_EQ(data.out.get(9 + 4), activation == Activation::kTanh ? 1 : kInf) << backend << " " << c.text();
      }
    }
  }
}

TEST(LinearSmall, Layouts) {
  Random random(96);
  int turn = 0;
  for (const Backend& backend : few_backends()) {
    for (int which = 0; which < 6; ++which) {
      for (Layout layout : kLayouts) {
        const bool writable =
            std::find(std::begin(kWritableLayouts), std::end(kWritableLayouts), layout) != std::end(kWritableLayouts);
        if ((which == 4 && !writable) || (which == 2 && layout == Layout::kTransposed)) continue;
        for (bool product : {true, false}) {
          if (!product && (which == 1 || which == 5)) continue;
          for (DType dtype : kFloats) {
            if (left_out(turn, 4)) continue;
            Case c;
            c.product = product;
            c.m = 19, c.n = 24, c.k = 40;
            c.dtype = dtype;
            draw_options(c, random);
            c.bias = c.residual = true;
            c.in_place = c.in_place && writable;
            if (which == 5) c.options.gated = c.apart = true;
            Layout* const layouts[] = {&c.x_layout,        &c.weight_layout, &c.bias_layout,
                                       &c.residual_layout, &c.out_layout,    &c.up_layout};
            *layouts[which] = layout;
            check(c, backend, random);
          }
        }
      }
    }
  }
}

// Rows that lie apart by more than they have, and end within a vector: the tail of K is not read as anything.
TEST(LinearSmall, PaddedRows) {
  for (const Backend& backend : device_backends()) {
    for (std::int64_t k : {1, 60, 67, 193}) {
      for (DType dtype : kHalves) {
        Random random(97);
        Case wide;
        wide.m = 18, wide.n = 20, wide.k = 200;
        wide.dtype = dtype;
        Data data(wide, random);
        Case c = wide;
        c.k = k;
        Data narrow(c, random);
        for (const auto& [from, to] : {std::pair{&narrow.x, &data.x}, {&narrow.weight, &data.weight}}) {
          to->fill([](std::int64_t) { return kNan; });
          for (std::int64_t i = 0; i < from->numel(); ++i) to->set(i / k * wide.k + i % k, from->get(i));
        }
        narrow.out = data.out;
        const Wanted wanted = expectation(c, narrow, backend.cuda());
        const UseBackend use(backend);
        LinearInputs in;
        in.x = data.x.on(backend), in.weight = data.weight.on(backend), in.bias = narrow.bias.on(backend);
        in.x.shape[1] = in.weight.shape[1] = k;
        const Scratch scratch(backend, linear_workspace_bytes(in));
        const Status status = linear(in, {}, data.out.on(backend), {scratch.data(), nullptr});
        ASSERT_TRUE(status.ok()) << status.message();
        synchronize(backend);
        data.out.fetch();
        compare(c, data.out, wanted);
      }
    }
  }
}

TEST(LinearSmall, Epilogues) {
  // One element; less than a vector and a vector's end; more than a block's columns and rows.
  constexpr std::int64_t kShapes[][2] = {{1, 1}, {1, 5}, {3, 16}, {33, 24}, {40, 265}, {2, 600}};
  Random random(98);
  int turn = 0;
  for (const Backend& backend : kEmulated ? few_backends() : all_backends()) {
    for (const auto& shape : kShapes) {
      for (DType dtype : kFloats) {
        for (bool in_place : {false, true}) {
          if (left_out(turn, 2)) continue;
          Case c;
          c.product = false;
          c.m = shape[0], c.n = shape[1];
          c.dtype = dtype;
          draw_options(c, random);
          c.in_place = in_place && (c.residual || !c.options.gated);
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(LinearSmall, NoRows) {
  for (const Backend& backend : all_backends()) {
    for (bool product : {true, false}) {
      Random random(99);
      Case c;
      c.product = product;
      c.m = 0, c.n = 9, c.k = 5;
      c.residual = true;
      check(c, backend, random);
    }
  }
}

// A row has the same bits alone, among others and wherever it stands among them, within M's ranges.
TEST(LinearSmall, RowsDoNotInfluenceEachOther) {
  struct Range {
    std::int64_t few, many;
  };
  constexpr Range kCpuRanges[] = {{1, 8}, {9, 250}}, kCudaRanges[] = {{1, 64}, {65, 70}};
  for (const Backend& backend : kEmulated ? few_backends() : all_backends()) {
    for (DType dtype : kFloats) {
      for (const Range& range : backend.cuda() ? kCudaRanges : kCpuRanges) {
        if (kEmulated && dtype == DType::kBFloat16) continue;
        Random random(100);
        Case few;
        few.m = range.few, few.n = 40, few.k = 328;
        few.dtype = dtype;
        few.options.activation = Activation::kGelu;
        Case many = few;
        many.m = range.many;
        Data alone(few, random), among(many, random);
        among.weight = alone.weight, among.bias = alone.bias;
        for (std::int64_t k = 0; k < few.k; ++k) among.x.set((many.m - 2) * few.k + k, alone.x.get(k));
        const UseBackend use(backend);
        ASSERT_TRUE(alone.run(few, backend).ok());
        ASSERT_TRUE(among.run(many, backend).ok());
        for (std::int64_t i = 0; i < few.n; ++i)
          ASSERT_EQ(alone.out.get(i), among.out.get((many.m - 2) * few.n + i)) << backend << i;
      }
    }
  }
}

TEST(Linear, Drawn) {
  Random random(101);
  for (const Backend& backend : kEmulated ? few_backends() : device_backends()) {
    for (int repetition = 0; repetition < sized(150, 14); ++repetition) {
      Case c;
      c.product = random.chance(0.8);
      c.dtype = random.pick(kFloats);
      c.m = random.log_integer(1, sized(300, 70));
      c.n = random.log_integer(1, sized(300, 90));
      c.k = random.log_integer(1, sized(900, 300));
      if (random.chance(0.5)) c.n = (c.n + 7) / 8 * 8, c.k = (c.k + 7) / 8 * 8;
      draw_options(c, random);
      if (random.chance(0.5)) {
        c.x_layout = random.pick(kWritableLayouts), c.weight_layout = random.pick(kWritableLayouts);
        c.up_layout = random.pick(kWritableLayouts);
        c.residual_layout = random.pick(kWritableLayouts), c.out_layout = random.pick(kWritableLayouts);
      }
      check(c, backend, random);
    }
  }
}

#if STROP_WITH_CUDA
// Each tile of the tensor cores' kernel and the kernel for any layout, cut along K and not, whatever tune() would take.
TEST(LinearSmall, EveryTile) {
  struct Tile {
    int rows, columns;
  };
  constexpr Tile kTiles[] = {{16, 64}, {32, 64}, {64, 64}, {128, 64}, {128, 128}, {0, 0}};
  for (const Backend& backend : few_backends()) {
    if (!backend.cuda()) continue;
    const UseBackend use(backend);
    const DeviceInfo* device;
    ASSERT_TRUE(current_device_info(&device).ok());
    Random random(102);
    for (const Tile& tile : kTiles) {
      for (DType dtype : kFloats) {
        for (bool gated : {false, true}) {
          if (kEmulated && dtype != DType::kFloat32 && (dtype == DType::kBFloat16) != gated) continue;
          Case c;
          c.m = std::max(tile.rows, 1) + 5, c.n = std::max(tile.columns, 64) / (gated ? 2 : 1) + 8;
          c.k = 328;  // more turns than there are stages
          c.dtype = dtype;
          c.options = {Activation::kSilu, gated};
          c.residual = true;
          SCOPED_TRACE(::testing::Message() << backend << " tile " << tile.rows << "x" << tile.columns << " of "
                                            << c.text() << ", seed " << test_seed());
          Data data(c, random);
          const Wanted wanted = expectation(c, data, true);
          Problem p = data.problem(c, [&](Tensor& t) { return t.on(backend); });
          p.epilogue.out = matrix(data.out.on(backend));
          Tuning t = tune(c.m, c.n, c.k, gated, false, device->shared_bytes_per_block);
          t.along_k = {384, 1};
          if (tile.rows > 0) {
            if (dtype == DType::kFloat32 || mma_shared_bytes(tile.rows, tile.columns) > device->shared_bytes_per_block)
              continue;
            t.mma = true;
            t.rows = tile.rows, t.columns = tile.columns, t.threads = tile.columns == 128 ? 256 : 128;
            t.shared_bytes = mma_shared_bytes(t.rows, t.columns);
          }
          const Status status = run_cuda(p, nullptr, &t);
          ASSERT_TRUE(status.ok()) << status.message();
          synchronize(backend);
          data.out.fetch();
          data.out.expect_only_elements_changed("out");
          compare(c, data.out, wanted);
        }
      }
    }
  }
}
#endif

// The CPU's result is bitwise the same whatever runs its tiles.
TEST(Linear, ThreadsDoNotChangeResults) {
  if (kEmulated) GTEST_SKIP() << "of the CPU";
  const Backend& cpu = device_backends()[0];
  for (std::int64_t m : {3, 300}) {
    const auto run = [&] {
      Random random(103);
      Case c;
      c.m = m, c.n = 200, c.k = 300;
      Data data(c, random);
      EXPECT_TRUE(data.run(c, cpu).ok());
      return data.out.bytes();
    };
    expect_threads_change_nothing(run);
  }
}

#if STROP_EMULATED
// Which warp and which block goes first changes nothing: what the blocks of a tile found is added in the order of K.
TEST(Linear, SchedulesDoNotChangeResults) {
  for (const Backend& backend : few_backends()) {
    for (DType dtype : {DType::kFloat32, DType::kFloat16}) {
      SCOPED_TRACE(backend.name);
      expect_schedules_change_nothing([&] {
        Random random(104);
        Case c;
        c.m = 7, c.n = 40, c.k = 520;
        c.dtype = dtype;
        EXPECT_GT(split(c.m, c.n, c.k, false).count, 2);
        Data data(c, random);
        const UseBackend use(backend);
        EXPECT_TRUE(data.run(c, backend).ok());
        return data.out.bytes();
      });
    }
  }
}

// Few rows: each weight comes from global memory once, by whole sectors, and no two lanes meet in a bank of shared
// memory.
TEST(LinearSmall, WeightsAreReadOnce) {
  const Backend& backend = all_backends()[0];
  const UseBackend use(backend);
  for (DType dtype : kHalves) {
    for (bool gated : {false, true}) {
      Random random(106);
      Case c;
      c.m = 16, c.n = gated ? 64 : 128, c.k = 512;
      c.dtype = dtype;
      c.options.gated = gated;
      Data data(c, random);
      emu::set_counting(true);
      const Status status = data.run(c, backend);
      emu::set_counting(false);
      ASSERT_TRUE(status.ok()) << status.message();
      const emu::Counts& counts = emu::counts();
      const auto weight = std::find_if(counts.buffers.begin(), counts.buffers.end(),
                                       [](const emu::BufferCounts& b) { return b.name == "weight"; });
      ASSERT_NE(weight, counts.buffers.end());
      EXPECT_EQ(weight->reads, 128 * c.k * 2);
      EXPECT_EQ(weight->bytes_read, 128 * c.k * 2);
      int lines = 0;
      for (const emu::LineCounts& line : counts.lines) {
        if (!line.shared && line.buffer != "weight" && line.buffer != "out") continue;
        EXPECT_EQ(line.moved, line.least) << line.where.file << ":" << line.where.line << " of " << line.buffer;
        ++lines;
      }
      EXPECT_GE(lines, 8);
    }
  }
}
#endif

TEST(LinearSmall, Tuning) {
  constexpr std::size_t kHopper = 227 * 1024;
  for (std::int64_t m : {1, 16, 17, 64, 65, 256, 257, 2048, 8192}) {
    for (std::int64_t n : {1, 64, 768, 3072}) {
      for (std::int64_t k : {1, 64, 768, 3072, 100000}) {
        for (bool gated : {false, true}) {
          const Tuning t = tune(m, n, k, gated, true, kHopper);
          EXPECT_TRUE(t.mma);
          EXPECT_LE(t.shared_bytes, kHopper);
          EXPECT_EQ(t.along_k.depth % kDepth, 0);
          EXPECT_GE(t.along_k.depth * t.along_k.count, k);
          EXPECT_LT(t.along_k.depth * (t.along_k.count - 1), k);
          EXPECT_EQ(t.along_k.count > 1, workspace_bytes(m, n, k, gated) > 0);
          // The same cut for all of a range, as rows alone and among others ask for it.
          const std::int64_t last = m <= 64 ? 64 : m <= 256 ? 256 : 100000;
          EXPECT_EQ(t.along_k.count, split(last, n, k, gated).count);
          if (t.along_k.count > 1) {
            EXPECT_EQ(t.rows, few_rows(m));
          }
        }
      }
    }
  }
  // Weights of BERT-base by a block on most multiprocessors; large tiles once there are many.
  EXPECT_GE(column_tiles(3072, false, kColumns) * split(1, 3072, 768, false).count, 132);
  EXPECT_GE(column_tiles(768, false, kColumns) * split(1, 768, 3072, false).count, 132);
  EXPECT_EQ(tune(8192, 768, 768, false, true, kHopper).columns, 128);
  EXPECT_EQ(tune(512, 768, 768, false, true, kHopper).rows, 64);
  EXPECT_FALSE(tune(1, 64, 64, false, true, 16 * 1024).mma);
}

// ---------------------------------------------------------------------------------------------- Bad input

struct Call {
  Tensor x{DType::kFloat32, {4, 5}}, weight{DType::kFloat32, {6, 5}}, bias{DType::kFloat32, {6}};
  Tensor residual{DType::kFloat32, {4, 6}}, out{DType::kFloat32, {4, 6}}, y{DType::kFloat32, {4, 6}};
  LinearInputs in;
  LinearEpilogueInputs alone;
  LinearOptions options;
  TensorView to;
  bool epilogue = false;

  explicit Call(const Backend& backend) {
    for (Tensor* tensor : {&x, &weight, &bias, &residual, &y}) tensor->fill([](std::int64_t i) { return i; });
    in.x = x.on(backend), in.weight = weight.on(backend), in.bias = bias.on(backend);
    in.residual = residual.on(backend);
    alone = {y.on(backend), in.bias, in.residual};
    to = out.on(backend);
  }
};

struct Mistake {
  std::function<void(Call&)> make;
  StatusCode code;
  std::string message;  // a part of it
};

const Mistake kMistakes[] = {
    {[](Call& c) { c.in.x = {}; }, StatusCode::kValueError, "x: expected shape (M, K) with K at least 1, got none"},
    {[](Call& c) { c.in.x.data = nullptr; }, StatusCode::kValueError, "x: expected a tensor, got none"},
    {[](Call& c) { c.in.x.dtype = DType::kFloat64; }, StatusCode::kTypeError,
     "x: expected float32, float16 or bfloat16, got float64"},
    {[](Call& c) { c.in.x.shape[1] = 0; }, StatusCode::kValueError, "x: expected shape (M, K) with K at least 1"},
    {[](Call& c) { c.in.x.device = DeviceType::kOther; }, StatusCode::kValueError, "x: expected a CPU or CUDA tensor"},
    {[](Call& c) { c.in.x.data = moved(c.in.x.data, DType::kUInt8, 2); }, StatusCode::kValueError,
     "x: expected data aligned to float32"},
    {[](Call& c) { c.in.weight.rank = 1; }, StatusCode::kValueError, "weight: expected shape (N, K), got (6,)"},
    {[](Call& c) { c.in.weight.shape[1] = 4; }, StatusCode::kValueError, "weight: expected shape (6, 5), got (6, 4)"},
    {[](Call& c) { c.in.weight.dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "weight: expected float32 like x, got float16"},
    {[](Call& c) { c.in.weight.device = DeviceType::kOther; }, StatusCode::kValueError, "weight: expected "},
    {[](Call& c) { c.options.gated = true, c.in.weight.shape[0] = 5; }, StatusCode::kValueError,
     "weight: expected shape (2N, K) with N at least 1, as it is gated, got (5, 5)"},
    {[](Call& c) { c.in.up_weight = c.in.weight; }, StatusCode::kValueError,
     "up_weight: expected none, as nothing is gated"},
    {[](Call& c) { c.in.up_bias = c.in.bias; }, StatusCode::kValueError, "up_bias: expected none, as nothing is gated"},
    {[](Call& c) { c.options.gated = true, c.in.up_bias = c.in.bias; }, StatusCode::kValueError,
     "up_bias: expected none, as there is no up_weight"},
    {[](Call& c) {
       c.options.gated = true, c.in.up_weight = c.in.weight;
       c.in.up_weight.shape[0] = 3;
     },
     StatusCode::kValueError, "up_weight: expected shape (6, 5), got (3, 5)"},
    {[](Call& c) { c.in.bias.shape[0] = 3; }, StatusCode::kValueError, "bias: expected shape (6,), got (3,)"},
    {[](Call& c) { c.in.bias.dtype = DType::kBool; }, StatusCode::kTypeError, "bias: expected float32"},
    {[](Call& c) { c.in.residual.shape[0] = 3; }, StatusCode::kValueError,
     "residual: expected shape (4, 6), got (3, 6)"},
    {[](Call& c) { c.options.gated = true; }, StatusCode::kValueError, "residual: expected shape (4, 3), got (4, 6)"},
    {[](Call& c) { c.options.activation = static_cast<Activation>(9); }, StatusCode::kValueError,
     "activation: expected one of Activation, got 9"},
    {[](Call& c) { c.to = {}; }, StatusCode::kValueError, "out: expected shape (4, 6), got none"},
    {[](Call& c) { c.to.dtype = DType::kBFloat16; }, StatusCode::kTypeError, "out: expected float32 like x"},
    {[](Call& c) { c.to.strides[0] = 5; }, StatusCode::kValueError,
     "out: expected elements that share no memory, got shape (4, 6) with strides (5, 1)"},
    {[](Call& c) { c.in.x.data = c.to.data; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with x"},
    {[](Call& c) { c.in.weight.data = c.to.data; }, StatusCode::kValueError, "memory shared with weight"},
    {[](Call& c) { c.in.bias.data = c.to.data; }, StatusCode::kValueError, "memory shared with bias"},
    {[](Call& c) { c.in.residual.data = c.to.data, c.in.residual.strides[0] = 0; }, StatusCode::kValueError,
     "out: expected memory of its own or exactly that of residual, got memory shared with residual"},
    {[](Call& c) { c.epilogue = true, c.alone.y = {}; }, StatusCode::kValueError,
     "y: expected shape (M, N) with N at least 1, got none"},
    {[](Call& c) { c.epilogue = true, c.alone.y.shape[1] = 5, c.options.gated = true; }, StatusCode::kValueError,
     "y: expected shape (M, 2N), as it is gated, got (4, 5)"},
    {[](Call& c) { c.epilogue = true, c.alone.bias.shape[0] = 5; }, StatusCode::kValueError,
     "bias: expected shape (6,), got (5,)"},
    {[](Call& c) { c.epilogue = true, c.alone.residual.dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "residual: expected float32 like y, got float16"},
    {[](Call& c) {
       c.epilogue = c.options.gated = true;
       c.alone.residual = {}, c.to = c.alone.y, c.to.shape[1] = 3;
     },
     StatusCode::kValueError, "out: expected memory of its own, got memory shared with y"},
    {[](Call& c) {
       c.epilogue = true;
       c.to.data = moved(c.alone.y.data, DType::kFloat32, 1);
       c.alone.y.shape[0] = c.alone.residual.shape[0] = c.to.shape[0] = 3;
     },
     StatusCode::kValueError, "out: expected memory of its own or exactly that of y, got memory shared with y"},
};

TEST(LinearSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Call c(backend);
      mistake.make(c);
      const Status status = c.epilogue ? linear_epilogue(c.alone, c.options, c.to) : linear(c.in, c.options, c.to);
      expect_refused(status, mistake.code, mistake.message, backend, {&c.x, &c.weight, &c.residual, &c.out, &c.y});
    }
  }
}

TEST(LinearSmall, WorkspaceIsAskedFor) {
  for (const Backend& backend : device_backends()) {
    Random random(105);
    Case c;
    c.k = 300, c.n = 70;
    Data data(c, random);
    const UseBackend use(backend);
    const LinearInputs in = data.inputs(c, [&](Tensor& t) { return t.on(backend); });
    // Two tiles of 16 x 64, each cut in three.
    EXPECT_EQ(linear_workspace_bytes(in), backend.cuda() ? 16 + 2 * 3 * 16 * 64 * 4 : 0u);
    const Status status = linear(in, {}, data.out.on(backend));
    EXPECT_EQ(status.ok(), !backend.cuda());
    if (backend.cuda()) {
      EXPECT_NE(status.message().find("execution.workspace: expected"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace strop::lin
