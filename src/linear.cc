// The public API of linear layers: checks views, fills in a Problem, runs a backend.
#include "strop/linear.h"

#include <cstdint>
#include <string>
#include <utility>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_tuning.h"

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

struct Named {
  const char* name;
  const TensorView& view;
};

Status check_options(const LinearOptions& options) {
  if (options.activation > Activation::kTanh) [[unlikely]]
    return value_error("activation", "one of Activation", std::to_string(static_cast<int>(options.activation)));
  return {};
}

// x or y: what the others are "like". `columns` is its second size's name.
Status check_first(const Named& first, const char* columns) {
  const TensorView& view = first.view;
  STROP_RETURN_IF_ERROR(check_float(first.name, view.dtype));
  if (view.rank != 2 || view.shape[1] < 1) [[unlikely]]
    return value_error(first.name, std::string("shape (M, ") + columns + ") with " + columns + " at least 1",
                       shape_text(view));
  STROP_RETURN_IF_ERROR(check_device(first.name, view, STROP_WITH_CUDA != 0));
  return check_data(first.name, view, view.shape[0] == 0);
}

Status check_like(const Named& matrix, const Named& first, std::int64_t rows, std::int64_t columns) {
  const auto& [name, view] = matrix;
  if (view.dtype != first.view.dtype) [[unlikely]]
    return type_error(name, std::string(dtype_name(first.view.dtype)) + " like " + first.name, dtype_name(view.dtype));
  const std::int64_t shape[2] = {rows, columns};
  if (view.rank != 2 || view.shape[0] != rows || view.shape[1] != columns) [[unlikely]]
    return value_error(name, "shape " + tuple_text(shape, 2), shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, first.view, first.name));
  return check_data(name, view, rows == 0);
}

Status check_bias(const Named& bias, const Named& first, std::int64_t n) {
  const auto& [name, view] = bias;
  if (view.data == nullptr) return {};
  STROP_RETURN_IF_ERROR(check_float(name, view.dtype));
  if (view.rank != 1 || view.shape[0] != n) [[unlikely]]
    return value_error(name, "shape " + tuple_text(&n, 1), shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, first.view, first.name));
  return check_data(name, view, false);
}

// `sources` are the inputs whose memory the output may have, if exactly.
Status check_out(const TensorView& out, const Named& first, std::int64_t n, std::initializer_list<Named> sources,
                 std::initializer_list<Named> others) {
  STROP_RETURN_IF_ERROR(check_like({"out", out}, first, first.view.shape[0], n));
  STROP_RETURN_IF_ERROR(check_elements_apart("out", out));
  for (const auto& [name, view] : sources) {
    if (view.data == nullptr || (out.data == view.data && same_strides(out, view))) continue;
    if (share_memory(out, view)) [[unlikely]] {
      return value_error("out", std::string("memory of its own or exactly that of ") + name,
                         std::string("memory shared with ") + name + " in another layout");
    }
  }
  for (const auto& [name, view] : others) {
    if (share_memory(out, view)) [[unlikely]]
      return value_error("out", "memory of its own", std::string("memory shared with ") + name);
  }
  return {};
}

// A stride that nothing steps by is 0, so that it does not stand in the way of vectors.
std::int64_t stride(const TensorView& view, int d) { return view.shape[d] == 1 ? 0 : view.strides[d]; }
lin::Matrix matrix(const TensorView& view) {
  if (view.data == nullptr) return {};
  return {view.data, stride(view, 0), view.shape[1] == 1 ? 1 : view.strides[1]};
}
lin::Vector vector(const TensorView& view) {
  return view.data == nullptr ? lin::Vector{} : lin::Vector{view.data, stride(view, 0), view.dtype};
}
char* moved(const void* data, DType dtype, std::int64_t elements) {
  return static_cast<char*>(const_cast<void*>(data)) + elements * dtype_size(dtype);
}
// Of a bias (2N,), the half behind the first n elements.
lin::Vector second_half(const TensorView& bias, std::int64_t n) {
  if (bias.data == nullptr) return {};
  return {moved(bias.data, bias.dtype, n * bias.strides[0]), bias.strides[0], bias.dtype};
}

lin::Epilogue epilogue(const LinearOptions& options, const TensorView& first, std::int64_t n,
                       const TensorView& residual, const TensorView& out) {
  lin::Epilogue e;
  e.m = first.shape[0], e.n = n;
  e.dtype = first.dtype;
  e.activation = options.activation;
  e.gated = options.gated;
  e.residual = matrix(residual);
  e.out = matrix(out);
  return e;
}

// All but out; finds N.
Status check_inputs(const LinearInputs& in, const LinearOptions& options, std::int64_t* n) {
  STROP_RETURN_IF_ERROR(check_options(options));
  const Named x = {"x", in.x};
  STROP_RETURN_IF_ERROR(check_first(x, "K"));
  const bool apart = in.up_weight.data != nullptr;
  if ((apart || in.up_bias.data != nullptr) && !options.gated) [[unlikely]]
    return value_error(apart ? "up_weight" : "up_bias", "none, as nothing is gated", "a tensor");
  if (in.up_bias.data != nullptr && !apart) [[unlikely]]
    return value_error("up_bias", "none, as there is no up_weight", "a tensor");
  const std::int64_t halves = options.gated && !apart ? 2 : 1, rows = in.weight.shape[0];
  if (in.weight.rank != 2 || rows < halves || rows % halves != 0) [[unlikely]]
    return value_error("weight", halves == 2 ? "shape (2N, K) with N at least 1, as it is gated" : "shape (N, K)",
                       shape_text(in.weight));
  *n = rows / halves;
  STROP_RETURN_IF_ERROR(check_like({"weight", in.weight}, x, rows, in.x.shape[1]));
  STROP_RETURN_IF_ERROR(check_bias({"bias", in.bias}, x, rows));
  if (apart) {
    STROP_RETURN_IF_ERROR(check_like({"up_weight", in.up_weight}, x, rows, in.x.shape[1]));
    STROP_RETURN_IF_ERROR(check_bias({"up_bias", in.up_bias}, x, rows));
  }
  if (in.residual.data != nullptr) STROP_RETURN_IF_ERROR(check_like({"residual", in.residual}, x, in.x.shape[0], *n));
  return {};
}

std::size_t workspace_bytes(const LinearInputs& in, const LinearOptions& options, std::int64_t n) {
  if (in.x.device != DeviceType::kCuda || in.x.shape[0] == 0) return 0;
  return lin::workspace_bytes(in.x.shape[0], n, in.x.shape[1], options.gated);
}

}  // namespace

std::size_t linear_workspace_bytes(const LinearInputs& inputs, const LinearOptions& options) {
  std::int64_t n;
  return check_inputs(inputs, options, &n).ok() ? workspace_bytes(inputs, options, n) : 0;
}

Status linear(const LinearInputs& in, const LinearOptions& options, const TensorView& out,
              const LinearExecution& execution) {
  std::int64_t n;
  STROP_RETURN_IF_ERROR(check_inputs(in, options, &n));
  STROP_RETURN_IF_ERROR(check_out(
      out, {"x", in.x}, n, {{"residual", in.residual}},
      {{"x", in.x}, {"weight", in.weight}, {"bias", in.bias}, {"up_weight", in.up_weight}, {"up_bias", in.up_bias}}));
  if (in.x.shape[0] == 0) return {};

  lin::Problem p;
  p.epilogue = epilogue(options, in.x, n, in.residual, out);
  p.k = in.x.shape[1];
  p.x = matrix(in.x);
  p.weight[0] = matrix(in.weight);
  p.epilogue.bias[0] = vector(in.bias);
  if (in.up_weight.data != nullptr) {
    p.weight[1] = matrix(in.up_weight);
    p.epilogue.bias[1] = vector(in.up_bias);
  } else if (options.gated) {
    p.weight[1] = p.weight[0];
    p.weight[1].data = moved(in.weight.data, in.weight.dtype, n * in.weight.strides[0]);
    p.epilogue.bias[1] = second_half(in.bias, n);
  }
#if STROP_WITH_CUDA
  if (in.x.device == DeviceType::kCuda) {
    const std::size_t bytes = workspace_bytes(in, options, n);
    if (bytes > 0) STROP_RETURN_IF_ERROR(check_workspace(execution.workspace, "linear_workspace_bytes"));
    p.workspace = execution.workspace;
    STROP_EMULATOR_NAMES({"x", in.x}, {"weight", in.weight}, {"bias", in.bias}, {"up_weight", in.up_weight},
                         {"up_bias", in.up_bias}, named_input("residual", in.residual, out),
                         named_output("out", out, out.data == in.residual.data),
                         named_workspace(execution.workspace, bytes));
    return lin::run_cuda(p, execution.stream);
  }
#else
  static_cast<void>(execution);
#endif
  return lin::run_cpu(p);
}

Status linear_epilogue(const LinearEpilogueInputs& in, const LinearOptions& options, const TensorView& out,
                       void* stream) {
  STROP_RETURN_IF_ERROR(check_options(options));
  const Named y = {"y", in.y};
  STROP_RETURN_IF_ERROR(check_first(y, options.gated ? "2N" : "N"));
  if (options.gated && in.y.shape[1] % 2 != 0) [[unlikely]]
    return value_error("y", "shape (M, 2N), as it is gated", shape_text(in.y));
  const std::int64_t m = in.y.shape[0], n = in.y.shape[1] / (options.gated ? 2 : 1);
  STROP_RETURN_IF_ERROR(check_bias({"bias", in.bias}, y, in.y.shape[1]));
  if (in.residual.data != nullptr) STROP_RETURN_IF_ERROR(check_like({"residual", in.residual}, y, m, n));
  STROP_RETURN_IF_ERROR(options.gated
                            ? check_out(out, y, n, {{"residual", in.residual}}, {{"y", in.y}, {"bias", in.bias}})
                            : check_out(out, y, n, {{"y", in.y}, {"residual", in.residual}}, {{"bias", in.bias}}));
  if (m == 0) return {};

  lin::Epilogue e = epilogue(options, in.y, n, in.residual, out);
  e.bias[0] = vector(in.bias);
  lin::Matrix halves[2] = {matrix(in.y), {}};
  if (options.gated) {
    e.bias[1] = second_half(in.bias, n);
    halves[1] = halves[0];
    halves[1].data = moved(in.y.data, in.y.dtype, n * in.y.strides[1]);
  }
#if STROP_WITH_CUDA
  if (in.y.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES(named_input("y", in.y, out), {"bias", in.bias},
                         named_input("residual", in.residual.data == in.y.data ? TensorView{} : in.residual, out),
                         named_output("out", out, out.data == in.y.data || out.data == in.residual.data));
    return lin::run_epilogue_cuda(e, halves, stream);
  }
#else
  static_cast<void>(stream);
#endif
  return lin::run_epilogue_cpu(e, halves);
}

}  // namespace strop
