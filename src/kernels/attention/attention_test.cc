// Attention against the oracle, on every backend. Suites whose name contains Small use small shapes only, so that they
// also run under slow tools (compute-sanitizer).
#include "strop/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_tuning.h"
#if STROP_EMULATED
#include "strop/emu.h"
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include "tests/support/backend.h"
#include "tests/support/orders.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::attn {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)
using TensorData = strop::testing::Tensor;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kUnit = 0x1p-24;
constexpr DType kBiases[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};
using Lengths = std::vector<std::int64_t>;

// Which of (b, h, i, j) a mask has; 1 in the others.
constexpr int kOfBatch = 8, kOfHead = 4, kOfQuery = 2, kOfKey = 1;

struct Case {
  std::int64_t batch = 1, heads = 1, kv_heads = 1, lq = 1, lk = 1;
  int d = 16;
  DType dtype = DType::kFloat32;
  Layout q_layout{}, k_layout{}, v_layout{}, out_layout{};
  bool heads_inside = false;  // padded: lies as (B, L, H, D), as a linear layer leaves it
  bool packed = false;
  Lengths q_lengths, k_lengths;             // packed
  std::int64_t q_before = 0, q_behind = 0;  // rows of q that are no sequence's
  Lengths key_lengths;                      // none where empty
  DType integers = DType::kInt32;
  int mask = -1, bias = -1;  // which dimensions it has; -1: none
  DType bias_dtype = DType::kFloat32;
  bool expanded = false;  // mask and bias are whole by strides of 0
  double admitted = 0.7;
  AttentionOptions options;
  double shift = 0;  // to every key, away from every query: scores far below 0, where a phantom's 0 would tell

  static std::int64_t longest(const Lengths& l) { return l.empty() ? 0 : *std::max_element(l.begin(), l.end()); }
  std::int64_t max_q() const { return packed ? longest(q_lengths) : lq; }
  std::int64_t max_k() const { return packed ? longest(k_lengths) : lk; }
  std::string text() const {
    std::ostringstream out;
    const auto list = [&](const char* name, const Lengths& lengths) {
      out << name;
      for (std::int64_t n : lengths) out << " " << n;
    };
    out << "B " << batch << " H " << heads << "/" << kv_heads << " L " << lq << "x" << lk << " D " << d << " "
        << dtype_name(dtype) << " q " << layout_name(q_layout) << " k " << layout_name(k_layout) << " v "
        << layout_name(v_layout) << " out " << layout_name(out_layout) << " inside " << heads_inside << " packed "
        << packed;
    list(" q", q_lengths), list(" k", k_lengths), list(" keys", key_lengths);
    out << " mask " << mask << " bias " << bias << " " << dtype_name(bias_dtype) << " expanded " << expanded
        << " causal " << options.causal << " bottom " << (options.diagonal == Diagonal::kBottomRight) << " window "
        << options.window_left.value_or(-1) << " " << options.window_right.value_or(-1);
    return out.str();
  }
};

std::int64_t sum_of(const Lengths& lengths) {
  std::int64_t sum = 0;
  for (std::int64_t n : lengths) sum += n;
  return sum;
}

// The tensors of a call. What no sequence has, and keys behind a length, stay NaN.
struct Data {
  TensorData q, k, v, out, cu_q, cu_k, key_lengths, mask, bias;

  Data(const Case& c, Random& random)
      : q(c.dtype, shape(c, c.heads, c.lq, c.q_lengths, c.q_before + c.q_behind), c.q_layout),
        k(c.dtype, shape(c, c.kv_heads, c.lk, c.k_lengths), c.k_layout),
        v(c.dtype, shape(c, c.kv_heads, c.lk, c.k_lengths), c.v_layout),
        out(c.dtype, shape(c, c.heads, c.lq, c.q_lengths, c.q_before + c.q_behind), c.out_layout),
        cu_q(c.integers, {c.batch + 1}),
        cu_k(c.integers, {c.batch + 1}),
        key_lengths(c.integers, {c.batch}),
        mask(DType::kBool, mask_shape(c, c.mask)),
        bias(c.bias_dtype, mask_shape(c, c.bias)) {
    q.fill([&](std::int64_t) { return random.normal() - c.shift; });
    for (std::int64_t b = 0, q_at = c.q_before, k_at = 0; b <= c.batch && c.packed; ++b) {
      cu_q.set(b, static_cast<double>(q_at)), cu_k.set(b, static_cast<double>(k_at));
      if (b < c.batch) q_at += c.q_lengths[b], k_at += c.k_lengths[b];
    }
    for (std::int64_t b = 0; b < c.batch; ++b) {
      if (!c.key_lengths.empty()) key_lengths.set(b, static_cast<double>(c.key_lengths[b]));
      for (std::int64_t j = 0; j < keys(c, b); ++j) {
        for (std::int64_t h = 0; h < c.kv_heads; ++h) {
          for (int e = 0; e < c.d; ++e) {
            k.set(element(c, c.kv_heads, c.lk, c.k_lengths, b, h, j, e), random.normal() + c.shift);
            v.set(element(c, c.kv_heads, c.lk, c.k_lengths, b, h, j, e), random.normal());
          }
        }
      }
    }
    mask.fill([&](std::int64_t) { return random.chance(c.admitted) ? 1 : 0; });
    bias.fill([&](std::int64_t) { return random.normal(); });
  }

  static std::vector<std::int64_t> shape(const Case& c, std::int64_t heads, std::int64_t n, const Lengths& lengths,
                                         std::int64_t more = 0) {
    if (c.packed) return {sum_of(lengths) + more, heads, c.d};
    return c.heads_inside ? std::vector<std::int64_t>{c.batch, n, heads, c.d}
                          : std::vector<std::int64_t>{c.batch, heads, n, c.d};
  }
  static std::vector<std::int64_t> mask_shape(const Case& c, int which) {
    if (which < 0) return {1};
    return {which & kOfBatch ? c.batch : 1, which & kOfHead ? c.heads : 1, which & kOfQuery ? c.max_q() : 1,
            which & kOfKey ? c.max_k() : 1};
  }
  // Keys that may be read.
  static std::int64_t keys(const Case& c, std::int64_t b) {
    const std::int64_t n = c.packed ? c.k_lengths[b] : c.lk;
    return c.key_lengths.empty() ? n : std::min(n, c.key_lengths[b]);
  }
  // Which element of a tensor (b, h, l, e) is.
  static std::int64_t element(const Case& c, std::int64_t heads, std::int64_t n, const Lengths& lengths, std::int64_t b,
                              std::int64_t h, std::int64_t l, int e) {
    if (c.packed) {
      for (std::int64_t before = 0; before < b; ++before) l += lengths[before];
      return (l * heads + h) * c.d + e;
    }
    return (c.heads_inside ? (b * n + l) * heads + h : (b * heads + h) * n + l) * c.d + e;
  }
  double result(const Case& c, std::int64_t b, std::int64_t h, std::int64_t i, int e) const {
    return out.get((c.packed ? c.q_before * c.heads * c.d : 0) + element(c, c.heads, c.lq, c.q_lengths, b, h, i, e));
  }

  static TensorView ordered(const Case& c, TensorView view) {
    if (!c.packed && c.heads_inside) {
      std::swap(view.shape[1], view.shape[2]);
      std::swap(view.strides[1], view.strides[2]);
    }
    return view;
  }
  static TensorView mask_view(const Case& c, TensorView view) {
    const std::int64_t whole[4] = {c.batch, c.heads, c.max_q(), c.max_k()};
    for (int d = 0; c.expanded && d < 4; ++d) {
      if (view.shape[d] == 1) view.shape[d] = whole[d], view.strides[d] = 0;
    }
    return view;
  }

  AttentionInputs inputs(const Case& c, const std::function<TensorView(TensorData&)>& on) {
    AttentionInputs in;
    in.q = ordered(c, on(q)), in.k = ordered(c, on(k)), in.v = ordered(c, on(v));
    if (c.packed) in.cu_q = on(cu_q), in.cu_k = on(cu_k), in.max_q = c.max_q(), in.max_k = c.max_k();
    if (!c.key_lengths.empty()) in.key_lengths = on(key_lengths);
    if (c.mask >= 0) in.mask = mask_view(c, on(mask));
    if (c.bias >= 0) in.bias = mask_view(c, on(bias));
    return in;
  }

  Problem problem(const Case& c) {
    const AttentionInputs in = inputs(c, [](TensorData& t) { return t.host(); });
    const auto tensor = [&](const TensorView& t) {
      return c.packed ? Tensor{t.data, 0, t.strides[1], t.strides[0], t.strides[2]}
                      : Tensor{t.data, t.strides[0], t.strides[1], t.strides[2], t.strides[3]};
    };
    const auto masked = [](const TensorView& t) {
      const auto stride = [&](int d) { return t.shape[d] == 1 ? 0 : t.strides[d]; };
      return t.data == nullptr ? Mask{} : Mask{t.data, stride(0), stride(1), stride(2), stride(3), t.dtype};
    };
    const bool wide = c.integers == DType::kInt64;
    Problem p;
    p.batch = c.batch, p.heads = c.heads, p.kv_heads = c.kv_heads, p.max_q = c.max_q(), p.max_k = c.max_k();
    p.d = c.d, p.dtype = c.dtype, p.packed = c.packed;
    if (c.packed) p.total_q = q.shape()[0];
    p.q = tensor(in.q), p.k = tensor(in.k), p.v = tensor(in.v);
    p.cu_q = {in.cu_q.data, 1, wide}, p.cu_k = {in.cu_k.data, 1, wide}, p.key_lengths = {in.key_lengths.data, 1, wide};
    p.mask = masked(in.mask), p.bias = masked(in.bias);
    p.left = c.options.window_left.value_or(kUnlimited);
    p.right = c.options.causal ? 0 : c.options.window_right.value_or(kUnlimited);
    p.bottom_right = c.options.diagonal == Diagonal::kBottomRight;
    p.scale = static_cast<float>(c.options.scale.value_or(1 / std::sqrt(static_cast<double>(c.d))));
    return p;
  }

  Status run(const Case& c, const Backend& backend) {
    const AttentionInputs in = inputs(c, [&](TensorData& t) { return t.on(backend); });
    const TensorView to = ordered(c, out.on(backend));
    const Scratch scratch(backend, attention_workspace_bytes(in));
    const Status status = attention(in, c.options, to, {scratch.data(), nullptr});
    synchronize(backend);
    scratch.expect_cleared(c.batch * c.kv_heads, false);
    out.fetch();
    return status;
  }
};

struct Wanted {
  std::vector<double> out, tolerance;
};

// The oracle's result and the error that the arithmetic may have, in units u of 2^-24, with p_j the weights:
// - a score is a chain of D products: 32 units of scale sum |q||k| is never reached by independent roundings (six
//   standard deviations of a chain of 256 are 28); scale, bias, the difference from the largest score and its product
//   with log2(e), and what rescaling adds up to: 8 of |x|, where x - m is up to twice that. So 40 of reach. An error of
//   a score is one of its weight and, by their sum, of all others: twice.
// - exponentials are off by 2 ulp, and sums over the keys are chains and trees of up to some thousand independent
//   roundings: 64 of sum p_j |v_j|.
// - on CUDA weights of the 2-byte dtypes are rounded to them: one unit of the dtype; of fp16, below 6e-5, 2^-25 of the
//   largest weight each, with |v| <= 6.
// - the result is rounded once.
Wanted expectation(const Case& c, Data& data, bool cuda) {
  const auto rows = static_cast<std::size_t>(c.batch * c.heads * c.max_q()),
             size = rows * static_cast<std::size_t>(c.d);
  Wanted w{std::vector<double>(size), std::vector<double>(size)};
  std::vector<double> spread(size), reach(rows);
  reference(data.problem(c), {w.out.data(), spread.data(), reach.data()});
  const double of_weights = cuda && c.dtype != DType::kFloat32 ? unit_roundoff(c.dtype) : 0;
  const double tiny = cuda && c.dtype == DType::kFloat16 ? 0x1p-25 * 6 * static_cast<double>(c.max_k()) : 0;
  for (std::size_t i = 0; i < size; ++i) {
    const double in_weights = kUnit * (80 * reach[i / static_cast<std::size_t>(c.d)] + 64) + of_weights;
    const double error = spread[i] > 0 ? spread[i] * in_weights + tiny : 0;
    w.tolerance[i] = error + unit_roundoff(c.dtype) * (std::abs(w.out[i]) + error) + subnormal_roundoff(c.dtype);
  }
  return w;
}

void compare(const Case& c, const Data& data, const Wanted& wanted) {
  int failures = 0;
  for (std::int64_t row = 0; row < c.batch * c.heads * c.max_q(); ++row) {
    const std::int64_t b = row / c.max_q() / c.heads, h = row / c.max_q() % c.heads, i = row % c.max_q();
    if (c.packed && i >= c.q_lengths[b]) continue;
    for (int e = 0; e < c.d && failures < 5; ++e) {
      const auto k = static_cast<std::size_t>(row * c.d + e);
      const double g = data.result(c, b, h, i, e), w = wanted.out[k];
      if (std::isnan(w) ? std::isnan(g) : std::abs(g - w) <= wanted.tolerance[k]) continue;
      ADD_FAILURE() << "out (" << b << ", " << h << ", " << i << ", " << e << ") is " << g << ", expected " << w
                    << " +- " << wanted.tolerance[k];
      ++failures;
    }
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
  data.out.expect_only_elements_changed("out");
  for (TensorData* input : {&data.q, &data.k, &data.v}) {
    input->fetch();
    input->expect_unchanged("an input");
  }
  compare(c, data, wanted);
  for (std::int64_t row = 0; c.packed && row < c.q_before + c.q_behind; ++row) {
    const std::int64_t at = row < c.q_before ? row : row + sum_of(c.q_lengths);
    for (std::int64_t e = 0; e < c.heads * c.d; ++e)
      ASSERT_EQ(data.out.get(at * c.heads * c.d + e), 0) << "row " << at << ", which is no sequence's";
  }
  if (kEmulated) return;  // slow; SequencesDoNotInfluenceEachOther compares runs
  ASSERT_TRUE(again.run(c, backend).ok());
  EXPECT_TRUE(data.out.bytes() == again.out.bytes()) << "another result the second time";
}
void check(const Case& c, const Backend& backend, Random& random) { check(c, backend, Data(c, random)); }

TEST(AttentionSmall, Lengths) {
  // Around tiles of 16, 32 and 64 rows and keys, and far from them.
  const Lengths native = {1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 150, 300};
  const Lengths emulated = {1, 7, 63, 65, 150};
  Random random(61);
  int turn = 0;
  for (const Backend& backend : kEmulated ? few_backends() : all_backends()) {
    for (std::int64_t lk : sized(native, emulated)) {
      for (DType dtype : kFloats) {
        if (left_out(turn, 4)) continue;
        Case c;
        c.heads = c.kv_heads = kEmulated ? 1 : 2;
        c.lq = kEmulated ? random.pick({1, 5, 33}) : random.pick({1, 5, 16, 33, 65});
        c.lk = lk;
        c.d = random.pick({8, 16, 40});
        c.dtype = dtype;
        check(c, backend, random);
      }
    }
  }
}

// All scores are far below 0, where a key that is not there, with a score of 0, would have all the weight.
TEST(AttentionSmall, NoPhantomKeys) {
  Random random(62);
  int turn = 0;
  for (const Backend& backend : few_backends()) {
    for (std::int64_t n : sized<Lengths>({1, 7, 63, 65, 150, 300, 1500}, {1, 7, 65, 150})) {
      for (DType dtype : kFloats) {
        if (left_out(turn, 4)) continue;
        for (double shift : {0.0, 1.5}) {
          Case c;
          c.lq = std::min<std::int64_t>(n, sized(150, 3)), c.lk = n, c.d = 16;
          c.dtype = dtype;
          c.shift = shift;
          check(c, backend, random);
        }
      }
    }
  }
}

TEST(AttentionSmall, HeadSizes) {
  Random random(63);
  for (const Backend& backend : few_backends()) {
    for (int d = 8; d <= 256; d += sized(8, 40)) {
      for (DType dtype : kFloats) {
        if (kEmulated && dtype == DType::kBFloat16) continue;
        Case c;
        c.lq = sized<std::int64_t>(20, 2), c.lk = sized<std::int64_t>(90, 35), c.d = d;
        c.dtype = dtype;
        c.heads_inside = random.chance(0.5);
        check(c, backend, random);
      }
    }
    Case c;
    c.lq = sized<std::int64_t>(70, 9), c.lk = 40, c.d = 256, c.dtype = DType::kBFloat16;
    check(c, backend, random);
  }
}

TEST(AttentionSmall, GroupsOfHeads) {
  Random random(64);
  for (const Backend& backend : few_backends()) {
    for (const auto& [heads, kv_heads] : {std::pair{4, 4}, {4, 2}, {6, 1}, {3, 1}}) {
      for (std::int64_t lq : {1, 3, 30}) {
        if (kEmulated && lq == 30 && heads != 4) continue;
        Case c;
        c.batch = sized(2, 1);
        c.heads = heads, c.kv_heads = kv_heads, c.lq = lq, c.lk = 40;
        c.dtype = random.pick(kFloats);
        c.options.causal = random.chance(0.5), c.options.diagonal = Diagonal::kBottomRight;
        check(c, backend, random);
      }
    }
  }
}

TEST(AttentionSmall, MasksAndBiases) {
  Random random(65);
  for (const Backend& backend : few_backends()) {
    for (int which = 0; which < 16; ++which) {
      for (int kind = 0; kind < 3; ++kind) {
        if (kEmulated && (which + kind) % 3 != 0) continue;
        Case c;
        c.batch = 2, c.heads = 2, c.kv_heads = random.pick({1, 2});
        c.lq = sized<std::int64_t>(19, 5), c.lk = 70, c.d = 8;
        c.dtype = random.pick(kFloats);
        if (kind != 1) c.mask = which;
        if (kind != 0) c.bias = kind == 2 ? static_cast<int>(random.integer(0, 15)) : which;
        c.bias_dtype = random.pick(kBiases);
        c.expanded = random.chance(0.5);
        check(c, backend, random);
      }
    }
  }
}

TEST(AttentionSmall, DiagonalsAndWindows) {
  Random random(66);
  for (const Backend& backend : few_backends()) {
    for (const auto& [lq, lk] : {std::pair{5, 5}, {3, 70}, {70, 3}, {33, 40}}) {
      for (Diagonal diagonal : {Diagonal::kTopLeft, Diagonal::kBottomRight}) {
        for (int kind = 0; kind < 5; ++kind) {
          if (kEmulated && kind > 0 && random.chance(0.6)) continue;
          Case c;
          c.batch = sized(2, 1);
          c.lq = lq, c.lk = lk, c.d = 8;
          c.dtype = random.pick(kFloats);
          c.options.diagonal = diagonal;
          c.options.causal = kind < 2;
          if (kind == 1 || kind == 2 || kind == 4) c.options.window_left = random.pick({0, 1, 4, 33});
          if (kind == 3 || kind == 4) c.options.window_right = random.pick({0, 2, 35});
          if (random.chance(0.4)) c.key_lengths = Lengths(c.batch, random.integer(0, lk));
          check(c, backend, random);
        }
      }
    }
  }
}

// A tile of 64 keys that the first of a few queries meets whole, and the others but for the first keys; and the other
// way round at its end.
TEST(AttentionSmall, TilesThatSomeQueriesMeetWhole) {
  Random random(87);
  for (const Backend& backend : few_backends()) {
    for (const DType dtype : kFloats) {
      for (const bool left : {true, false}) {
        Case c;
        c.lq = 3, c.lk = 130, c.d = 8, c.dtype = dtype;
        c.options.diagonal = left ? Diagonal::kBottomRight : Diagonal::kTopLeft;
        (left ? c.options.window_left : c.options.window_right) = left ? 127 : 61;  // keys 0 to 2 and 61 to 63 are cut
        check(c, backend, random);
      }
    }
  }
}

// Which keys a query meets, without the oracle, which shares keys_of with the kernels: q is 0, so all admitted keys
// have one weight, and v the unit matrix, so that out shows them.
TEST(AttentionSmall, AdmittedKeys) {
  struct Rule {
    bool causal, bottom_right;
    int left, right;  // -1: no window
  };
  constexpr Rule kRules[] = {{false, false, -1, -1}, {true, false, -1, -1}, {true, true, -1, -1}, {false, false, 2, 1},
                             {false, true, 1, 3},    {true, true, 4, -1},   {true, false, 0, 9}};
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      for (bool packed : {false, true}) {
        for (const auto& [lq, lk, length] : {std::tuple{6, 20, 20}, {20, 6, 6}, {4, 20, 11}}) {
          for (const Rule& rule : kRules) {
            Random random(84);
            Case c;
            c.batch = 2, c.lq = lq, c.lk = lk, c.d = 32, c.dtype = dtype;
            c.packed = packed;
            c.q_lengths = {3, lq}, c.k_lengths = {5, lk};  // the second one is looked at
            c.key_lengths = {packed ? 5 : lk, length};
            c.options.causal = rule.causal;
            c.options.diagonal = rule.bottom_right ? Diagonal::kBottomRight : Diagonal::kTopLeft;
            if (rule.left >= 0) c.options.window_left = rule.left;
            if (rule.right >= 0) c.options.window_right = rule.right;
            Data data(c, random);
            data.q.fill([](std::int64_t) { return 0; });
            for (int j = 0; j < length; ++j) {
              for (int e = 0; e < c.d; ++e)
                data.v.set(Data::element(c, 1, c.lk, c.k_lengths, 1, 0, j, e), e == j ? 1 : 0);
            }
            const UseBackend use(backend);
            ASSERT_TRUE(data.run(c, backend).ok());
            for (int i = 0; i < lq; ++i) {
              const int at = rule.bottom_right ? length - lq + i : i;
              const auto admitted = [&](int j) {
                return j < length && (!rule.causal || j <= at) && (rule.left < 0 || j >= at - rule.left) &&
                       (rule.right < 0 || j <= at + rule.right);
              };
              int count = 0;
              for (int j = 0; j < length; ++j) count += admitted(j);
              for (int e = 0; e < c.d; ++e) {
                ASSERT_NEAR(data.result(c, 1, 0, i, e), admitted(e) ? 1.0 / count : 0,
                            2 * unit_roundoff(dtype) + 4 * kUnit)
                    << backend << " " << c.text() << " query " << i << " key " << e;
              }
            }
          }
        }
      }
    }
  }
}

TEST(AttentionSmall, KeyLengths) {
  Random random(67);
  for (const Backend& backend : few_backends()) {
    for (DType integers : {DType::kInt32, DType::kInt64}) {
      for (DType dtype : kFloats) {
        Case c;
        c.batch = 4, c.lq = sized<std::int64_t>(20, 3), c.lk = 70, c.d = 16;
        c.dtype = dtype, c.integers = integers;
        c.key_lengths = {0, 1, 64, 70};
        if (random.chance(0.5)) c.mask = kOfKey;
        check(c, backend, random);
      }
    }
  }
}

TEST(AttentionSmall, Packed) {
  Random random(68);
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      for (bool same : {true, false}) {
        Case c;
        c.packed = true;
        c.batch = 5, c.heads = 2, c.kv_heads = 1, c.d = 24;
        c.dtype = dtype;
        c.integers = random.pick({DType::kInt32, DType::kInt64});
        c.q_lengths = {3, 0, sized<std::int64_t>(70, 20), 1, 17};
        c.k_lengths = same ? c.q_lengths : Lengths{0, 5, 33, 64, 2};
        if (random.chance(0.5)) c.q_before = 2, c.q_behind = 3;
        c.options.causal = random.chance(0.5);
        c.options.diagonal = random.chance(0.5) ? Diagonal::kBottomRight : Diagonal::kTopLeft;
        if (random.chance(0.5)) c.bias = static_cast<int>(random.integer(0, 15));
        if (random.chance(0.3)) c.key_lengths = {2, 4, 8, 64, 1};
        check(c, backend, random);
      }
    }
  }
}

// They become 0, whatever q has there, also where there is nothing else to do.
TEST(AttentionSmall, RowsOfNoSequence) {
  Random random(85);
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      for (const Lengths& lengths : {Lengths{3, 9}, {0, 0}, {}, {40}}) {
        for (std::int64_t before : {0, 4}) {
          Case c;
          c.packed = true;
          c.batch = static_cast<std::int64_t>(lengths.size()), c.heads = 2, c.kv_heads = 1, c.d = 24;
          c.dtype = dtype;
          c.integers = random.pick({DType::kInt32, DType::kInt64});
          c.q_lengths = c.k_lengths = lengths;
          c.q_before = before, c.q_behind = before == 0 ? 70 : 1;
          c.out_layout = random.pick(kWritableLayouts);
          Data data(c, random);
          for (std::int64_t e = 0; e < c.q_before * c.heads * c.d; ++e) data.q.set(e, kNan);
          check(c, backend, data);
        }
      }
    }
  }
}

// Blocks of more rows, where there are enough of them, change no bit (and max_q does not tell how many a sequence has).
TEST(Attention, RowsABlockDoNotChangeResults) {
  for (const Backend& backend : few_backends()) {
    if (!backend.cuda()) continue;
    for (int d : sized<std::vector<int>>({24, 32, 64}, {24, 64})) {
      for (const bool causal : {false, true}) {
        Random random(86);
        Case few;
        few.packed = true;
        few.d = d, few.dtype = DType::kFloat16;
        few.q_lengths = few.k_lengths = {sized<std::int64_t>(200, 90)};
        few.options.causal = causal;
        Case many = few;
        // What is behind the first are sequences of no rows.
        many.batch = 600;
        many.q_lengths.resize(600), many.k_lengths.resize(600);
        Data one(few, random), other(many, random);
        for (std::int64_t i = 0; i < one.q.numel(); ++i)
          other.q.set(i, one.q.get(i)), other.k.set(i, one.k.get(i)), other.v.set(i, one.v.get(i));
        check(few, backend, one);
        const UseBackend use(backend);
        ASSERT_TRUE(one.run(few, backend).ok());
        ASSERT_TRUE(other.run(many, backend).ok());
        EXPECT_TRUE(one.out.bytes() == other.out.bytes()) << backend << " " << d;
      }
    }
  }
}

// Any strides work, and only some fast.
TEST(AttentionSmall, Layouts) {
  Random random(69);
  for (const Backend& backend : few_backends()) {
    for (Layout layout : kLayouts) {
      for (int which = 0; which < 4; ++which) {
        if (which == 3 && (layout == Layout::kExpandedRows || layout == Layout::kExpandedLast)) continue;
        Case c;
        c.batch = 2, c.heads = 2, c.kv_heads = 2, c.lq = sized<std::int64_t>(5, 2), c.lk = sized<std::int64_t>(37, 18);
        c.d = 16;
        c.dtype = random.pick(kFloats);
        c.heads_inside = random.chance(0.5);
        c.packed = random.chance(0.3);
        if (c.packed) c.q_lengths = {3, 4}, c.k_lengths = {6, 33};
        (which == 0 ? c.q_layout : which == 1 ? c.k_layout : which == 2 ? c.v_layout : c.out_layout) = layout;
        check(c, backend, random);
      }
    }
  }
}

// Rows from the last to the first, heads as well: strides below 0.
TEST(AttentionSmall, NegativeStrides) {
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      Random random(70);
      Case c;
      c.heads = c.kv_heads = 2, c.lq = 4, c.lk = 20, c.d = 16, c.dtype = dtype;
      Data data(c, random), plain = data;
      for (std::int64_t i = 0; i < data.k.numel(); ++i) {  // plain's keys are data's the other way round
        const std::int64_t row = i / c.d, there = 2 * c.lk - 1 - row;
        plain.k.set(there * c.d + i % c.d, data.k.get(i)), plain.v.set(there * c.d + i % c.d, data.v.get(i));
      }
      const UseBackend use(backend);
      ASSERT_TRUE(plain.run(c, backend).ok());
      AttentionInputs in = data.inputs(c, [&](TensorData& t) { return t.on(backend); });
      for (TensorView* view : {&in.k, &in.v}) {
        view->data = static_cast<char*>(view->data) + (2 * c.lk - 1) * c.d * dtype_size(dtype);
        view->strides[1] = -view->strides[1], view->strides[2] = -view->strides[2];
      }
      const Status status = attention(in, c.options, data.out.on(backend));
      ASSERT_TRUE(status.ok()) << status.message();
      synchronize(backend);
      data.out.fetch();
      EXPECT_TRUE(data.out.bytes() == plain.out.bytes()) << backend;
    }
  }
}

// ---------------------------------------------------------------------------------------------- Rows without keys

// The ways for a row to have no key: 0, not NaN and not the mean of what is there.
TEST(AttentionSmall, FullyMaskedRows) {
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      for (int way = 0; way < 5; ++way) {
        Random random(71);
        Case c;
        c.batch = 2, c.lq = 6, c.lk = 40, c.d = 16, c.dtype = dtype;
        if (way == 0) c.mask = 15;
        if (way == 1) c.bias = 15, c.bias_dtype = random.pick(kBiases);
        if (way == 2) c.key_lengths = {40, 0};
        if (way == 3) c.lq = 50, c.options.causal = true, c.options.diagonal = Diagonal::kBottomRight;
        if (way == 4) c.lq = 50, c.options.window_left = 3;
        Data data(c, random);
        for (std::int64_t j = 0; j < c.lk; ++j) {
          for (std::int64_t i = 0; i < c.lq; i += 2) {
            if (way == 0) data.mask.set((c.lq + i) * c.lk + j, 0);
            if (way == 1) data.bias.set((c.lq + i) * c.lk + j, -kInf);
          }
        }
        check(c, backend, data);
        const UseBackend use(backend);
        ASSERT_TRUE(data.run(c, backend).ok());
        int zeros = 0;
        for (std::int64_t b = 0; b < 2; ++b) {
          for (std::int64_t i = 0; i < c.lq; ++i) {
            const bool zero = way < 2 ? b == 1 && i % 2 == 0 : way == 2 ? b == 1 : way == 3 ? i < 10 : i >= 43;
            for (int e = 0; e < c.d; ++e) {
              const double v = data.result(c, b, 0, i, e);
              ASSERT_FALSE(std::isnan(v)) << backend;
              if (zero) {
                ASSERT_EQ(v, 0) << backend << " way " << way << " row " << i;
              }
            }
            zeros += zero;
          }
        }
        ASSERT_GT(zeros, 0);
      }
    }
  }
}

// A bias that is the lowest number for every key takes nothing away: all scores round to it, and every key has the same
// weight, as in PyTorch. (In units of log 2 it would overflow, and the row look empty.)
TEST(AttentionSmall, LowestBiasIsNoMask) {
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      for (DType bias : {DType::kFloat32, DType::kBFloat16}) {
        Random random(72);
        Case c;
        c.lq = 3, c.lk = 37, c.d = 16, c.dtype = dtype, c.bias = 15, c.bias_dtype = bias;
        Data data(c, random);
        const double lowest = bias == DType::kFloat32 ? -0x1.fffffep127 : -0x1.fep127;
        data.bias.fill([&](std::int64_t i) { return i / c.lk == 1 && i % 2 == 0 ? 0 : lowest; });
        const UseBackend use(backend);
        ASSERT_TRUE(data.run(c, backend).ok());
        for (int e = 0; e < c.d; ++e) {
          double mean = 0;
          for (std::int64_t j = 0; j < c.lk; ++j) mean += data.v.get(j * c.d + e) / static_cast<double>(c.lk);
          for (std::int64_t i : {0, 2}) {
            ASSERT_NEAR(data.result(c, 0, 0, i, e), mean, 1e-6 + 2 * unit_roundoff(dtype)) << backend << " " << i;
          }
        }
      }
      // Where some keys have it and others not, it is a mask: the oracle's business.
      for (DType bias : kBiases) {
        Random random(73);
        Case c;
        c.lq = 3, c.lk = 37, c.d = 16, c.dtype = dtype, c.bias = 15, c.bias_dtype = bias;
        Data data(c, random);
        const double low = bias == DType::kFloat16 ? -65504 : -1e30;
        data.bias.fill([&](std::int64_t i) { return i % 3 == 0 ? low : random.normal(); });
        check(c, backend, data);
      }
    }
  }
}

TEST(AttentionSmall, ScoresOfAnySize) {
  Random random(74);
  for (const Backend& backend : few_backends()) {
    for (double scale : {0.0, 1.0, -0.3, 10.0}) {
      for (DType dtype : kFloats) {
        Case c;
        c.lq = 3, c.lk = 70, c.d = 16, c.dtype = dtype;
        c.options.scale = scale;
        check(c, backend, random);
      }
    }
  }
}

// NaN in a query, or in a key that is admitted, makes its rows NaN and no others; one in a key that is not admitted
// none.
TEST(AttentionSmall, NanStaysInItsRows) {
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      Random random(75);
      Case c;
      c.lq = 4, c.lk = 40, c.d = 16, c.dtype = dtype, c.mask = 15, c.admitted = 1;
      Data data(c, random);
      data.q.set(1 * c.d + 3, kNan);
      data.k.set(7 * c.d, kNan);
      for (std::int64_t i : {0, 2}) data.mask.set(i * c.lk + 7, 0);
      check(c, backend, data);
      const UseBackend use(backend);
      ASSERT_TRUE(data.run(c, backend).ok());
      for (std::int64_t i = 0; i < c.lq; ++i)
        ASSERT_EQ(std::isnan(data.result(c, 0, 0, i, 0)), i % 2 == 1) << backend << " " << i;
    }
  }
}

// ---------------------------------------------------------------------------------------------- Chunks of keys

TEST(Attention, LongCaches) {
  Random random(76);
  int turn = 0;
  for (const Backend& backend : few_backends()) {
    // One chunk, two, a last one of one key, more than kMaxChunks of the least size.
    for (std::int64_t lk : sized<Lengths>({256, 257, 512, 513, 1500, 8192, 8193, 9000}, {257, 300, 600})) {
      for (DType dtype : kFloats) {
        if (left_out(turn, 4)) continue;
        Case c;
        c.batch = sized(2, 1), c.kv_heads = sized(2, 1);
        c.heads = c.kv_heads * random.pick({1, 4});
        c.lk = lk, c.d = random.pick({8, 64, 80});
        if (kEmulated) c.d = 8;
        c.dtype = dtype;
        c.lq = random.pick({1, 2});
        c.options.causal = random.chance(0.5), c.options.diagonal = Diagonal::kBottomRight;
        if (random.chance(0.3)) c.options.window_left = lk / 3;
        if (random.chance(0.5)) c.mask = kOfKey | kOfBatch;
        if (random.chance(0.5)) c.key_lengths = Lengths(c.batch, random.integer(0, lk));
        check(c, backend, random);
      }
    }
  }
}

TEST(AttentionSmall, ChunksCoverAllKeys) {
  for (std::int64_t rows : {1, 16, 17}) {
    for (std::int64_t keys : {0, 1, 255, 256, 257, 512, 8191, 8192, 8193, 100000, 1 << 20}) {
      const std::int64_t size = chunk_size(rows, keys), n = chunks_of(rows, keys);
      Problem p;
      p.max_q = rows, p.max_k = keys;
      EXPECT_GE(size * n, keys) << keys;
      EXPECT_LT(size * (n - 1), std::max<std::int64_t>(keys, 1)) << keys;
      EXPECT_LE(n, most_chunks(p));
      if (n > 1) {
        EXPECT_EQ(size % 64, 0);  // whole tiles of every kernel
      }
    }
  }
  Problem p;
  p.max_q = 17, p.max_k = 1000;
  EXPECT_EQ(workspace_bytes(p), 0u);
  p.packed = true;  // a sequence may have fewer
  p.batch = 3;
  EXPECT_EQ(workspace_bytes(p), 32u + 3 * 4 * 16 * (8 + 2) * 4);
}

// A sequence has the same bits alone, among others, and under any schedule. Packed beside longer ones, it is still cut
// by its own length.
TEST(Attention, SequencesDoNotInfluenceEachOther) {
  for (const Backend& backend : few_backends()) {
    for (DType dtype : kFloats) {
      for (std::int64_t lq : {2, 20}) {
        Random random(77);
        Case one;
        one.packed = true;
        one.heads = 2, one.d = 8, one.dtype = dtype;
        one.q_lengths = {lq}, one.k_lengths = {sized<std::int64_t>(700, lq == 2 ? 290 : 70)};
        Case several = one;
        several.batch = 3;
        several.q_lengths = {5, lq, sized<std::int64_t>(40, 9)};
        several.k_lengths = {30, one.k_lengths[0], sized<std::int64_t>(1500, 310)};
        Data alone(one, random), among(several, random);
        for (int e = 0; e < one.d; ++e) {
          for (std::int64_t h = 0; h < one.heads; ++h) {
            for (std::int64_t i = 0; i < lq; ++i)
              among.q.set(Data::element(several, 2, 0, several.q_lengths, 1, h, i, e),
                          alone.q.get(Data::element(one, 2, 0, one.q_lengths, 0, h, i, e)));
          }
          for (std::int64_t j = 0; j < one.k_lengths[0]; ++j) {
            const std::int64_t to = Data::element(several, 1, 0, several.k_lengths, 1, 0, j, e);
            const std::int64_t from = Data::element(one, 1, 0, one.k_lengths, 0, 0, j, e);
            among.k.set(to, alone.k.get(from)), among.v.set(to, alone.v.get(from));
          }
        }
        const UseBackend use(backend);
        ASSERT_TRUE(alone.run(one, backend).ok());
        ASSERT_TRUE(among.run(several, backend).ok());
        for (std::int64_t h = 0; h < one.heads; ++h) {
          for (std::int64_t i = 0; i < lq; ++i) {
            for (int e = 0; e < one.d; ++e)
              ASSERT_EQ(alone.result(one, 0, h, i, e), among.result(several, 1, h, i, e)) << backend << " " << i;
          }
        }
      }
    }
  }
}

TEST(AttentionSmall, Empty) {
  for (const Backend& backend : few_backends()) {
    for (int which = 0; which < 3; ++which) {
      Random random(78);
      Case c;
      c.batch = which == 0 ? 0 : 2, c.lq = which == 1 ? 0 : 3, c.lk = which == 2 ? 0 : 4;
      check(c, backend, random);
    }
  }
}

TEST(Attention, Drawn) {
  Random random(79);
  for (const Backend& backend : few_backends()) {
    for (int repetition = 0; repetition < sized(200, 20); ++repetition) {
      Case c;
      c.batch = random.integer(1, sized(4, 2));
      c.kv_heads = random.integer(1, sized(3, 1));
      c.heads = c.kv_heads * random.integer(1, 4);
      c.lq = random.log_integer(1, sized(200, 40)), c.lk = random.log_integer(1, sized(700, 100));
      c.d = static_cast<int>(8 * random.log_integer(1, sized(32, 9)));
      c.dtype = random.pick(kFloats);
      c.packed = random.chance(0.4);
      c.heads_inside = random.chance(0.5);
      c.integers = random.pick({DType::kInt32, DType::kInt64});
      for (std::int64_t b = 0; b < c.batch && c.packed; ++b) {
        c.q_lengths.push_back(random.integer(0, c.lq)), c.k_lengths.push_back(random.integer(0, c.lk));
      }
      if (random.chance(0.3))
        for (std::int64_t b = 0; b < c.batch; ++b) c.key_lengths.push_back(random.integer(0, c.lk));
      if (random.chance(0.4)) c.mask = static_cast<int>(random.integer(0, 15));
      if (random.chance(0.4)) c.bias = static_cast<int>(random.integer(0, 15));
      if (c.max_q() == 0) c.mask = c.bias = -1;
      if (c.max_k() == 0) c.mask = c.bias = -1;
      c.bias_dtype = random.pick(kBiases);
      c.expanded = random.chance(0.5);
      c.options.causal = random.chance(0.3);
      c.options.diagonal = random.chance(0.5) ? Diagonal::kBottomRight : Diagonal::kTopLeft;
      if (random.chance(0.2)) c.options.window_left = random.integer(0, c.lk);
      if (random.chance(0.2)) c.options.window_right = random.integer(0, c.lk);
      if (random.chance(0.3)) c.options.scale = random.uniform();
      if (random.chance(0.3)) {
        c.q_layout = random.pick(kWritableLayouts), c.k_layout = random.pick(kWritableLayouts);
        c.v_layout = random.pick(kWritableLayouts), c.out_layout = random.pick(kWritableLayouts);
      }
      check(c, backend, random);
    }
  }
}

// The CPU's result is bitwise the same whatever runs its tiles.
TEST(Attention, ThreadsDoNotChangeResults) {
  if (kEmulated) GTEST_SKIP() << "of the CPU";
  Case c;
  c.batch = 3, c.heads = 4, c.kv_heads = 2, c.lq = 50, c.lk = 300, c.d = 64;
  const Backend& cpu = device_backends()[0];
  const auto run = [&] {
    Random random(80);
    Data data(c, random);
    EXPECT_TRUE(data.run(c, cpu).ok());
    return data.out.bytes();
  };
  expect_threads_change_nothing(run);
}

#if STROP_EMULATED
// Which warp and which block goes first changes nothing: chunks are merged in their order.
TEST(Attention, SchedulesDoNotChangeResults) {
  for (const Backend& backend : few_backends()) {
    for (std::int64_t lk : {130, 520}) {  // tiles on their way; chunks
      Random random(82);
      Case c;
      c.heads = 2, c.kv_heads = 1, c.lq = lk == 130 ? 20 : 3, c.lk = lk, c.d = 16;
      c.dtype = DType::kFloat16;
      SCOPED_TRACE(backend.name + " " + std::to_string(lk));
      const Data data(c, random);
      expect_schedules_change_nothing([&] {
        Data again = data;
        check(c, backend, again);
        const UseBackend use(backend);
        EXPECT_TRUE(again.run(c, backend).ok());
        return again.out.bytes();
      });
    }
  }
}
#endif

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
// Heads 3e9 elements apart, of which no more is there than is used.
TEST(Attention, OffsetsHave64Bits) {
  if (kEmulated) GTEST_SKIP() << "of the CPU";
  constexpr std::int64_t kApart = 3000000000;
  constexpr std::size_t kBytes = 2 * (kApart + 4096);
  void* const memory =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no 6 GB of addresses";
  Random random(83);
  Case c;
  c.heads = c.kv_heads = 2, c.lq = 3, c.lk = 9, c.d = 16, c.dtype = DType::kFloat16;
  Data data(c, random);
  const UseBackend use(device_backends()[0]);
  ASSERT_TRUE(data.run(c, device_backends()[0]).ok());
  const auto near = data.out.bytes();
  AttentionInputs in = data.inputs(c, [](TensorData& t) { return t.host(); });
  for (std::int64_t h = 0; h < 2; ++h) {
    std::memcpy(static_cast<char*>(memory) + h * kApart * 2, static_cast<char*>(in.k.data) + h * c.lk * c.d * 2,
                static_cast<std::size_t>(c.lk * c.d * 2));
  }
  in.k.data = memory, in.k.strides[1] = kApart;
  ASSERT_TRUE(attention(in, c.options, data.out.host()).ok());
  EXPECT_TRUE(near == data.out.bytes());
  munmap(memory, kBytes);
}
#endif

TEST(AttentionSmall, Tuning) {
  for (int d = 8; d <= 256; d += 8) {
    const auto tuned = [&](bool dense, std::size_t bytes, bool plain, std::int64_t segments, std::int64_t rows) {
      return tune(d, dense, bytes, plain, segments, rows, 132);
    };
    for (std::int64_t segments : {1, 1000}) {
      const Tuning t = tuned(true, 227 * 1024, true, segments, 300);
      EXPECT_TRUE(t.mma);
      EXPECT_GE(t.head, d);
      EXPECT_LE(t.shared_bytes, 99u * 1024) << "of the smallest device from sm_80 on";
      EXPECT_EQ(t.tiles, segments > 1 && d <= 64 ? 2 : 1);
      EXPECT_EQ(tuned(true, 227 * 1024, false, segments, 300).tiles, 1);
      EXPECT_FALSE(tuned(false, 227 * 1024, true, segments, 300).mma);
      EXPECT_LE(tuned(true, 12 * 1024, true, segments, 300).shared_bytes, 12u * 1024);
    }
  }
}

// ---------------------------------------------------------------------------------------------- Bad input

struct Call {
  TensorData q{DType::kFloat32, {2, 4, 3, 16}}, k{DType::kFloat32, {2, 2, 5, 16}}, v{DType::kFloat32, {2, 2, 5, 16}};
  TensorData out{DType::kFloat32, {2, 4, 3, 16}}, lengths{DType::kInt32, {3}}, mask{DType::kBool, {3, 5}};
  AttentionInputs in;
  AttentionOptions options;
  TensorView to;

  explicit Call(const Backend& backend) {
    for (TensorData* tensor : {&q, &k, &v}) tensor->fill([](std::int64_t i) { return static_cast<double>(i); });
    lengths.fill([](std::int64_t) { return 0; });
    mask.fill([](std::int64_t) { return 1; });
    in.q = q.on(backend), in.k = k.on(backend), in.v = v.on(backend), to = out.on(backend);
  }
};

struct Mistake {
  std::function<void(Call&, const Backend&)> make;
  StatusCode code;
  std::string message;  // a part of it
};

const Mistake kMistakes[] = {
    {[](Call& c, const Backend&) { c.in.q = {}; }, StatusCode::kValueError, "q: expected 4 dimensions"},
    {[](Call& c, const Backend&) { c.in.q.dtype = DType::kFloat64; }, StatusCode::kTypeError, "q: expected float32"},
    {[](Call& c, const Backend&) { c.in.q.data = nullptr; }, StatusCode::kValueError, "q: expected a tensor, got none"},
    {[](Call& c, const Backend&) { c.in.k.dtype = DType::kFloat16; }, StatusCode::kTypeError,
     "k: expected float32 like q, got float16"},
    {[](Call& c, const Backend&) { c.in.k.shape[3] = 8; }, StatusCode::kValueError, "k: expected the batch"},
    {[](Call& c, const Backend&) { c.in.v.shape[2] = 4; }, StatusCode::kValueError,
     "v: expected shape (2, 2, 5, 16) like k, got (2, 2, 4, 16)"},
    {[](Call& c, const Backend&) { c.in.q.shape[3] = c.in.k.shape[3] = c.in.v.shape[3] = 12; }, StatusCode::kValueError,
     "q: expected a head size that is a multiple of 8, from 8 to 256, got 12"},
    {[](Call& c, const Backend&) { c.in.q.shape[1] = 3; }, StatusCode::kValueError,
     "q: expected heads that are a multiple of k's 2, got 3"},
    {[](Call& c, const Backend&) { c.in.k.device = DeviceType::kOther; }, StatusCode::kValueError, "k: expected "},
    {[](Call& c, const Backend& b) { c.in.key_lengths = c.lengths.on(b); }, StatusCode::kValueError,
     "key_lengths: expected shape (2,), from the batch, got (3,)"},
    {[](Call& c, const Backend&) { c.in.key_lengths = c.in.q; }, StatusCode::kTypeError,
     "key_lengths: expected int32 or int64, got float32"},
    {[](Call& c, const Backend& b) { c.in.cu_q = c.lengths.on(b); }, StatusCode::kValueError,
     "cu_q: expected none, as q is padded"},
    {[](Call& c, const Backend&) { c.in.q.rank = c.in.k.rank = c.in.v.rank = 3; }, StatusCode::kValueError, "q: "},
    {[](Call& c, const Backend&) { c.in.mask = c.in.q; }, StatusCode::kTypeError, "mask: expected bool"},
    {[](Call& c, const Backend& b) { c.in.mask = c.mask.on(b), c.in.mask.shape[1] = 4; }, StatusCode::kValueError,
     "mask: expected a shape that broadcasts to (2, 4, 3, 5), got (3, 4)"},
    {[](Call& c, const Backend& b) { c.in.bias = c.mask.on(b); }, StatusCode::kTypeError, "bias: expected float32"},
    {[](Call& c, const Backend&) { c.options.scale = kInf; }, StatusCode::kValueError, "scale: expected a finite"},
    {[](Call& c, const Backend&) { c.options.window_left = -1; }, StatusCode::kValueError, "window_left and"},
    {[](Call& c, const Backend&) { c.to.shape[2] = 2; }, StatusCode::kValueError, "out: expected shape (2, 4, 3, 16)"},
    {[](Call& c, const Backend&) { c.to.strides[2] = 0; }, StatusCode::kValueError,
     "out: expected elements that share no memory"},
    {[](Call& c, const Backend&) { c.to = c.in.q; }, StatusCode::kValueError,
     "out: expected memory of its own, got memory shared with q"},
    {[](Call& c, const Backend&) { c.to.dtype = DType::kBFloat16; }, StatusCode::kTypeError, "out: expected float32"},
};

TEST(AttentionSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    for (const Mistake& mistake : kMistakes) {
      const UseBackend use(backend);
      Call c(backend);
      mistake.make(c, backend);
      const Status status = attention(c.in, c.options, c.to);
      expect_refused(status, mistake.code, mistake.message, backend, {&c.out});
    }
  }
}

TEST(AttentionSmall, WorkspaceIsAskedFor) {
  for (const Backend& backend : device_backends()) {
    Random random(81);
    Case c;
    c.lk = 300;
    Data data(c, random);
    const UseBackend use(backend);
    const AttentionInputs in = data.inputs(c, [&](TensorData& t) { return t.on(backend); });
    EXPECT_EQ(attention_workspace_bytes(in), backend.cuda() ? 16 + 2 * (16 + 2) * 4 : 0u);
    const Status status = attention(in, c.options, data.out.on(backend));
    EXPECT_EQ(status.ok(), !backend.cuda());
    if (backend.cuda()) {
      EXPECT_NE(status.message().find("execution.workspace: expected"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace strop::attn
