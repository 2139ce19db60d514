// What follows a product, on the CPU: bias, activation, gate and residual for a part of a row in fp32. Compiled once
// for each instruction set.
#if defined(STROP_LINEAR_EPILOGUE_CPU_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_LINEAR_EPILOGUE_CPU_INL_H_
#undef STROP_LINEAR_EPILOGUE_CPU_INL_H_
#else
#define STROP_LINEAR_EPILOGUE_CPU_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "base/simd-inl.h"
#include "base/stage-inl.h"
#include "kernels/linear/linear.h"

HWY_BEFORE_NAMESPACE();
namespace strop::lin {
namespace HWY_NAMESPACE {
using namespace strop::HWY_NAMESPACE;  // NOLINT(google-build-using-namespace)

constexpr std::int64_t kLine = 512;  // elements of a part of a row, at most

// A thread's own, fp32.
struct EpilogueLine {
  HWY_ALIGN float y[2][kLine];
  HWY_ALIGN float more[kLine];  // bias, then residual
};

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), where Phi(-t) = exp(-t^2 / 2) times a polynomial in 1 / (1 + 0.3 t): minimax
// in relative error over [0, 14], 6e-8. Beyond 20, where Phi(-t) is 0, t is 20, so that infinity times 0 is not met.
HWY_INLINE FloatVec gelu(FloatVec x) {
  const Float f;
  const auto t = at_most(hn::Abs(x), hn::Set(f, 20.0F));
  const auto u = hn::Div(hn::Set(f, 1.0F), hn::MulAdd(t, hn::Set(f, 0.3F), hn::Set(f, 1.0F)));
  auto p = hn::MulAdd(hn::Set(f, 3.83786329e-2F), u, hn::Set(f, -1.69167699e-1F));
  p = hn::MulAdd(p, u, hn::Set(f, 2.28663176e-1F));
  p = hn::MulAdd(p, u, hn::Set(f, -7.65097901e-2F));
  p = hn::MulAdd(p, u, hn::Set(f, 1.42537644e-1F));
  p = hn::MulAdd(p, u, hn::Set(f, 9.4682696e-2F));
  p = hn::MulAdd(p, u, hn::Set(f, 1.21920534e-1F));
  p = hn::MulAdd(p, u, hn::Set(f, 1.19487665e-1F));
  p = hn::MulAdd(p, u, hn::Set(f, 7.17011554e-6F));
  const auto tail = hn::Mul(exp_nonpositive(hn::Mul(hn::Mul(t, hn::Set(f, -0.5F)), t)), p);
  return hn::NegMulAdd(t, tail, at_least(x, hn::Zero(f)));
}

// x / (1 + exp(-z)).
HWY_INLINE FloatVec times_sigmoid(FloatVec x, FloatVec z) {
  const Float f;
  return hn::Div(x, hn::Add(hn::Set(f, 1.0F), exp(hn::Neg(z))));
}

// x (1 + tanh(z)) / 2 = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3).
HWY_INLINE FloatVec gelu_tanh(FloatVec x) {
  const Float f;
  const auto square = hn::Mul(x, x);
  const auto slope = hn::MulAdd(square, hn::Set(f, 0.0713548163F), hn::Set(f, 1.59576912F));
  return times_sigmoid(x, hn::Mul(x, slope));
}

// (exp(2x) - 1) / (exp(2x) + 1); 1 in fp32 long before 2x is 20.
HWY_INLINE FloatVec tanh(FloatVec x) {
  const Float f;
  const auto twice = at_most(at_least(hn::Add(x, x), hn::Set(f, -20.0F)), hn::Set(f, 20.0F));
  const auto e = expm1(twice).value;
  return hn::Div(e, hn::Add(e, hn::Set(f, 2.0F)));
}

// The lines are read and written in whole vectors.
template <class F>
HWY_INLINE void for_each_vector(float* x, std::size_t n, F&& f) {
  for (std::size_t i = 0; i < n; i += hn::Lanes(Float())) hn::StoreU(f(hn::LoadU(Float(), x + i)), Float(), x + i);
}

inline void activate(Activation activation, float* x, std::size_t n) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return for_each_vector(x, n, [](FloatVec v) HWY_ATTR { return at_least(v, hn::Zero(Float())); });
    case Activation::kGelu:
      return for_each_vector(x, n, [](FloatVec v) HWY_ATTR { return gelu(v); });
    case Activation::kGeluTanh:
      return for_each_vector(x, n, [](FloatVec v) HWY_ATTR { return gelu_tanh(v); });
    case Activation::kSilu:
      return for_each_vector(x, n, [](FloatVec v) HWY_ATTR { return times_sigmoid(v, v); });
    case Activation::kTanh:
      return for_each_vector(x, n, [](FloatVec v) HWY_ATTR { return tanh(v); });
  }
}

// Elements [column, column + n) of a row, at most kLine of them, of which the products are y0 and, gated, y1: fp32,
// padded to whole vectors, and changed.
inline void finish_line(const Epilogue& e, std::int64_t row, std::int64_t column, std::size_t n, float* y0, float* y1,
                        EpilogueLine& line) {
  const auto combine = [&](float* to, const float* from, bool product) HWY_ATTR {
    for (std::size_t i = 0; i < n; i += hn::Lanes(Float())) {
      const auto a = hn::LoadU(Float(), to + i), b = hn::LoadU(Float(), from + i);
      hn::StoreU(product ? hn::Mul(a, b) : hn::Add(a, b), Float(), to + i);
    }
  };
  for (int half = 0; half < (e.gated ? 2 : 1); ++half) {
    const Vector& b = e.bias[half];
    if (b.data == nullptr) continue;
    stage(b.data, b.dtype, column * b.stride, b.stride, n, line.more);
    combine(half == 0 ? y0 : y1, line.more, false);
  }
  activate(e.activation, y0, n);
  if (e.gated) combine(y0, y1, true);
  if (e.residual.data != nullptr) {
    stage(e.residual.data, e.dtype, row * e.residual.stride_row + column * e.residual.stride, e.residual.stride, n,
          line.more);
    combine(y0, line.more, false);
  }
  unstage(y0, n, e.out.data, e.dtype, row * e.out.stride_row + column * e.out.stride, e.out.stride);
}

// Elements [column, column + n) of a row of the epilogue alone.
inline void epilogue_line(const Epilogue& e, const Matrix (&y)[2], std::int64_t row, std::int64_t column, std::size_t n,
                          EpilogueLine& line) {
  for (int half = 0; half < (e.gated ? 2 : 1); ++half) {
    const Matrix& m = y[half];
    stage(m.data, e.dtype, row * m.stride_row + column * m.stride, m.stride, n, line.y[half]);
  }
  finish_line(e, row, column, n, line.y[0], line.y[1], line);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop::lin
HWY_AFTER_NAMESPACE();

#endif  // STROP_LINEAR_EPILOGUE_CPU_INL_H_
