// Linear layers. The host multiplies, and strop::linear_epilogue does what follows the product in place, but for few
// rows on a GPU (base/products.h) and where the host has no product: these are strop::linear's.
#include "base/products.h"
#include "runtime/ops.h"
#include "runtime/views.h"
#include "strop/linear.h"

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

LinearOptions options_of(Call& call, int activation, bool gated) {
  LinearOptions options;
  options.activation = activation_named(call.text(activation));
  options.gated = gated;
  return options;
}

TensorView view_or_none(const Tensor* t) { return t != nullptr ? view_of(*t) : TensorView{}; }

bool is_fused(Call& call, const Tensor& rows) { return makes_product(view_of(rows)) || !call.host().multiplies(); }

// By strop's kernel, whose product is not written before what follows it.
void run_fused(Call& call, const LinearInputs& in, const LinearOptions& options, const Tensor& out) {
  LinearExecution execution;
  execution.stream = call.host().stream();
  if (const std::size_t bytes = linear_workspace_bytes(in, options); bytes > 0)
    execution.workspace = call.temporary(out, DType::kUInt8, Sizes{static_cast<std::int64_t>(bytes)}).data;
  check(linear(in, options, view_of(out), execution));
}

void run_epilogue(Call& call, const Tensor& y, const TensorView& residual, const LinearOptions& options,
                  const Tensor& out) {
  LinearEpilogueInputs in;
  in.y = view_of(y);
  in.residual = residual;
  check(linear_epilogue(in, options, view_of(out), call.host().stream()));
}

// (x, weight, bias?, activation, residual?)
void linear_act(Call& call) {
  const Tensor &x = call.tensor(0), &weight = weight_of(call, 1);
  const Tensor* const bias = call.tensor_or_null(2);
  const LinearOptions options = options_of(call, 3, false);
  Tensor out;
  flattened(call.make(0, x, x.dtype, with_columns(x, weight.shape[0])), 1, out);
  if (out.numel() == 0) return;
  const Tensor rows = call.rows(x, 1);
  LinearInputs in;
  if (const Tensor* residual = call.tensor_or_null(4)) in.residual = view_of(call.rows(*residual, 1));
  if (is_fused(call, rows)) {
    in.x = view_of(rows);
    in.weight = view_of(weight);
    in.bias = view_or_none(bias);
    return run_fused(call, in, options, out);
  }
  check(call.host().linear(call, rows, weight, bias, out));
  if (options.activation != Activation::kNone || in.residual.data != nullptr)
    run_epilogue(call, out, in.residual, options, out);
}

// (x, weight, bias?, activation): the activated first half of the columns times the second.
void linear_gated(Call& call) {
  const Tensor &x = call.tensor(0), &weight = weight_of(call, 1);
  const Tensor* const bias = call.tensor_or_null(2);
  const LinearOptions options = options_of(call, 3, true);
  Tensor out;
  flattened(call.make(0, x, x.dtype, with_columns(x, weight.shape[0] / 2)), 1, out);
  if (out.numel() == 0) return;
  const Tensor rows = call.rows(x, 1);
  if (is_fused(call, rows)) {
    LinearInputs in;
    in.x = view_of(rows);
    in.weight = view_of(weight);
    in.bias = view_or_none(bias);
    return run_fused(call, in, options, out);
  }
  const Tensor both = call.temporary(x, x.dtype, Sizes{rows.shape[0], weight.shape[0]});
  check(call.host().linear(call, rows, weight, bias, both));
  run_epilogue(call, both, {}, options, out);
}

// (x, gate weight, gate bias?, up weight, up bias?, activation)
void linear_gated_pair(Call& call) {
  const Tensor &x = call.tensor(0), &gate = weight_of(call, 1), &up = weight_of(call, 3);
  const Tensor *const gate_bias = call.tensor_or_null(2), *const up_bias = call.tensor_or_null(4);
  const LinearOptions options = options_of(call, 5, true);
  const std::int64_t n = gate.shape[0];
  if (up.shape[0] != n) throw Error("two weights of " + std::to_string(n) + " and " + std::to_string(up.shape[0]));
  Tensor out;
  flattened(call.make(0, x, x.dtype, with_columns(x, n)), 1, out);
  if (out.numel() == 0) return;
  const Tensor rows = call.rows(x, 1);
  if (is_fused(call, rows)) {
    LinearInputs in;
    in.x = view_of(rows);
    in.weight = view_of(gate);
    in.bias = view_or_none(gate_bias);
    in.up_weight = view_of(up);
    in.up_bias = view_or_none(up_bias);
    return run_fused(call, in, options, out);
  }
  // Side by side, as the epilogue wants them.
  const Tensor both = call.temporary(x, x.dtype, Sizes{rows.shape[0], 2 * n});
  check(call.host().linear(call, rows, gate, gate_bias, slice(both, 1, 0, n, 1)));
  check(call.host().linear(call, rows, up, up_bias, slice(both, 1, n, 2 * n, 1)));
  run_epilogue(call, both, {}, options, out);
}

constexpr Op kOps[] = {
    {"strop.linear_act", &linear_act},
    {"strop.linear_gated", &linear_gated},
    {"strop.linear_gated_pair", &linear_gated_pair},
};

}  // namespace

std::span<const Op> linear_ops() { return kOps; }

}  // namespace strop::runtime
