// Linear layers as operators of a rewritten model (operators.h).
//
// Who makes the product: for few rows on CUDA, where weights are all that is read, strop's kernel with the epilogue in
// it; for more, and on the CPU, the library that PyTorch calls (cuBLASLt, MKL, oneDNN), which takes the bias as well.
// What follows is then one pass of strop's over the product, in place, and none where there is nothing to do.
#include "strop/linear.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/products.h"
#include "execute.h"
#include "operators.h"
#include "tensors.h"

namespace strop::binding {
namespace {

Activation activation_of(const std::string& name) {
  constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"none", Activation::kNone},          {"relu", Activation::kRelu}, {"gelu", Activation::kGelu},
      {"gelu_tanh", Activation::kGeluTanh}, {"silu", Activation::kSilu}, {"tanh", Activation::kTanh}};
  for (const auto& [known, activation] : kNames) {
    if (name == known) return activation;
  }
  check(Status(StatusCode::kValueError,
               "activation: expected none, relu, gelu, gelu_tanh, silu or tanh, got \"" + name + "\""));
  return {};
}

// Sizes and dtypes that both the library and the kernels take; what else there is, errors too, is PyTorch's.
bool layer_fits(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  return is_float(x) && x.dim() >= 1 && weight.dim() == 2 && weight.scalar_type() == x.scalar_type() &&
         weight.size(0) > 0 && weight.size(1) > 0 && x.size(x.dim() - 1) == weight.size(1) &&
         (!bias.has_value() ||
          (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == x.scalar_type()));
}

// (…, k) as a tensor (R, k), of a copy where strides are several.
Tensor flat(const Tensor& t) {
  if (t.dim() == 2) return t;
  Tensor keep;
  const TensorView view = rows_of(t, keep);
  // A single row steps by what BLAS would have it step by.
  const std::int64_t step = view.shape[0] > 1 ? view.strides[0] : view.shape[1];
  return reinterpreted(keep, {view.shape[0], view.shape[1]}, {step, view.strides[1]});
}

std::vector<std::int64_t> sizes_with(const Tensor& x, std::int64_t columns) {
  std::vector<std::int64_t> sizes = sizes_of(x);
  sizes.back() = columns;
  return sizes;
}

// A row-major (R, n) as (…, n).
Tensor unflat(Tensor t, const std::vector<std::int64_t>& sizes) {
  return sizes.size() == 2 ? t : reinterpreted(t, sizes, row_major(sizes));
}

void product_into(const Tensor& out, const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  // What the dispatcher returns is out once more.
  static_cast<void>(torch::stable::detail::to<Tensor>(call("aten::linear", "out", x, weight, bias, out)[0]));
}

void run_linear(const LinearInputs& in, const LinearOptions& options, const TensorView& out) {
  check(on_stream(in.x, [&](void* stream) {
    LinearExecution execution;
    execution.stream = stream;
    Workspace workspace;
    if (const std::size_t bytes = linear_workspace_bytes(in, options); bytes > 0) {
      if (Status s = workspace.allocate(in.x, bytes, stream, &execution.workspace); !s.ok()) return s;
    }
    return linear(in, options, out, execution);
  }));
}

void run_epilogue(const LinearEpilogueInputs& in, const LinearOptions& options, const TensorView& out) {
  check(on_stream(in.y, [&](void* stream) { return linear_epilogue(in, options, out, stream); }));
}

Tensor linear_act_op(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const std::string& activation,
                     const MaybeTensor& residual) {
  LinearOptions options;
  options.activation = activation_of(activation);
  const auto plain = [&] { return one("strop::linear_act_plain", x, weight, bias, activation, residual); };
  if (!layer_fits(x, weight, bias)) return plain();
  const std::vector<std::int64_t> sizes = sizes_with(x, weight.size(0));
  if (residual.has_value() && (residual->scalar_type() != x.scalar_type() || sizes_of(*residual) != sizes)) {
    return plain();
  }
  const NoGrad no_grad;  // PyTorch must not record what is done to its own product's memory
  const Tensor rows = flat(x);
  Tensor kept, ignored;
  const TensorView added = residual.has_value() ? rows_of(*residual, kept) : TensorView{};
  if (makes_product(view_of(rows, "x"))) {
    const Tensor out = new_tensor(x, sizes);
    LinearInputs in;
    in.x = view_of(rows, "x");
    in.weight = view_of(weight, "weight");
    in.bias = view_if(bias, "bias");
    in.residual = added;
    run_linear(in, options, rows_of(out, ignored));
    return out;
  }
  Tensor y = one("aten::linear", rows, weight, bias);
  if (y.scalar_type() != x.scalar_type() || !y.is_contiguous()) return plain();  // it is another under autocast
  if (options.activation != Activation::kNone || residual.has_value()) {
    const TensorView product = view_of(y, "y");
    run_epilogue({product, {}, added}, options, product);
  }
  return unflat(std::move(y), sizes);
}

Tensor linear_gated_op(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const std::string& activation) {
  LinearOptions options;
  options.activation = activation_of(activation);
  options.gated = true;
  const auto plain = [&] { return one("strop::linear_gated_plain", x, weight, bias, activation); };
  if (!layer_fits(x, weight, bias) || weight.size(0) % 2 != 0) return plain();
  const NoGrad no_grad;
  const Tensor rows = flat(x);
  const Tensor out = new_tensor(x, sizes_with(x, weight.size(0) / 2));
  Tensor ignored;
  const TensorView to = rows_of(out, ignored);
  if (makes_product(view_of(rows, "x"))) {
    LinearInputs in;
    in.x = view_of(rows, "x");
    in.weight = view_of(weight, "weight");
    in.bias = view_if(bias, "bias");
    run_linear(in, options, to);
    return out;
  }
  const Tensor y = one("aten::linear", rows, weight, bias);
  if (y.scalar_type() != x.scalar_type()) return plain();
  run_epilogue({view_of(y, "y"), {}, {}}, options, to);
  return out;
}

Tensor linear_gated_pair_op(const Tensor& x, const Tensor& gate_weight, const MaybeTensor& gate_bias,
                            const Tensor& up_weight, const MaybeTensor& up_bias, const std::string& activation) {
  LinearOptions options;
  options.activation = activation_of(activation);
  options.gated = true;
  if (!layer_fits(x, gate_weight, gate_bias) || !layer_fits(x, up_weight, up_bias) ||
      gate_weight.size(0) != up_weight.size(0)) {
    return one("strop::linear_gated_pair_plain", x, gate_weight, gate_bias, up_weight, up_bias, activation);
  }
  const NoGrad no_grad;
  const std::int64_t n = gate_weight.size(0);
  const Tensor rows = flat(x);
  const Tensor out = new_tensor(x, sizes_with(x, n));
  Tensor ignored;
  const TensorView to = rows_of(out, ignored);
  if (makes_product(view_of(rows, "x"))) {
    LinearInputs in;
    in.x = view_of(rows, "x");
    in.weight = view_of(gate_weight, "gate_weight");
    in.bias = view_if(gate_bias, "gate_bias");
    in.up_weight = view_of(up_weight, "up_weight");
    in.up_bias = view_if(up_bias, "up_bias");
    run_linear(in, options, to);
    return out;
  }
  // Both products into one tensor, side by side as the epilogue wants them.
  const std::int64_t m = rows.size(0);
  const Tensor y = new_tensor(x, {m, 2 * n});
  if (m > 0) {
    const TensorView whole = view_of(y, "y");
    product_into(reinterpreted(y, {m, n}, {2 * n, 1}), rows, gate_weight, gate_bias);
    product_into(reinterpreted(y, {m, n}, {2 * n, 1}, n), rows, up_weight, up_bias);
    run_epilogue({whole, {}, {}}, options, to);
  }
  return out;
}

}  // namespace

void implement_linear(OperatorLibrary& m) {
  m.impl("linear_act", TORCH_BOX(&linear_act_op));
  m.impl("linear_gated", TORCH_BOX(&linear_gated_op));
  m.impl("linear_gated_pair", TORCH_BOX(&linear_gated_pair_op));
}

}  // namespace strop::binding
