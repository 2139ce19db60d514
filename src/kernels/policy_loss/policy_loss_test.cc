// GRPO and BNPO against the oracle, on every backend. Suites whose name contains Small use small shapes only, so that
// they also run under slow tools (compute-sanitizer).
#include "kernels/policy_loss/policy_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "strop/losses.h"
#include "tests/support/backend.h"
#include "tests/support/orders.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::policy_loss {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

enum class MaskKind { kAll, kNone, kRandom, kRagged };

struct Case {
  std::int64_t batch = 1, tokens = 1;
  Reduction reduction = Reduction::kSequenceMean;
  bool fused = true;
  DType policy = DType::kFloat32, old_policy = DType::kFloat32, ref = DType::kFloat32;
  DType advantages = DType::kFloat32, mask = DType::kBool;
  Layout policy_layout{}, old_policy_layout{}, ref_layout{}, advantages_layout{}, mask_layout{};
  bool token_advantages = false;
  MaskKind mask_kind = MaskKind::kRandom;
  double spread = 0.3;  // of policy - old and ref - policy
  PolicyLossOptions options;

  std::string text() const {
    std::ostringstream out;
    out << (reduction == Reduction::kSequenceMean ? "grpo" : "bnpo") << (fused ? " fused" : " forward") << " (" << batch
        << ", " << tokens << ") beta " << options.beta << " eps " << options.eps << "/"
        << options.eps_high.value_or(options.eps) << " mask kind " << static_cast<int>(mask_kind) << " spread "
        << spread << " policy " << dtype_name(policy) << " " << layout_name(policy_layout) << ", old "
        << dtype_name(old_policy) << " " << layout_name(old_policy_layout) << ", ref " << dtype_name(ref) << " "
        << layout_name(ref_layout) << ", advantages" << (token_advantages ? " (B, T) " : " (B,) ")
        << dtype_name(advantages) << " " << layout_name(advantages_layout) << ", mask " << dtype_name(mask) << " "
        << layout_name(mask_layout);
    return out.str();
  }
};

double valid_value(DType dtype, Random& random) {
  // Values that a careless conversion to bool, byte, int or float would take for 0.
  switch (dtype) {
    case DType::kBool:
      return 1;
    case DType::kInt16:
    case DType::kUInt16:
      return random.pick({1.0, 256.0});
    case DType::kInt32:
      return random.pick({1.0, 256.0, 65536.0, -2147483648.0});
    case DType::kUInt32:
      return random.pick({1.0, 65536.0, 2147483648.0});
    case DType::kInt64:
    case DType::kUInt64:
      return random.pick({1.0, 256.0, 4294967296.0, 1099511627776.0});
    case DType::kFloat16:
      return random.pick({1.0, 0.25, -1.0, 0x1p-24, kInf, kNan});
    case DType::kFloat32:
    case DType::kBFloat16:
      return random.pick({1.0, 0.25, -1.0, 1e-30, 0x1p-133, kInf, kNan});
    case DType::kFloat64:
      return random.pick({1.0, 0.25, -1.0, 1e-300, kInf, kNan});
    default:
      return random.pick({1.0, 2.0, 127.0});
  }
}

// The tensors of a call. Tokens that are masked hold NaN, infinities and huge values wherever no valid token shares
// their memory.
struct Data {
  Tensor policy, old_policy, ref, advantages, mask, loss, grad;

  explicit Data(const Case& c, Random& random)
      : policy(c.policy, {c.batch, c.tokens}, c.policy_layout),
        old_policy(c.old_policy, {c.batch, c.tokens}, c.old_policy_layout),
        ref(c.ref, {c.batch, c.tokens}, c.ref_layout),
        advantages(c.advantages, c.token_advantages ? std::vector{c.batch, c.tokens} : std::vector{c.batch},
                   c.advantages_layout),
        mask(c.mask, {c.batch, c.tokens}, c.mask_layout),
        loss(DType::kFloat32, {}),
        grad(c.policy, {c.batch, c.tokens}) {
    std::int64_t ragged_end = 0;
    mask.fill([&](std::int64_t i) {
      if (c.tokens > 0 && i % c.tokens == 0) ragged_end = random.integer(0, c.tokens);
      const bool valid = c.mask_kind == MaskKind::kAll || (c.mask_kind == MaskKind::kRandom && random.chance(0.7)) ||
                         (c.mask_kind == MaskKind::kRagged && i % c.tokens < ragged_end);
      return valid ? valid_value(c.mask, random) : random.chance(0.5) ? -0.0 : 0.0;
    });
    const auto poison = [&] { return random.pick({kNan, kInf, -kInf, 1e30, -1e30}); };
    policy.fill([&](std::int64_t) { return -std::abs(random.normal()); });
    old_policy.fill([&](std::int64_t i) { return policy.get(i) + c.spread * random.normal(); });
    ref.fill([&](std::int64_t i) { return policy.get(i) + c.spread * random.normal(); });
    advantages.fill([&](std::int64_t) { return random.normal(); });
    for (Tensor* tensor : {&policy, &old_policy, &ref, &advantages}) {
      if (tensor->expanded() || tensor->shape().size() != 2) continue;
      for (std::int64_t i = 0; i < tensor->numel(); ++i) {
        if (mask.get(i) == 0) tensor->set(i, poison());
      }
    }
  }

  Problem problem(const Case& c) {
    const auto matrix = [](const TensorView& view) {
      return Matrix{view.data, view.strides[0], view.rank == 2 ? view.strides[1] : 0, view.dtype};
    };
    Problem p;
    p.batch = c.batch;
    p.tokens = c.tokens;
    p.policy = matrix(policy.host());
    p.old_policy = matrix(old_policy.host());
    p.ref = matrix(ref.host());
    p.advantages = matrix(advantages.host());
    p.mask = matrix(mask.host());
    p.reduction = c.reduction;
    p.beta = static_cast<float>(c.options.beta);
    p.clip_low = static_cast<float>(1.0 - c.options.eps);
    p.clip_high = static_cast<float>(1.0 + c.options.eps_high.value_or(c.options.eps));
    return p;
  }

  Status run(const Case& c, const Backend& backend, const Workspace& workspace) {
    const PolicyLossInputs inputs{policy.on(backend), old_policy.on(backend),
                                  c.options.beta != 0 ? ref.on(backend) : TensorView{}, advantages.on(backend),
                                  mask.on(backend)};
    const auto function = c.reduction == Reduction::kSequenceMean ? grpo_loss : bnpo_loss;
    const Status status = function(inputs, c.options, loss.on(backend), c.fused ? grad.on(backend) : TensorView{},
                                   {workspace.data(), nullptr});
    synchronize(backend);
    loss.fetch();
    if (c.fused) grad.fetch();
    return status;
  }
};

// Error of one token's loss, and of its gradient, that fp32 arithmetic may have, in units of 2^-24:
// - r = exp(policy - old): the difference is rounded, which exp turns into |policy - old| of relative error, exp itself
//   may have 2 ulp (4 units), and the products with A and the mask's weight are rounded: 4 + |δ| + 3 in all.
// - exp(d) - d - 1 evaluated term by term: (4 + |d|) e^d from exp, |d| + 1 from the sums, each product with beta 1
// more.
double token_error(double delta, double advantage, double d, double beta) {
  delta = std::max(delta, -200.0);  // exp is 0 from here on, and -inf makes no NaN of it
  d = std::max(d, -200.0);
  const double r = std::exp(delta);
  double error = r * std::abs(advantage) * (7 + std::abs(delta));
  if (beta != 0) error += std::abs(beta) * ((6 + std::abs(d)) * std::exp(d) + 3 * std::abs(d) + 3);
  return error;
}

// fp32 sums: a lane adds at most 256 terms in a row before sums meet in a tree or in double, and roundings of the
// terms are independent, so that 64 units of the sum of magnitudes is never reached by rounding alone.
constexpr double kSumUnits = 64;

void expect_close(double got, double expected, double tolerance, const char* what) {
  if (std::isnan(expected) || std::isinf(expected)) {
    EXPECT_TRUE(std::isnan(expected) ? std::isnan(got) : got == expected) << what << ": " << got << " for " << expected;
  } else {
    EXPECT_LE(std::abs(got - expected), tolerance) << what << ": " << got << " for " << expected;
  }
}

void compare(const Case& c, Data& data) {
  const Problem p = data.problem(c);
  std::vector<double> grad(static_cast<std::size_t>(c.batch * c.tokens));
  double loss;
  reference(p, &loss, grad.data());

  std::int64_t total_valid = 0;
  for (std::int64_t i = 0; i < c.batch * c.tokens; ++i) total_valid += data.mask.get(i) != 0;
  double tolerance = 0x1p-24 * std::abs(loss) + 0x1p-149;
  int failures = 0;
  std::int64_t near_border = 0;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    std::int64_t row_valid = 0;
    for (std::int64_t t = 0; t < c.tokens; ++t) row_valid += data.mask.get(b * c.tokens + t) != 0;
    const double weight = c.reduction == Reduction::kTokenMean
                              ? 1.0 / static_cast<double>(std::max<std::int64_t>(total_valid, 1))
                              : 1.0 / static_cast<double>(c.batch * std::max<std::int64_t>(row_valid, 1));
    for (std::int64_t t = 0; t < c.tokens && failures < 5; ++t) {
      const std::int64_t i = b * c.tokens + t;
      if (data.mask.get(i) == 0) {
        if (c.fused && !data.grad.bits_zero(i)) {
          ADD_FAILURE() << "gradient of the masked token (" << b << ", " << t << ") is " << data.grad.get(i);
          ++failures;
        }
        continue;
      }
      const double delta = data.policy.get(i) - data.old_policy.get(i);
      const double advantage = data.advantages.get(c.token_advantages ? i : b);
      const double d = p.beta != 0 ? data.ref.get(i) - data.policy.get(i) : 0;
      const double error = 0x1p-24 * token_error(delta, advantage, d, p.beta);
      const double magnitude = std::exp(delta) * std::abs(advantage) + std::abs(p.beta) * (std::expm1(d) - d);
      if (std::isfinite(error)) tolerance += weight * (error + kSumUnits * 0x1p-24 * magnitude);
      if (!c.fused) continue;
      const double r = std::exp(delta);
      const double border = (8 + std::abs(delta)) * 0x1p-24 * r;
      if (std::abs(r - p.clip_low) <= border || std::abs(r - p.clip_high) <= border) {
        ++near_border;  // rounding decides on which side of the clip's border r lies
        continue;
      }
      const double expected = grad[static_cast<std::size_t>(i)], got = data.grad.get(i);
      double limit = 65504.0;
      if (c.policy != DType::kFloat16) limit = std::numeric_limits<float>::max();
      if (std::isfinite(expected) && std::abs(expected) > limit * 0.999) continue;
      const double allowed = weight * error + unit_roundoff(c.policy) * (std::abs(expected) + weight * error) +
                             subnormal_roundoff(c.policy) + 0x1p-149;
      const bool right = std::isnan(expected)   ? std::isnan(got)
                         : std::isinf(expected) ? got == expected
                                                : std::abs(got - expected) <= allowed;
      if (!right) {
        ADD_FAILURE() << "gradient (" << b << ", " << t << ") is " << got << ", expected " << expected << " +- "
                      << allowed << "; policy - old " << delta << " A " << advantage << " ref - policy " << d;
        ++failures;
      }
    }
  }
  EXPECT_LE(near_border, 2 + c.batch * c.tokens / 50) << "too few gradients compared";
  expect_close(data.loss.get(0), loss, tolerance, "loss");
}

void check(const Case& c, const Backend& backend, Random& random) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << c.text());
  Data data(c, random);
  Workspace workspace(backend);
  const UseBackend use(backend);
  const Status status = data.run(c, backend, workspace);
  ASSERT_TRUE(status.ok()) << status.message();
  data.policy.expect_unchanged("policy_logprobs");
  data.old_policy.expect_unchanged("old_policy_logprobs");
  if (c.options.beta != 0) data.ref.expect_unchanged("ref_logprobs");
  data.advantages.expect_unchanged("advantages");
  data.mask.expect_unchanged("completions_mask");
  data.loss.expect_only_elements_changed("loss");
  if (c.fused) data.grad.expect_only_elements_changed("grad");
  workspace.expect_intact();
  compare(c, data);

  // Bitwise the same again, with other garbage in the outputs and the workspace.
  const float first_loss = static_cast<float>(data.loss.get(0));
  const Tensor first_grad = data.grad;
  data.loss.set(0, 1);
  ASSERT_TRUE(data.run(c, backend, workspace).ok());
  const auto second_loss = static_cast<float>(data.loss.get(0));
  EXPECT_EQ(std::memcmp(&first_loss, &second_loss, sizeof(float)), 0) << first_loss << " then " << second_loss;
  EXPECT_TRUE(!c.fused || first_grad.bytes() == data.grad.bytes()) << "another gradient the second time";
}

// Calls f with every combination of reduction, variant and beta.
template <class F>
void for_each_variant(F&& f) {
  for (Reduction reduction : {Reduction::kSequenceMean, Reduction::kTokenMean}) {
    for (bool fused : {false, true}) {
      for (double beta : {0.1, 0.0}) {
        Case c;
        c.reduction = reduction;
        c.fused = fused;
        c.options.beta = beta;
        f(c);
      }
    }
  }
}

TEST(PolicyLossSmall, Shapes) {
  constexpr std::pair<std::int64_t, std::int64_t> kShapes[] = {
      {1, 1},                          // one token
      {1, 7},   {5, 1},                // less than a vector; one token a row
      {3, 16},  {2, 17},               // exactly one AVX-512 vector, and one token more
      {7, 31},  {13, 61},              // odd and prime, with tails of every size below a vector
      {4, 256}, {2, 1023}, {3, 1025},  // around a thread block's stride
  };
  Random random(1);
  for (const Backend& backend : all_backends()) {
    for_each_variant([&](Case c) {
      for (const auto& [batch, tokens] : kShapes) {
        c.batch = batch;
        c.tokens = tokens;
        check(c, backend, random);
      }
    });
  }
}

TEST(PolicyLoss, Shapes) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> native = {
      {16, 1024},  {16, 2781},             // published shapes; work for one thread, and for two
      {33, 4095},  {3, 4097},              // around what is summed in one go on the CPU
      {2, 8191},   {3, 8192},  {2, 8193},  // around a part of a row on the CPU
      {1, 100003}, {5, 30011},             // few long rows, which are cut into parts
      {70001, 3},  {65537, 1},             // more rows than a grid has in y, many rows a chunk
      {257, 129},  {1000, 40},             // more rows than chunks
      {300, 1},                            // one token a row
  };
  // The emulated devices have few multiprocessors, so that these take every way through the kernel.
  const std::vector<std::pair<std::int64_t, std::int64_t>> emulated = {
      {3, 1100}, {2, 2050},  // blocks of 256 and 512 threads
      {1, 8300}, {2, 8300},  // rows of two tiles: blocks share them
      {90, 3},   {41, 30},   // groups of a few lanes, several rows a block
      {400, 9},              // more of them than blocks have groups
      {30, 130},             // more rows than blocks
  };
  const auto shapes = sized(native, emulated);
  Random random(2);
  for (const Backend& backend : device_backends()) {
    for_each_variant([&](Case c) {
      for (const auto& [batch, tokens] : shapes) {
        c.batch = batch;
        c.tokens = tokens;
        c.mask_kind = random.pick({MaskKind::kRandom, MaskKind::kRagged, MaskKind::kAll});
        check(c, backend, random);
      }
    });
  }
}

// More rows of two tiles than there are blocks: each walks over the tiles of its rows.
TEST(PolicyLoss, RowsOfSeveralTiles) {
  Random random(15);
  const Backend& backend = device_backends()[sized<std::size_t>(device_backends().size() - 1, 0)];
  for (bool fused : {false, true}) {
    Case c;
    c.batch = sized(300, 5);
    c.tokens = 8200;
    c.fused = fused;
    c.mask_kind = MaskKind::kRagged;
    check(c, backend, random);
  }
}

TEST(PolicyLossSmall, DtypesMixed) {
  Random random(3);
  for (const Backend& backend : all_backends()) {
    for (DType policy : kFloats) {
      for (DType old_policy : kFloats) {
        for (DType ref : kFloats) {
          Case c;
          c.batch = 3;
          c.tokens = random.integer(1, 150);
          c.policy = policy;
          c.old_policy = old_policy;
          c.ref = ref;
          c.advantages = random.pick(kFloats);
          c.token_advantages = random.chance(0.5);
          c.reduction = random.pick({Reduction::kSequenceMean, Reduction::kTokenMean});
          c.options.beta = random.pick({0.1, 0.0});
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(PolicyLossSmall, Masks) {
  Random random(4);
  for (const Backend& backend : all_backends()) {
    for (DType dtype : kMasks) {
      for (MaskKind kind : {MaskKind::kAll, MaskKind::kNone, MaskKind::kRandom, MaskKind::kRagged}) {
        for (Reduction reduction : {Reduction::kSequenceMean, Reduction::kTokenMean}) {
          Case c;
          c.batch = 4;
          c.tokens = random.integer(1, 200);
          c.reduction = reduction;
          c.mask = dtype;
          c.mask_kind = kind;
          c.mask_layout = random.pick(kLayouts);
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(PolicyLossSmall, Layouts) {
  Random random(5);
  for (const Backend& backend : all_backends()) {
    for (Layout layout : kLayouts) {
      for (DType dtype : kFloats) {
        for (bool token_advantages : {false, true}) {
          Case c;
          c.batch = 3;
          c.tokens = random.integer(2, 90);
          c.policy = c.old_policy = c.ref = c.advantages = dtype;
          c.policy_layout = c.old_policy_layout = c.ref_layout = c.advantages_layout = c.mask_layout = layout;
          c.token_advantages = token_advantages;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(PolicyLoss, Fuzz) {
  Random random(6);
  for (int i = 0; i < sized(150, 80); ++i) {
    Case c;
    c.batch = random.log_integer(1, sized(400, 60));
    c.tokens = random.log_integer(1, std::max<std::int64_t>(2, sized(20000, 2000) / c.batch));
    c.reduction = random.pick({Reduction::kSequenceMean, Reduction::kTokenMean});
    c.fused = random.chance(0.7);
    const bool one_dtype = random.chance(0.5);
    c.policy = random.pick(kFloats);
    c.old_policy = one_dtype ? c.policy : random.pick(kFloats);
    c.ref = one_dtype ? c.policy : random.pick(kFloats);
    c.advantages = random.pick(kFloats);
    c.mask = random.pick(kMasks);
    c.token_advantages = random.chance(0.3);
    for (Layout* layout :
         {&c.policy_layout, &c.old_policy_layout, &c.ref_layout, &c.advantages_layout, &c.mask_layout}) {
      if (random.chance(0.3)) *layout = random.pick(kLayouts);
    }
    c.mask_kind = random.pick({MaskKind::kAll, MaskKind::kRandom, MaskKind::kRagged});
    c.spread = random.pick({0.01, 0.3, 3.0});
    c.options.beta = random.pick({0.0, 0.04, 1.0});
    c.options.eps = random.pick({0.1, 0.2, 1.5});
    if (random.chance(0.5)) c.options.eps_high = random.pick({0.05, 0.28, 10.0});
    if (!kEmulated) {
      for (const Backend& backend : device_backends()) check(c, backend, random);
    }
    check(c, all_backends()[static_cast<std::size_t>(i) % all_backends().size()], random);
  }
}

// With data of one sign nothing cancels, so every error of the sums shows.
TEST(PolicyLoss, KlTermAlone) {
  Random random(7);
  for (const Backend& backend : all_backends()) {
    for (double spread : {1e-3, 1e-2, 0.3, 2.0}) {
      Case c;
      c.batch = 2;
      c.tokens = 4000;
      c.options.beta = 1;
      Data data(c, random);
      data.mask.fill([](std::int64_t) { return 1; });
      data.policy.fill([&](std::int64_t) { return random.normal(); });
      data.old_policy.fill([](std::int64_t) { return 0; });
      data.advantages.fill([](std::int64_t) { return 0; });
      data.ref.fill([&](std::int64_t i) { return data.policy.get(i) + spread * random.normal(); });
      const UseBackend use(backend);
      Workspace workspace(backend);
      ASSERT_TRUE(data.run(c, backend, workspace).ok());
      compare(c, data);
      if (backend.cuda()) continue;
      // The CPU evaluates exp(d) - d - 1 without cancellation: a relative error, however small d is. The differences
      // ref - policy are exact here or rounded by 2^-24 of themselves, which doubles in d^2 / 2; 16 units in all.
      double loss;
      reference(data.problem(c), &loss, nullptr);
      EXPECT_LE(std::abs(data.loss.get(0) - loss), (16 + kSumUnits) * 0x1p-24 * loss) << backend << " " << spread;
    }
  }
}

// NaN and infinity in a valid token reach the loss and that token's gradient as the formula says, and no other token.
TEST(PolicyLossSmall, NonFiniteValuesInValidTokens) {
  for (const Backend& backend : all_backends()) {
    for_each_variant([&](Case c) {
      c.batch = 3;
      c.tokens = 37;
      for (int which = 0; which < 4; ++which) {
        if (which == 3 && c.options.beta == 0) continue;
        for (double value : {kNan, kInf, -kInf}) {
          for (bool token_advantages : {false, true}) {
            Random random(8);
            c.token_advantages = token_advantages;
            c.mask_kind = MaskKind::kRandom;
            Data data(c, random);
            const std::int64_t token = 1 * c.tokens + 35;
            data.mask.set(token, 1);
            data.policy.set(token, -1);
            data.old_policy.set(token, -1.5);
            data.ref.set(token, -1.25);
            if (token_advantages) data.advantages.set(token, 1.5);
            Tensor* tensors[] = {&data.policy, &data.old_policy, &data.advantages, &data.ref};
            const bool by_row = which == 2 && !token_advantages;
            tensors[which]->set(by_row ? 1 : token, value);
            SCOPED_TRACE(::testing::Message() << backend << " " << c.text() << " input " << which << " = " << value);
            Workspace workspace(backend);
            const UseBackend use(backend);
            ASSERT_TRUE(data.run(c, backend, workspace).ok());
            if (std::isnan(value)) {
              EXPECT_TRUE(std::isnan(data.loss.get(0)));
              EXPECT_TRUE(!c.fused || std::isnan(data.grad.get(token)));
            }
            compare(c, data);
          }
        }
      }
    });
  }
}

// One token whose gradient is known exactly.
struct Single {
  double policy, old_policy, advantage, eps, eps_high, expected_loss, expected_grad;
};

TEST(PolicyLossSmall, TiesAndClipBorders) {
  constexpr double kDenormal = 0x1p-149;
  const Single kCases[] = {
      // r = 1 and a clip range of [1, 1]: a tie inside the range, the whole gradient.
      {-1, -1, 2.0, 0, 0, -2.0, -2.0},
      {-1, -1, -2.0, 0, 0, 2.0, 2.0},
      // The border belongs to the range.
      {-1, -1, 2.0, 0.5, 0, -2.0, -2.0},
      {-1, -1, -2.0, 0, 0.5, 2.0, 2.0},
      // Outside the range, on the side where the clipped term is smaller, and where it is not.
      {0, -1, 1.0, 0.2, 0.2, -static_cast<double>(1.2F), 0.0},
      {-1, 0, -1.0, 0.2, 0.2, static_cast<double>(0.8F), 0.0},
      {0, -std::log(2.0), -1.0, 0.2, 0.2, 2.0, 2.0},
      {-std::log(2.0), 0, 1.0, 0.2, 0.2, -0.5, -0.5},
      // A = 0 ties everywhere, and has no gradient.
      {0, -1, 0.0, 0.2, 0.2, 0.0, 0.0},
      // A tie outside the range: 1.22 and 1.2 times 3 units of the subnormals are both 4. The halves share the
      // gradient.
      {std::log(1.22), 0, 3 * kDenormal, 0.2, 0.2, -4 * kDenormal, -2 * kDenormal},
      {std::log(1.22), 0, -3 * kDenormal, 0.2, 0.2, 4 * kDenormal, 2 * kDenormal},
  };
  for (const Backend& backend : all_backends()) {
    for (Reduction reduction : {Reduction::kSequenceMean, Reduction::kTokenMean}) {
      for (const Single& single : kCases) {
        Case c;
        c.reduction = reduction;
        c.options.beta = 0;
        c.options.eps = single.eps;
        c.options.eps_high = single.eps_high;
        Random random(9);
        Data data(c, random);
        data.mask.set(0, 1);
        data.policy.set(0, single.policy);
        data.old_policy.set(0, single.old_policy);
        data.advantages.set(0, single.advantage);
        SCOPED_TRACE(::testing::Message() << backend << " policy " << single.policy << " old " << single.old_policy
                                          << " A " << single.advantage);
        Workspace workspace(backend);
        const UseBackend use(backend);
        ASSERT_TRUE(data.run(c, backend, workspace).ok());
        // exp is within 2 ulp (4 units), its argument is rounded (1 more); exact where the expected value is subnormal.
        const auto tolerance = [](double x) { return std::abs(x) < 1e-40 ? 0 : 6 * 0x1p-24 * std::abs(x); };
        EXPECT_NEAR(data.loss.get(0), single.expected_loss, tolerance(single.expected_loss));
        EXPECT_NEAR(data.grad.get(0), single.expected_grad, tolerance(single.expected_grad));
      }
    }
  }
}

TEST(PolicyLossSmall, EmptyAndAllMasked) {
  for (const Backend& backend : all_backends()) {
    for_each_variant([&](Case c) {
      for (const auto& [batch, tokens] : {std::pair<std::int64_t, std::int64_t>{0, 5}, {5, 0}, {0, 0}, {3, 50}}) {
        c.batch = batch;
        c.tokens = tokens;
        c.mask_kind = MaskKind::kNone;
        Random random(10);
        check(c, backend, random);
        Data data(c, random);
        Workspace workspace(backend);
        const UseBackend use(backend);
        ASSERT_TRUE(data.run(c, backend, workspace).ok());
        EXPECT_TRUE(data.loss.bits_zero(0));
      }
    });
  }
}

// The header's count: 13 bytes a token forward, 17 fused; and what need not be read.
TEST(PolicyLossSmall, FloorBytes) {
  Problem p;
  p.batch = 4, p.tokens = 300;
  const Matrix logprobs{nullptr, 300, 1, DType::kFloat32};
  p.policy = p.old_policy = p.ref = logprobs;
  p.advantages = {nullptr, 1, 0, DType::kFloat32};
  p.mask = {nullptr, 300, 1, DType::kBool};
  p.beta = 0.1f;
  const std::int64_t n = 4 * 300;
  EXPECT_EQ(floor_bytes(p, n), 13 * n + 4 * 4 + 4);
  float grad;
  p.grad = &grad;
  EXPECT_EQ(floor_bytes(p, n), 17 * n + 4 * 4 + 4);
  EXPECT_EQ(floor_bytes(p, 1), n + 3 * 4 + 4 + 4 * n + 4);  // of a masked token its mask, and its gradient
  EXPECT_EQ(floor_bytes(p, 0), n + 4 * n + 4);
  p.advantages = logprobs;
  EXPECT_EQ(floor_bytes(p, n), 21 * n + 4);
  p.beta = 0;
  EXPECT_EQ(floor_bytes(p, n), 17 * n + 4);
  p.policy.dtype = DType::kBFloat16;  // and so the gradient
  EXPECT_EQ(floor_bytes(p, n), 13 * n + 4);
  p.old_policy.stride_b = 0;  // one row, for all
  EXPECT_EQ(floor_bytes(p, n), 9 * n + 4 * 300 + 4);
}

// With beta 0 the reference is not looked at: it may be anything at all.
TEST(PolicyLossSmall, ReferenceIgnoredWithoutBeta) {
  for (const Backend& backend : all_backends()) {
    Case c;
    c.batch = 2;
    c.tokens = 20;
    c.options.beta = 0;
    Random random(11);
    Data data(c, random);
    Workspace workspace(backend);
    TensorView nonsense = TensorView::contiguous(reinterpret_cast<void*>(16), DType::kFloat64, {7});
    const PolicyLossInputs inputs{data.policy.on(backend), data.old_policy.on(backend), nonsense,
                                  data.advantages.on(backend), data.mask.on(backend)};
    const UseBackend use(backend);
    const Status status =
        grpo_loss(inputs, c.options, data.loss.on(backend), data.grad.on(backend), {workspace.data(), nullptr});
    ASSERT_TRUE(status.ok()) << status.message();
    synchronize(backend);
    data.loss.fetch();
    data.grad.fetch();
    compare(c, data);
  }
}

// A row's gradient does not depend on the rows beside it: with a power of two of copies it is that much smaller.
TEST(PolicyLossSmall, RowsDoNotInfluenceEachOther) {
  for (const Backend& backend : all_backends()) {
    Case one;
    one.tokens = 777;
    Case four = one;
    four.batch = 4;
    Random random(12), other(13);
    Data single(one, random), several(four, other);
    for (std::int64_t t = 0; t < one.tokens; ++t) {
      const std::int64_t i = 2 * one.tokens + t;
      several.policy.set(i, single.policy.get(t));
      several.old_policy.set(i, single.old_policy.get(t));
      several.ref.set(i, single.ref.get(t));
      several.mask.set(i, single.mask.get(t));
    }
    several.advantages.set(2, single.advantages.get(0));
    Workspace workspace(backend);
    const UseBackend use(backend);
    ASSERT_TRUE(single.run(one, backend, workspace).ok());
    ASSERT_TRUE(several.run(four, backend, workspace).ok());
    for (std::int64_t t = 0; t < one.tokens; ++t) {
      ASSERT_EQ(single.grad.get(t), 4 * several.grad.get(2 * one.tokens + t)) << backend << " " << t;
    }
  }
}

TEST(PolicyLoss, SeveralThreadsAtOnce) {
  for (const Backend& backend : device_backends()) {
    const auto run = [&](int thread, int repetition, Data* data) {
      Case c;
      c.batch = 9 + thread;
      c.tokens = sized(5000, 200);
      c.reduction = thread % 2 == 0 ? Reduction::kSequenceMean : Reduction::kTokenMean;
      Random random(100 + thread);
      if (repetition == 0) *data = Data(c, random);
      Workspace workspace(backend);
      const UseBackend use(backend);
      const Status status = data->run(c, backend, workspace);
      EXPECT_TRUE(status.ok()) << status.message();
    };
    constexpr int kThreads = 4;
    Case empty;
    Random unused(0);
    std::vector<Data> alone(kThreads, Data(empty, unused));
    for (int i = 0; i < kThreads; ++i) run(i, 0, &alone[i]);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        Case c;
        Random random(0);
        Data data(c, random);
        for (int repetition = 0; repetition < 10; ++repetition) {
          run(i, repetition, &data);
          EXPECT_EQ(data.loss.get(0), alone[i].loss.get(0));
          EXPECT_TRUE(data.grad.bytes() == alone[i].grad.bytes());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

// The CPU's result is bitwise the same whatever cuts and runs its work.
TEST(PolicyLoss, ThreadsDoNotChangeResults) {
  if (kEmulated) GTEST_SKIP() << "of the CPU";
  for (const auto& [batch, tokens] : {std::pair<std::int64_t, std::int64_t>{3, 40000}, {40, 2000}, {700, 100}}) {
    for (Reduction reduction : {Reduction::kSequenceMean, Reduction::kTokenMean}) {
      Case c;
      c.batch = batch;
      c.tokens = tokens;
      c.reduction = reduction;
      // Terms of both signs: what cancels leaves the roundings, which depend on the order of additions, visible.
      c.token_advantages = true;
      c.options.beta = 0;
      const Backend& cpu = device_backends()[0];
      const auto run = [&] {
        Random random(14);
        Data data(c, random);
        Workspace workspace(cpu);
        EXPECT_TRUE(data.run(c, cpu, workspace).ok());
        return std::pair(data.loss.bytes(), data.grad.bytes());
      };
      expect_threads_change_nothing(run);
    }
  }
}

}  // namespace
}  // namespace strop::policy_loss
