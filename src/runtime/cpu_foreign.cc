// Operations of PyTorch's for CpuHost, after their schemas: those of which encoders make positions, masks and
// rotary tables. Their tensors are small, so inputs are brought to one dtype and shape first, and loops are plain.
#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>

#include "runtime/cpu_host.h"
#include "runtime/frame.h"
#include "runtime/pointwise.h"
#include "runtime/views.h"
#include "strop/ragged.h"

namespace strop::runtime {
namespace {

// ---- Dtypes ---------------------------------------------------------------------------------------------------------

// The dtypes that with_type knows in the order in which they give way to each other, or -1.
int precedence(DType dtype) {
  static constexpr DType kOrder[] = {DType::kBool,  DType::kUInt8,   DType::kInt32,
                                     DType::kInt64, DType::kFloat32, DType::kFloat64};
  const auto* const found = std::find(std::begin(kOrder), std::end(kOrder), dtype);
  return found == std::end(kOrder) ? -1 : static_cast<int>(found - kOrder);
}

bool is_float(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat64; }

int category(DType dtype) { return dtype == DType::kBool ? 0 : is_float(dtype) ? 2 : 1; }

void check_known(const Tensor& t) {
  if (precedence(t.dtype) < 0)
    throw Error(std::string("it does not take ") + dtype_name(t.dtype), StatusCode::kTypeError);
}

// The dtype in which two tensors meet: one without dimensions counts where it is of a higher category alone.
DType promoted(const Tensor& a, const Tensor& b) {
  check_known(a);
  check_known(b);
  if ((a.rank == 0) != (b.rank == 0)) {
    const Tensor &many = a.rank == 0 ? b : a, &one = a.rank == 0 ? a : b;
    if (category(one.dtype) <= category(many.dtype)) return many.dtype;
  }
  return precedence(a.dtype) >= precedence(b.dtype) ? a.dtype : b.dtype;
}

// t, broadcast to a shape, in a dtype, row-major.
Tensor dense(Call& call, const Tensor& t, DType dtype, const Sizes& shape) {
  const Tensor wide = expand(t, shape);
  if (wide.dtype == dtype && wide.contiguous()) return wide;
  const Tensor made = call.temporary(t, dtype, shape);
  copy(call.host(), made, wide);
  return made;
}

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data);
}

// f(T{}) for a dtype that check_known let pass.
template <class F>
void typed(DType dtype, F&& f) {
  if (!with_type(dtype, f)) throw Error(std::string("it does not take ") + dtype_name(dtype), StatusCode::kTypeError);
}

// ---- Elementwise ----------------------------------------------------------------------------------------------------

// F has a template operator() for its dtypes.
template <class F>
void unary(Call& call, DType dtype) {
  const Tensor& t = call.tensor(0);
  check_known(t);
  const Tensor from = dense(call, t, dtype, t.sizes()), to = call.make(0, t, dtype, t.sizes());
  typed(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_invocable_v<F, T>) {
      std::transform(data_of<T>(from), data_of<T>(from) + from.numel(), data_of<T>(to),
                     [](T x) { return static_cast<T>(F{}(x)); });
    } else {
      throw Error(std::string("it does not take ") + dtype_name(dtype), StatusCode::kTypeError);
    }
  });
}

template <class F>
void same_dtype(Call& call) {
  unary<F>(call, call.tensor(0).dtype);
}

// Of integers it is computed in float32.
template <class F>
void in_floats(Call& call) {
  const DType dtype = call.tensor(0).dtype;
  unary<F>(call, is_float(dtype) ? dtype : DType::kFloat32);
}

template <class T>
concept Number = !std::is_same_v<T, bool>;
template <class T>
concept Whole = std::is_integral_v<T>;

struct Negative {
  template <Number T>
  T operator()(T x) const {
    if constexpr (Whole<T>) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(x));
    return -x;
  }
};
struct Absolute {
  template <Number T>
  T operator()(T x) const {
    return x < T{0} ? Negative{}(x) : x;
  }
};
struct Sign {
  template <Number T>
  T operator()(T x) const {
    return static_cast<T>(static_cast<int>(x > T{0}) - static_cast<int>(x < T{0}));
  }
};
struct BitwiseNot {
  bool operator()(bool x) const { return !x; }
  template <Whole T>
  requires Number<T> T operator()(T x) const { return static_cast<T>(~x); }
};

// A function of <cmath> as a type.
#define STROP_FLOAT_FUNCTION(NAME, EXPRESSION) \
  struct NAME {                                \
    template <std::floating_point T>           \
    T operator()(T x) const {                  \
      return EXPRESSION;                       \
    }                                          \
  }
STROP_FLOAT_FUNCTION(Cosine, std::cos(x));
STROP_FLOAT_FUNCTION(Sine, std::sin(x));
STROP_FLOAT_FUNCTION(Exponential, std::exp(x));
STROP_FLOAT_FUNCTION(Logarithm, std::log(x));
STROP_FLOAT_FUNCTION(SquareRoot, std::sqrt(x));
STROP_FLOAT_FUNCTION(InverseRoot, T{1} / std::sqrt(x));
STROP_FLOAT_FUNCTION(HyperbolicTangent, std::tanh(x));
STROP_FLOAT_FUNCTION(Ceiling, std::ceil(x));
STROP_FLOAT_FUNCTION(Floor, std::floor(x));
#undef STROP_FLOAT_FUNCTION

// Two tensors, each in `dtype`, and the result in `to`.
template <class F>
void binary(Call& call, DType dtype, DType to) {
  const Tensor &a = call.tensor(0), &b = call.tensor(1);
  const Sizes shape = broadcast(a.sizes(), b.sizes());
  const Tensor x = dense(call, a, dtype, shape), y = dense(call, b, dtype, shape), out = call.make(0, a, to, shape);
  typed(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_invocable_v<F, T, T>) {
      using R = std::invoke_result_t<F, T, T>;
      if (to != (std::is_same_v<R, bool> ? DType::kBool : dtype)) throw Error("a result of another dtype");
      std::transform(data_of<T>(x), data_of<T>(x) + x.numel(), data_of<T>(y), data_of<R>(out), F{});
    } else {
      throw Error(std::string("it does not take ") + dtype_name(dtype), StatusCode::kTypeError);
    }
  });
}

template <class F>
void arithmetic(Call& call) {
  const DType dtype = promoted(call.tensor(0), call.tensor(1));
  binary<F>(call, dtype, dtype);
}

template <class F>
void comparison(Call& call) {
  binary<F>(call, promoted(call.tensor(0), call.tensor(1)), DType::kBool);
}

// Integers wrap around, as PyTorch's do; bool times bool is bool.
struct Product {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_same_v<T, bool>) {
      return a && b;
    } else if constexpr (Whole<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
    } else {
      return a * b;
    }
  }
};
struct Quotient {
  template <std::floating_point T>
  T operator()(T a, T b) const {
    return a / b;
  }
};
// The smaller and the larger of two; NaN where one is.
struct Least {
  template <class T>
  T operator()(T a, T b) const {
    return a != a || a < b ? a : b;
  }
};
struct Most {
  template <class T>
  T operator()(T a, T b) const {
    return a != a || a > b ? a : b;
  }
};
struct BitwiseAnd {
  template <Whole T>
  T operator()(T a, T b) const {
    return static_cast<T>(a & b);
  }
};
struct BitwiseOr {
  template <Whole T>
  T operator()(T a, T b) const {
    return static_cast<T>(a | b);
  }
};

void divide(Call& call) {
  const DType dtype = promoted(call.tensor(0), call.tensor(1));
  const DType quotient = is_float(dtype) ? dtype : DType::kFloat32;
  binary<Quotient>(call, quotient, quotient);
}

void choose(Call& call, const Tensor& condition, const Tensor& yes, const Tensor& no, DType dtype) {
  if (condition.dtype != DType::kBool) throw Error("a condition that is not bool", StatusCode::kTypeError);
  const Sizes shape = broadcast(condition.sizes(), broadcast(yes.sizes(), no.sizes()));
  const Tensor c = dense(call, condition, DType::kBool, shape), a = dense(call, yes, dtype, shape),
               b = dense(call, no, dtype, shape), out = call.make(0, condition, dtype, shape);
  typed(dtype, [&](auto type) {
    using T = decltype(type);
    for (std::int64_t i = 0; i < out.numel(); ++i)
      data_of<T>(out)[i] = data_of<bool>(c)[i] ? data_of<T>(a)[i] : data_of<T>(b)[i];
  });
}

// (condition, self, other)
void where(Call& call) {
  const Tensor &yes = call.tensor(1), &no = call.tensor(2);
  choose(call, call.tensor(0), yes, no, promoted(yes, no));
}

// (self, mask, value)
void masked_fill(Call& call) {
  const Tensor& self = call.tensor(0);
  check_known(self);
  choose(call, call.tensor(1), call.tensor(2), self, self.dtype);
}

// ---- Along a dimension ----------------------------------------------------------------------------------------------

// A shape as (before, the dimension, behind).
struct Cut {
  std::int64_t outer = 1, size = 1, inner = 1;

  Cut(const Sizes& shape, int dim) {
    for (int d = 0; d < shape.count; ++d) (d < dim ? outer : d == dim ? size : inner) *= shape[d];
  }
};

// (self, dim, index, sparse_grad)
void gather(Call& call) {
  const Tensor &self = call.tensor(0), &index = call.tensor(2);
  const int dim = dimension(call.integer(1), self.rank);
  if (self.rank != index.rank || self.rank == 0) throw Error("gather: an index of another number of dimensions");
  for (int d = 0; d < self.rank; ++d)
    if (d != dim && index.shape[d] > self.shape[d]) throw Error("gather: an index that is larger than the tensor");
  const std::int64_t size = self.shape[dim];
  // What lies behind the index in other dimensions is not read.
  Tensor seen = self;
  for (int d = 0; d < self.rank; ++d)
    if (d != dim) seen.shape[d] = index.shape[d];
  const Tensor from = dense(call, seen, self.dtype, seen.sizes()),
               at = dense(call, index, DType::kInt64, index.sizes()), out = call.make(0, self, self.dtype, at.sizes());
  const Cut cut(at.sizes(), dim);
  typed(self.dtype, [&](auto type) {
    using T = decltype(type);
    for (std::int64_t i = 0; i < out.numel(); ++i) {
      const std::int64_t row = data_of<std::int64_t>(at)[i];
      if (row < 0 || row >= size) throw Error("gather: index " + std::to_string(row) + " of " + std::to_string(size));
      const std::int64_t outer = i / (cut.size * cut.inner), inner = i % cut.inner;
      data_of<T>(out)[i] = data_of<T>(from)[(outer * size + row) * cut.inner + inner];
    }
  });
}

// (self, dim, dtype?)
void cumsum(Call& call) {
  const Tensor& self = call.tensor(0);
  check_known(self);
  const DType own = is_float(self.dtype) ? self.dtype : DType::kInt64;
  const DType dtype = call.given(2) ? call.dtype(2) : own;
  const Tensor from = dense(call, self, dtype, self.sizes()), out = call.make(0, self, dtype, self.sizes());
  const Cut cut(self.sizes(), self.rank == 0 ? 0 : dimension(call.integer(1), self.rank));
  typed(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (Number<T>) {
      for (std::int64_t i = 0; i < out.numel(); ++i) {
        const bool first = i / cut.inner % cut.size == 0;
        const T before = first ? T{0} : data_of<T>(out)[i - cut.inner], now = data_of<T>(from)[i];
        if constexpr (Whole<T>) {
          using U = std::make_unsigned_t<T>;
          data_of<T>(out)[i] = static_cast<T>(static_cast<U>(before) + static_cast<U>(now));
        } else {
          data_of<T>(out)[i] = before + now;
        }
      }
    }
  });
}

// (tensors, dim)
void concatenate(Call& call) {
  const std::vector<Operand>& items = call.items(0);
  if (items.empty()) throw Error("cat: no tensors");
  const Tensor& first = call.tensor_of(items[0]);
  const int dim = dimension(call.integer(1), first.rank);
  Sizes shape = first.sizes();
  shape[dim] = 0;
  for (const Operand& item : items) {
    const Tensor& t = call.tensor_of(item);
    Sizes own = t.sizes();
    if (t.dtype != first.dtype || own.count != shape.count) throw Error("cat: tensors of two kinds");
    shape[dim] += own[dim];
    own[dim] = shape[dim];
    if (!(own == shape)) throw Error("cat: sizes that do not fit");
  }
  const Tensor out = call.make(0, first, first.dtype, shape);
  std::int64_t start = 0;
  for (const Operand& item : items) {
    const Tensor& t = call.tensor_of(item);
    copy(call.host(), slice(out, dim, start, start + t.shape[dim], 1), t);
    start += t.shape[dim];
  }
}

// (weight, indices, padding_idx, scale_grad_by_freq, sparse)
void embedding(Call& call) {
  const Tensor &weight = call.tensor(0), &index = call.tensor(1);
  if (weight.rank != 2) throw Error("embedding: a weight without 2 dimensions");
  const std::int64_t columns = weight.shape[1];
  Sizes shape = index.sizes();
  shape.push(columns);
  Tensor out = call.make(0, weight, weight.dtype, shape);
  make_row_major(out, Sizes{index.numel(), columns});
  if (columns > 0) check(gather_rows(view_of(weight), view_of(call.rows(index, 0)), view_of(out)));
}

// (padding?, batch, queries, keys, query_offset, key_offset, window_left, window_right, device): strop's own, as
// python/strop/rewrite/ops.py has it. Bool (batch, 1, queries, keys), true where a query attends to a key.
void attention_mask(Call& call) {
  const Tensor* const padding = call.tensor_or_null(0);
  const std::int64_t batch = call.integer(1), queries = call.integer(2), keys = call.integer(3);
  const std::int64_t from = call.integer(4), key_offset = call.integer(5), left = call.integer(6),
                     right = call.integer(7);
  const Tensor out = call.make(0, Tensor(), DType::kBool, Sizes{batch, 1, queries, keys});
  Tensor real;
  if (padding != nullptr) {
    if (padding->rank != 2 || padding->dtype != DType::kBool) throw Error("padding: expected bool of 2 dimensions");
    real = expand(*padding, Sizes{batch, -1});
  }
  bool* seen = data_of<bool>(out);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < queries; ++i) {
      for (std::int64_t j = 0; j < keys; ++j) {
        const std::int64_t p = i + from, s = j + key_offset;
        const bool within = (left < 0 || s >= p - left) && (right < 0 || s <= p + right);
        const bool there = padding == nullptr || (s >= 0 && s < real.shape[1] &&
                                                  data_of<bool>(real)[b * real.strides[0] + s * real.strides[1]]);
        *seen++ = within && there;
      }
    }
  }
}

struct Named {
  const char* name;
  const char* overload;
  ForeignOp run;
};

constexpr Named kOps[] = {
    {"aten::neg", "", &same_dtype<Negative>},
    {"aten::abs", "", &same_dtype<Absolute>},
    {"aten::sign", "", &same_dtype<Sign>},
    {"aten::bitwise_not", "", &same_dtype<BitwiseNot>},
    {"aten::cos", "", &in_floats<Cosine>},
    {"aten::sin", "", &in_floats<Sine>},
    {"aten::exp", "", &in_floats<Exponential>},
    {"aten::log", "", &in_floats<Logarithm>},
    {"aten::sqrt", "", &in_floats<SquareRoot>},
    {"aten::rsqrt", "", &in_floats<InverseRoot>},
    {"aten::tanh", "", &in_floats<HyperbolicTangent>},
    {"aten::ceil", "", &in_floats<Ceiling>},
    {"aten::floor", "", &in_floats<Floor>},
    {"aten::mul", "Tensor", &arithmetic<Product>},
    {"aten::div", "Tensor", &divide},
    {"aten::min", "other", &arithmetic<Least>},
    {"aten::max", "other", &arithmetic<Most>},
    {"aten::minimum", "", &arithmetic<Least>},
    {"aten::maximum", "", &arithmetic<Most>},
    {"aten::bitwise_and", "Tensor", &arithmetic<BitwiseAnd>},
    {"aten::bitwise_or", "Tensor", &arithmetic<BitwiseOr>},
    {"aten::__and__", "Tensor", &arithmetic<BitwiseAnd>},
    {"aten::__or__", "Tensor", &arithmetic<BitwiseOr>},
    {"aten::eq", "Tensor", &comparison<std::equal_to<>>},
    {"aten::ne", "Tensor", &comparison<std::not_equal_to<>>},
    {"aten::lt", "Tensor", &comparison<std::less<>>},
    {"aten::le", "Tensor", &comparison<std::less_equal<>>},
    {"aten::gt", "Tensor", &comparison<std::greater<>>},
    {"aten::ge", "Tensor", &comparison<std::greater_equal<>>},
    {"aten::where", "self", &where},
    {"aten::masked_fill", "Tensor", &masked_fill},
    {"aten::gather", "", &gather},
    {"aten::cumsum", "", &cumsum},
    {"aten::cat", "", &concatenate},
    {"aten::embedding", "", &embedding},
    {"strop::attention_mask", "", &attention_mask},
};

}  // namespace

ForeignOp find_foreign(std::string_view name, std::string_view overload) {
  for (const Named& op : kOps)
    if (name == op.name && overload == op.overload) return op.run;
  return nullptr;
}

std::vector<std::string> missing_operations(const Program& program) {
  std::set<std::string> missing;
  for (const Instruction& in : program.instructions) {
    if (in.foreign == nullptr || find_foreign(in.foreign->name, in.foreign->overload) != nullptr) continue;
    missing.insert(in.foreign->name + (in.foreign->overload.empty() ? "" : ".") + in.foreign->overload);
  }
  return {missing.begin(), missing.end()};
}

}  // namespace strop::runtime
