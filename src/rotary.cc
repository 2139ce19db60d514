// The public API of rotary embeddings: checks views, fills in a Problem, runs a backend.
#include "strop/rotary.h"

#include <cstdint>
#include <string>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/rotary/rotary.h"

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

Status check_x(const TensorView& x) {
  STROP_RETURN_IF_ERROR(check_float("x", x.dtype));
  if (x.rank != 3) [[unlikely]]
    return value_error("x", "shape (R, H, d)", shape_text(x));
  if (x.shape[1] <= 0 || x.shape[2] < 2) [[unlikely]]
    return value_error("x", "at least 1 head of at least 2 elements", "shape " + shape_text(x));
  STROP_RETURN_IF_ERROR(check_device("x", x, STROP_WITH_CUDA != 0));
  return check_data("x", x, x.shape[0] == 0);
}

// r from the tables' columns.
Status check_table(const char* name, const TensorView& table, const RotaryInputs& in, std::int64_t r) {
  STROP_RETURN_IF_ERROR(check_float(name, table.dtype));
  const std::int64_t columns = in.rotary_dim == 0 ? r : r / 2;
  if (table.rank != 2 || table.shape[1] != columns) [[unlikely]] {
    return value_error(name, "shape (P, " + std::to_string(columns) + ")", shape_text(table));
  }
  if (table.shape[0] != in.cos.shape[0]) [[unlikely]]
    return value_error(name, "shape " + shape_text(in.cos) + " like cos", shape_text(table));
  STROP_RETURN_IF_ERROR(check_same_device(name, table, in.x, "x"));
  return check_data(name, table, table.shape[0] == 0);
}

Status check_positions(const RotaryInputs& in) {
  const TensorView& view = in.positions;
  const std::int64_t tokens = in.x.shape[0];
  if (view.data == nullptr && view.rank == 0) {
    const std::int64_t rows = in.cos.shape[0];
    if (tokens != rows && (rows == 0 || tokens % rows != 0)) [[unlikely]] {
      return value_error("cos", "rows that divide x's " + std::to_string(tokens) + ", as there are no positions",
                         "shape " + shape_text(in.cos));
    }
    return {};
  }
  if (view.dtype != DType::kInt32 && view.dtype != DType::kInt64) [[unlikely]]
    return type_error("positions", "int32 or int64", dtype_name(view.dtype));
  if (view.rank != 1 || view.shape[0] != tokens) [[unlikely]]
    return value_error("positions", "shape " + tuple_text(in.x.shape, 1) + " of x's first dimension", shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device("positions", view, in.x, "x"));
  return check_data("positions", view, tokens == 0);
}

Status check_out(const RotaryInputs& in, const TensorView& out) {
  if (out.dtype != in.x.dtype) [[unlikely]]
    return type_error("out", std::string(dtype_name(in.x.dtype)) + " like x", dtype_name(out.dtype));
  if (!same_shape(out, in.x, 3)) [[unlikely]]
    return value_error("out", "shape " + tuple_text(in.x.shape, 3) + " like x", shape_text(out));
  STROP_RETURN_IF_ERROR(check_same_device("out", out, in.x, "x"));
  STROP_RETURN_IF_ERROR(check_data("out", out, out.shape[0] == 0));
  STROP_RETURN_IF_ERROR(check_elements_apart("out", out));
  if (!(out.data == in.x.data && same_strides(out, in.x)) && share_memory(out, in.x)) [[unlikely]] {
    return value_error("out", "memory of its own or exactly that of x", "memory shared with x in another layout");
  }
  const char* const shared = share_memory(out, in.cos)         ? "cos"
                             : share_memory(out, in.sin)       ? "sin"
                             : share_memory(out, in.positions) ? "positions"
                                                               : nullptr;
  if (shared != nullptr) [[unlikely]]
    return value_error("out", "memory of its own", std::string("memory shared with ") + shared);
  return {};
}

rotary::Heads heads(const TensorView& view) { return {view.data, view.strides[0], view.strides[1], view.strides[2]}; }
rotary::Table table(const TensorView& view) { return {view.data, view.strides[0], view.strides[1], view.dtype}; }

}  // namespace

Status rotary_embedding(const RotaryInputs& in, const TensorView& out, void* stream) {
  STROP_RETURN_IF_ERROR(check_x(in.x));
  const bool shared_columns = in.rotary_dim != 0;
  const std::int64_t r = shared_columns ? in.rotary_dim : in.cos.rank == 2 ? in.cos.shape[1] : 0;
  if (!shared_columns && in.cos.rank != 2) [[unlikely]]
    return value_error("cos", "shape (P, r)", shape_text(in.cos));
  if (r < 2 || r % 2 != 0 || r > in.x.shape[2]) [[unlikely]] {
    return value_error(shared_columns ? "rotary_dim" : "cos",
                       std::string(shared_columns ? "" : "r columns, r ") + "an even number from 2 to " +
                           std::to_string(in.x.shape[2]) + ", the elements of a head",
                       std::to_string(r));
  }
  STROP_RETURN_IF_ERROR(check_table("cos", in.cos, in, r));
  STROP_RETURN_IF_ERROR(check_table("sin", in.sin, in, r));
  STROP_RETURN_IF_ERROR(check_positions(in));
  STROP_RETURN_IF_ERROR(check_out(in, out));
  if (in.x.shape[0] == 0) return {};

  rotary::Problem p;
  p.tokens = in.x.shape[0];
  p.heads = in.x.shape[1];
  p.d = in.x.shape[2];
  p.r = r;
  p.neighbours = in.pairs == RotaryPairs::kNeighbours;
  p.shared_columns = shared_columns;
  p.dtype = in.x.dtype;
  p.x = heads(in.x);
  p.out = heads(out);
  p.cos = table(in.cos);
  p.sin = table(in.sin);
  p.rows = in.cos.shape[0];
  p.positions = integers(in.positions);
#if STROP_WITH_CUDA
  if (in.x.device == DeviceType::kCuda) {
    [[maybe_unused]] const bool in_place = out.data == in.x.data;
    STROP_EMULATOR_NAMES({"x", in.x, in_place ? emu::Access::kInOut : emu::Access::kInput}, {"cos", in.cos},
                         {"sin", in.sin}, {"positions", in.positions},
                         {"out", in_place ? TensorView{} : out, emu::Access::kOutput});
    return rotary::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  if (p.positions.data != nullptr)
    STROP_RETURN_IF_ERROR(check_in_range("positions", "numbers", p.positions, p.tokens, p.rows, "cos"));
  return rotary::run_cpu(p);
}

}  // namespace strop
