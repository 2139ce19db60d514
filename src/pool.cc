// The public API of mean pooling: checks views, fills in a Problem, runs a backend.
#include "strop/pool.h"

#include <cmath>
#include <cstdint>
#include <string>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/pool/mean_pool.h"

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

// (B, L, n), or (T, n).
Status check_x(const TensorView& x, int rank, const char* shape) {
  STROP_RETURN_IF_ERROR(check_float("x", x.dtype));
  if (x.rank != rank) [[unlikely]]
    return value_error("x", std::string("shape ") + shape, shape_text(x));
  if (x.shape[rank - 1] <= 0) [[unlikely]]
    return value_error("x", "tokens of at least 1 element", "shape " + shape_text(x));
  STROP_RETURN_IF_ERROR(check_device("x", x, STROP_WITH_CUDA != 0));
  return check_data("x", x, x.numel() == 0);
}

Status check_mask(const TensorView& mask, const TensorView& x) {
  if (mask.dtype == DType::kOther) [[unlikely]]
    return type_error("mask", "bool, an integer or a float dtype", dtype_name(mask.dtype));
  if (mask.rank != 2 || mask.shape[0] != x.shape[0] || mask.shape[1] != x.shape[1]) [[unlikely]]
    return value_error("mask", "shape " + tuple_text(x.shape, 2) + " of x's first dimensions", shape_text(mask));
  STROP_RETURN_IF_ERROR(check_same_device("mask", mask, x, "x"));
  return check_data("mask", mask, mask.numel() == 0);
}

Status check_cu(const TensorView& cu, const TensorView& x) {
  if (cu.dtype != DType::kInt32 && cu.dtype != DType::kInt64) [[unlikely]]
    return type_error("cu", "int32 or int64", dtype_name(cu.dtype));
  if (cu.rank != 1 || cu.shape[0] < 1) [[unlikely]]
    return value_error("cu", "shape (B + 1,)", shape_text(cu));
  STROP_RETURN_IF_ERROR(check_same_device("cu", cu, x, "x"));
  return check_data("cu", cu, false);
}

Status check_least(double least) {
  if (!(least >= 0) || !std::isfinite(static_cast<float>(least))) [[unlikely]]
    return value_error("least", "a finite number >= 0", std::to_string(least));
  return {};
}

Status check_out(const TensorView& out, const TensorView& x, std::int64_t sequences, const char* other_name,
                 const TensorView& other) {
  const std::int64_t shape[] = {sequences, x.shape[x.rank - 1]};
  if (out.dtype != x.dtype) [[unlikely]]
    return type_error("out", std::string(dtype_name(x.dtype)) + " like x", dtype_name(out.dtype));
  if (out.rank != 2 || out.shape[0] != shape[0] || out.shape[1] != shape[1]) [[unlikely]]
    return value_error("out", "shape " + tuple_text(shape, 2), shape_text(out));
  STROP_RETURN_IF_ERROR(check_same_device("out", out, x, "x"));
  STROP_RETURN_IF_ERROR(check_data("out", out, sequences == 0));
  STROP_RETURN_IF_ERROR(check_elements_apart("out", out));
  const char* const shared = share_memory(out, x) ? "x" : share_memory(out, other) ? other_name : nullptr;
  if (shared != nullptr) [[unlikely]]
    return value_error("out", "memory of its own", std::string("memory shared with ") + shared);
  return {};
}

// In host memory: that each sequence begins where the one before it ends or earlier than it ends itself, within x.
Status check_ends(const Integers& cu, std::int64_t sequences, std::int64_t tokens) {
  std::int64_t before = 0;
  for (std::int64_t i = 0; i <= sequences; ++i) {
    const std::int64_t token = cu.at(i);
    if (token < before || token > tokens) [[unlikely]] {
      return value_error("cu", "numbers that do not decrease, from 0 to " + std::to_string(tokens) + ", the rows of x",
                         std::to_string(token) + " at " + std::to_string(i));
    }
    before = token;
  }
  return {};
}

// What both forms have in common of a Problem.
pool::Problem problem(const TensorView& x, double least, const TensorView& out) {
  pool::Problem p;
  p.sequences = out.shape[0];
  p.n = out.shape[1];
  p.dtype = x.dtype;
  p.x = x.data;
  p.stride_token = x.strides[x.rank - 2];
  p.stride = x.strides[x.rank - 1];
  p.length = x.shape[x.rank - 2];
  p.least = static_cast<float>(least);
  p.out = out.data;
  p.out_stride_row = out.strides[0];
  p.out_stride = out.strides[1];
  return p;
}

}  // namespace

Status mean_pool(const TensorView& x, const TensorView& mask, double least, const TensorView& out, void* stream) {
  STROP_RETURN_IF_ERROR(check_x(x, 3, "(B, L, n)"));
  STROP_RETURN_IF_ERROR(check_mask(mask, x));
  STROP_RETURN_IF_ERROR(check_least(least));
  STROP_RETURN_IF_ERROR(check_out(out, x, x.shape[0], "mask", mask));
  if (x.shape[0] == 0) return {};
  pool::Problem p = problem(x, least, out);
  p.stride_sequence = x.strides[0];
  // Null data of an empty mask would mean weights of 1: there are no tokens either way.
  p.mask = {mask.data, mask.strides[0], mask.strides[1], mask.dtype};
#if STROP_WITH_CUDA
  if (x.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"x", x}, {"mask", mask}, {"out", out, emu::Access::kOutput});
    return pool::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  return pool::run_cpu(p);
}

Status mean_pool_packed(const TensorView& x, const TensorView& cu, double least, const TensorView& out, void* stream) {
  STROP_RETURN_IF_ERROR(check_x(x, 2, "(T, n)"));
  STROP_RETURN_IF_ERROR(check_cu(cu, x));
  STROP_RETURN_IF_ERROR(check_least(least));
  STROP_RETURN_IF_ERROR(check_out(out, x, cu.shape[0] - 1, "cu", cu));
  if (cu.shape[0] == 1) return {};
  pool::Problem p = problem(x, least, out);
  p.cu = integers(cu);
#if STROP_WITH_CUDA
  if (x.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"x", x}, {"cu", cu}, {"out", out, emu::Access::kOutput});
    return pool::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  STROP_RETURN_IF_ERROR(check_ends(p.cu, p.sequences, p.length));
  return pool::run_cpu(p);
}

}  // namespace strop
