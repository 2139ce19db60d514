// Products with weights. The host multiplies; what stands behind the product is done in place on its result.
#include "runtime/ops.h"
#include "runtime/pointwise.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

Sizes with_columns(const Tensor& x, std::int64_t columns) {
  Sizes shape = x.sizes();
  if (shape.count == 0) throw Error("x: a tensor without dimensions");
  shape[shape.count - 1] = columns;
  return shape;
}

const Tensor& weight_of(Call& call, int i) {
  const Tensor& weight = call.tensor(i);
  if (weight.rank != 2) throw Error("weight: expected 2 dimensions, got " + std::to_string(weight.rank));
  return weight;
}

void multiply(Call& call, const Tensor& a, const Tensor& b, const Tensor& out) {
  if (out.device == DeviceType::kCpu && pointwise_on_cpu(Pointwise::kMul, a, b, out)) return;
  check(call.host().multiply(a, b, out));
}

// (x, weight, bias?, activation, residual?)
void linear(Call& call) {
  const Tensor &x = call.tensor(0), &weight = weight_of(call, 1);
  const Tensor whole = call.make(0, x, x.dtype, with_columns(x, weight.shape[0]));
  Tensor out;
  flattened(whole, 1, out);
  check(call.host().linear(call, call.rows(x, 1), weight, call.tensor_or_null(2), out));
  if (const Activation activation = activation_named(call.text(3)); activation != Activation::kNone)
    check(call.host().activate(activation, out));
  if (const Tensor* residual = call.tensor_or_null(4)) {
    if (whole.device != DeviceType::kCpu || !pointwise_on_cpu(Pointwise::kAdd, whole, *residual, whole))
      throw Error("a residual of this dtype or device");
  }
}

// (x, weight, bias?, activation): the activated first half of the columns times the second.
void linear_gated(Call& call) {
  const Tensor &x = call.tensor(0), &weight = weight_of(call, 1);
  const std::int64_t n = weight.shape[0] / 2;
  Tensor out;
  flattened(call.make(0, x, x.dtype, with_columns(x, n)), 1, out);
  const Tensor rows = call.rows(x, 1);
  const Tensor both = call.temporary(x, x.dtype, Sizes{rows.shape[0], 2 * n});
  check(call.host().linear(call, rows, weight, call.tensor_or_null(2), both));
  const Tensor gate = slice(both, 1, 0, n, 1), up = slice(both, 1, n, 2 * n, 1);
  if (const Activation activation = activation_named(call.text(3)); activation != Activation::kNone)
    check(call.host().activate(activation, gate));
  multiply(call, gate, up, out);
}

// (x, gate weight, gate bias?, up weight, up bias?, activation)
void linear_gated_pair(Call& call) {
  const Tensor &x = call.tensor(0), &gate = weight_of(call, 1), &up = weight_of(call, 3);
  Tensor out;
  flattened(call.make(0, x, x.dtype, with_columns(x, gate.shape[0])), 1, out);
  const Tensor rows = call.rows(x, 1);
  const Tensor right = call.temporary(x, x.dtype, Sizes{rows.shape[0], up.shape[0]});
  check(call.host().linear(call, rows, gate, call.tensor_or_null(2), out));
  check(call.host().linear(call, rows, up, call.tensor_or_null(4), right));
  if (const Activation activation = activation_named(call.text(5)); activation != Activation::kNone)
    check(call.host().activate(activation, out));
  multiply(call, out, right, out);
}

constexpr Op kOps[] = {
    {"strop.linear_act", &linear},
    {"strop.linear_gated", &linear_gated},
    {"strop.linear_gated_pair", &linear_gated_pair},
};

}  // namespace

std::span<const Op> linear_ops() { return kOps; }

}  // namespace strop::runtime
