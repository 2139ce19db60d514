// The public API of normalisation: checks views, fills in a Problem, runs a backend.
#include "strop/norm.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/norm/norm.h"

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
  STROP_RETURN_IF_ERROR(check_elements_apart(output.name, output.view));
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

Status check_eps(double eps) {
  if (!(eps >= 0) || !std::isfinite(static_cast<float>(eps))) [[unlikely]]
    return value_error("eps", "a finite number >= 0", std::to_string(eps));
  return {};
}

// What all functions have in common of a Problem: its terms are to be filled in.
norm::Problem problem(norm::Kind kind, std::int64_t rows, const TensorView& like, const TensorView& weight,
                      const TensorView& bias, double eps, const NormOutputs& to) {
  norm::Problem p;
  p.kind = kind;
  p.rows = rows;
  p.n = like.shape[1];
  p.dtype = like.dtype;
  p.weight = parameter(weight);
  p.bias = parameter(bias);
  p.out = matrix(to.out);
  p.residual_out = matrix(to.residual_out);
  p.eps = static_cast<float>(eps);
  return p;
}

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
  STROP_RETURN_IF_ERROR(check_eps(eps));

  STROP_RETURN_IF_ERROR(check_output({"out", to.out}, {"x", x}, x,
                                     {{"residual", in.residual}, {"weight", in.weight}, {"bias", in.bias}}));
  if (with_sum) {
    if (!with_residual && x.shape[0] != 0) [[unlikely]]
      return value_error("residual_out", "none, as there is no residual", "a tensor");
    STROP_RETURN_IF_ERROR(check_output({"residual_out", to.residual_out}, {"residual", in.residual}, x,
                                       {{"x", x}, {"weight", in.weight}, {"bias", in.bias}, {"out", to.out}}));
  }
  if (x.shape[0] == 0) return {};

  norm::Problem p = problem(kind, x.shape[0], x, in.weight, in.bias, eps, to);
  p.terms[0] = {matrix(x), {}};
  p.terms[1] = {matrix(in.residual), {}};
#if STROP_WITH_CUDA
  if (x.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES(named_input("x", x, to.out), named_input("residual", in.residual, to.residual_out),
                         {"weight", in.weight}, {"bias", in.bias}, named_output("out", to.out, to.out.data == x.data),
                         named_output("residual_out", to.residual_out, to.residual_out.data == in.residual.data));
    return norm::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  return norm::run_cpu(p);
}

// ---- Embeddings -----------------------------------------------------------------------------------------------------

constexpr int kMaxTables = EmbeddingInputs::kMaxTables;
static_assert(kMaxTables == norm::kMaxTerms);
constexpr const char* kTableNames[] = {"tables[0]", "tables[1]", "tables[2]"};
constexpr const char* kIdNames[] = {"ids[0]", "ids[1]", "ids[2]"};

Status check_table(int k, const TensorView& table, const TensorView& first) {
  const char* const name = kTableNames[k];
  STROP_RETURN_IF_ERROR(check_float(name, table.dtype));
  if (table.rank != 2 || table.shape[1] <= 0) [[unlikely]]
    return value_error(name, "shape (V, n) with n at least 1", shape_text(table));
  STROP_RETURN_IF_ERROR(check_device(name, table, STROP_WITH_CUDA != 0));
  if (table.dtype != first.dtype) [[unlikely]]
    return type_error(name, std::string(dtype_name(first.dtype)) + " like tables[0]", dtype_name(table.dtype));
  if (table.shape[1] != first.shape[1]) [[unlikely]]
    return value_error(name, "rows of " + std::to_string(first.shape[1]) + " elements like tables[0]",
                       "shape " + shape_text(table));
  STROP_RETURN_IF_ERROR(check_same_device(name, table, first, "tables[0]"));
  return check_data(name, table, table.shape[0] == 0);
}

Status check_ids(int k, const TensorView& ids, const TensorView& first, const TensorView& table) {
  const char* const name = kIdNames[k];
  if (ids.dtype != DType::kInt32 && ids.dtype != DType::kInt64) [[unlikely]]
    return type_error(name, "int32 or int64", dtype_name(ids.dtype));
  if (ids.rank != 1) [[unlikely]]
    return value_error(name, "shape (R,)", shape_text(ids));
  if (ids.shape[0] != first.shape[0]) [[unlikely]]
    return value_error(name, "shape " + shape_text(first) + " like ids[0]", shape_text(ids));
  STROP_RETURN_IF_ERROR(check_same_device(name, ids, table, "tables[0]"));
  return check_data(name, ids, ids.shape[0] == 0);
}

// `like` has the output's shape and the tables' dtype and device.
Status check_fresh(const Named& output, const TensorView& like, const EmbeddingInputs& in, const TensorView& other) {
  STROP_RETURN_IF_ERROR(check_matrix(output.name, output.view, like));
  STROP_RETURN_IF_ERROR(check_elements_apart(output.name, output.view));
  const auto shared_with = [&]() -> const char* {
    for (int k = 0; k < kMaxTables; ++k) {
      if (share_memory(output.view, in.tables[k])) return kTableNames[k];
      if (share_memory(output.view, in.ids[k])) return kIdNames[k];
    }
    return share_memory(output.view, in.weight) ? "weight"
           : share_memory(output.view, in.bias) ? "bias"
           : share_memory(output.view, other)   ? "out"
                                                : nullptr;
  };
  if (const char* const name = shared_with(); name != nullptr) [[unlikely]]
    return value_error(output.name, "memory of its own", std::string("memory shared with ") + name);
  return {};
}

}  // namespace

Status layer_norm(const NormInputs& inputs, double eps, const NormOutputs& outputs, void* stream) {
  return run(norm::Kind::kLayer, inputs, eps, outputs, stream);
}

Status rms_norm(const NormInputs& inputs, double eps, const NormOutputs& outputs, void* stream) {
  return run(norm::Kind::kRms, inputs, eps, outputs, stream);
}

Status embedding_norm(const EmbeddingInputs& in, double eps, const NormOutputs& to, void* stream) {
  const TensorView& first = in.tables[0];
  int tables = 1;
  while (tables < kMaxTables && in.tables[tables].rank != 0) ++tables;
  for (int k = 0; k < tables; ++k) {
    STROP_RETURN_IF_ERROR(check_table(k, in.tables[k], first));
    STROP_RETURN_IF_ERROR(check_ids(k, in.ids[k], in.ids[0], first));
  }
  for (int k = tables; k < kMaxTables; ++k) {
    if (in.tables[k].rank != 0) [[unlikely]]
      return value_error(kTableNames[k], "none, as " + std::string(kTableNames[tables]) + " is none", "a tensor");
    if (in.ids[k].rank != 0) [[unlikely]]
      return value_error(kIdNames[k], "none, as " + std::string(kTableNames[k]) + " is none", "a tensor");
  }
  STROP_RETURN_IF_ERROR(check_parameter("weight", in.weight, first));
  STROP_RETURN_IF_ERROR(check_parameter("bias", in.bias, first));
  STROP_RETURN_IF_ERROR(check_eps(eps));
  TensorView like = first;  // its data is not looked at
  like.shape[0] = in.ids[0].shape[0];
  STROP_RETURN_IF_ERROR(check_fresh({"out", to.out}, like, in, {}));
  if (to.residual_out.data != nullptr)
    STROP_RETURN_IF_ERROR(check_fresh({"residual_out", to.residual_out}, like, in, to.out));
  if (like.shape[0] == 0) return {};

  norm::Problem p = problem(norm::Kind::kLayer, like.shape[0], like, in.weight, in.bias, eps, to);
  for (int k = 0; k < tables; ++k) {
    const TensorView &table = in.tables[k], &ids = in.ids[k];
    p.terms[k] = {matrix(table), {integers(ids), table.shape[0]}};
  }
#if STROP_WITH_CUDA
  if (first.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"tables[0]", in.tables[0]}, {"tables[1]", in.tables[1]}, {"tables[2]", in.tables[2]},
                         {"ids[0]", in.ids[0]}, {"ids[1]", in.ids[1]}, {"ids[2]", in.ids[2]}, {"weight", in.weight},
                         {"bias", in.bias}, {"out", to.out, emu::Access::kOutput},
                         {"residual_out", to.residual_out, emu::Access::kOutput});
    return norm::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  for (int k = 0; k < tables; ++k) {
    const norm::Index& index = p.terms[k].index;
    STROP_RETURN_IF_ERROR(check_in_range(kIdNames[k], "ids", index.numbers, p.rows, index.rows, kTableNames[k]));
  }
  return norm::run_cpu(p);
}

}  // namespace strop
