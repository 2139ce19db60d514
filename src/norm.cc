// The public API of normalisation: checks views, fills in a Problem, runs a backend.
#include "strop/norm.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "base/checks.h"
#include "kernels/norm/norm.h"

#ifndef STROP_WITH_CUDA
#define STROP_WITH_CUDA 0
#endif
#if STROP_EMULATED
#include "strop/emu.h"
#endif

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

// residual and the outputs: what is "like" x.
Status check_matrix(const char* name, const TensorView& view, const TensorView& x) {
  if (view.dtype != x.dtype) [[unlikely]]
    return type_error(name, std::string(dtype_name(x.dtype)) + " like x", dtype_name(view.dtype));
  if (!same_shape(view, x, 2)) [[unlikely]]
    return value_error(name, "shape " + tuple_text(x.shape, 2) + " like x", shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, x, "x"));
  return check_data(name, view, x.shape[0] == 0);
}

Status check_parameter(const char* name, const TensorView& view, const TensorView& x) {
  if (view.data == nullptr) return {};
  STROP_RETURN_IF_ERROR(check_float(name, view.dtype));
  if (view.rank != 1 || view.shape[0] != x.shape[1]) [[unlikely]]
    return value_error(name, "shape " + tuple_text(x.shape + 1, 1) + " of x's last dimension", shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, x, "x"));
  return check_data(name, view, false);
}

struct Named {
  const char* name;
  const TensorView& view;
};

// `source` is the one input whose memory the output may have.
Status check_output(const Named& output, const Named& source, const TensorView& x,
                    std::initializer_list<Named> others) {
  STROP_RETURN_IF_ERROR(check_matrix(output.name, output.view, x));
  if (!elements_apart(output.view)) [[unlikely]] {
    return value_error(output.name, "elements that share no memory",
                       "shape " + shape_text(output.view) + " with strides " + strides_text(output.view));
  }
  const bool in_place = output.view.data == source.view.data && same_strides(output.view, source.view);
  if (!in_place && share_memory(output.view, source.view)) [[unlikely]] {
    return value_error(output.name, std::string("memory of its own or exactly that of ") + source.name,
                       std::string("memory shared with ") + source.name + " in another layout");
  }
  for (const Named& other : others) {
    if (share_memory(output.view, other.view)) [[unlikely]]
      return value_error(output.name, "memory of its own", std::string("memory shared with ") + other.name);
  }
  return {};
}

norm::Matrix matrix(const TensorView& view) {
  return view.data == nullptr ? norm::Matrix{} : norm::Matrix{view.data, view.strides[0], view.strides[1]};
}
norm::Parameter parameter(const TensorView& view) {
  return view.data == nullptr ? norm::Parameter{} : norm::Parameter{view.data, view.strides[0], view.dtype};
}

#if STROP_EMULATED && STROP_WITH_CUDA
// An output that is an input's own memory is named once, as both.
emu::NamedView named_input(const char* name, const TensorView& view, const TensorView& output) {
  return {name, view, view.data != nullptr && view.data == output.data ? emu::Access::kInOut : emu::Access::kInput};
}
emu::NamedView named_output(const char* name, const TensorView& view, const TensorView& input) {
  return {name, view.data == input.data ? TensorView{} : view, emu::Access::kOutput};
}
#endif

Status run(norm::Kind kind, const NormInputs& in, double eps, const NormOutputs& to, void* stream) {
  const TensorView& x = in.x;
  STROP_RETURN_IF_ERROR(check_float("x", x.dtype));
  if (x.rank != 2) [[unlikely]]
    return value_error("x", "2 dimensions (R, n)",
                       x.data == nullptr && x.rank == 0 ? "none" : "shape " + shape_text(x));
  if (x.shape[1] <= 0) [[unlikely]]
    return value_error("x", "rows of at least 1 element", "shape " + shape_text(x));
  STROP_RETURN_IF_ERROR(check_device("x", x, STROP_WITH_CUDA != 0));
  STROP_RETURN_IF_ERROR(check_data("x", x, x.shape[0] == 0));
  const bool with_residual = in.residual.data != nullptr, with_sum = to.residual_out.data != nullptr;
  if (with_residual) STROP_RETURN_IF_ERROR(check_matrix("residual", in.residual, x));
  STROP_RETURN_IF_ERROR(check_parameter("weight", in.weight, x));
  if (kind == norm::Kind::kRms && in.bias.data != nullptr) [[unlikely]]
    return value_error("bias", "none, as rms_norm adds none", "a tensor");
  STROP_RETURN_IF_ERROR(check_parameter("bias", in.bias, x));
  if (!(eps >= 0) || !std::isfinite(static_cast<float>(eps))) [[unlikely]]
    return value_error("eps", "a finite number >= 0", std::to_string(eps));

  STROP_RETURN_IF_ERROR(check_output({"out", to.out}, {"x", x}, x,
                                     {{"residual", in.residual}, {"weight", in.weight}, {"bias", in.bias}}));
  if (with_sum) {
    if (!with_residual && x.shape[0] != 0) [[unlikely]]
      return value_error("residual_out", "none, as there is no residual", "a tensor");
    STROP_RETURN_IF_ERROR(check_output({"residual_out", to.residual_out}, {"residual", in.residual}, x,
                                       {{"x", x}, {"weight", in.weight}, {"bias", in.bias}, {"out", to.out}}));
  }
  if (x.shape[0] == 0) return {};

  norm::Problem p;
  p.kind = kind;
  p.rows = x.shape[0];
  p.n = x.shape[1];
  p.dtype = x.dtype;
  p.x = matrix(x);
  p.residual = matrix(in.residual);
  p.weight = parameter(in.weight);
  p.bias = parameter(in.bias);
  p.out = matrix(to.out);
  p.residual_out = matrix(to.residual_out);
  p.eps = static_cast<float>(eps);
#if STROP_WITH_CUDA
  if (x.device == DeviceType::kCuda) {
#if STROP_EMULATED
    const emu::Names names({named_input("x", x, to.out),
                            named_input("residual", in.residual, to.residual_out),
                            {"weight", in.weight},
                            {"bias", in.bias},
                            named_output("out", to.out, x),
                            named_output("residual_out", to.residual_out, in.residual)});
#endif
    return norm::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  return norm::run_cpu(p);
}

}  // namespace

Status layer_norm(const NormInputs& inputs, double eps, const NormOutputs& outputs, void* stream) {
  return run(norm::Kind::kLayer, inputs, eps, outputs, stream);
}

Status rms_norm(const NormInputs& inputs, double eps, const NormOutputs& outputs, void* stream) {
  return run(norm::Kind::kRms, inputs, eps, outputs, stream);
}

}  // namespace strop
