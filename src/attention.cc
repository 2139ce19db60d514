// The public API of attention: checks views, fills in a Problem, runs a backend.
#include "strop/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/attention/attention.h"

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

bool is_empty(const TensorView& view) {
  return std::any_of(view.shape, view.shape + view.rank, [](std::int64_t n) { return n == 0; });
}

// k, v and out: what is "like" q.
Status check_like_q(const char* name, const TensorView& view, const TensorView& q) {
  if (view.dtype != q.dtype) [[unlikely]]
    return type_error(name, std::string(dtype_name(q.dtype)) + " like q", dtype_name(view.dtype));
  if (view.rank != q.rank) [[unlikely]]
    return value_error(name, std::to_string(q.rank) + " dimensions like q", shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, q, "q"));
  return check_data(name, view, is_empty(view));
}

Status check_integers(const char* name, const TensorView& view, const TensorView& q, std::int64_t n) {
  if (view.dtype != DType::kInt32 && view.dtype != DType::kInt64) [[unlikely]]
    return type_error(name, "int32 or int64", dtype_name(view.dtype));
  if (view.rank != 1 || view.shape[0] != n) [[unlikely]]
    return value_error(name, "shape (" + std::to_string(n) + ",), from the batch", shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, q, "q"));
  return check_data(name, view, n == 0);
}

Status check_mask(const char* name, const TensorView& view, const TensorView& q, const std::int64_t (&whole)[4]) {
  bool fits = view.rank >= 0 && view.rank <= 4;
  for (int d = 0; fits && d < view.rank; ++d) {
    const std::int64_t size = view.shape[d];
    fits = size == 1 || size == whole[4 - view.rank + d];
  }
  if (!fits) [[unlikely]]
    return value_error(name, "a shape that broadcasts to " + tuple_text(whole, 4), shape_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(name, view, q, "q"));
  return check_data(name, view, false);
}

// A stride that nothing steps by is 0, so that it does not stand in the way of vectors.
std::int64_t stride(const TensorView& view, int d) { return d < 0 || view.shape[d] == 1 ? 0 : view.strides[d]; }
attn::Tensor tensor(const TensorView& view) {
  const bool packed = view.rank == 3;
  return packed ? attn::Tensor{view.data, 0, stride(view, 1), stride(view, 0), view.strides[2]}
                : attn::Tensor{view.data, stride(view, 0), stride(view, 1), stride(view, 2), view.strides[3]};
}
attn::Mask mask(const TensorView& view) {
  if (view.data == nullptr) return {};
  const int r = view.rank;
  return {view.data, stride(view, r - 4), stride(view, r - 3), stride(view, r - 2), stride(view, r - 1), view.dtype};
}

// Sizes alone, of views that may be wrong.
attn::Problem sizes(const AttentionInputs& in) {
  const bool packed = in.q.rank == 3;
  attn::Problem p;
  p.packed = packed;
  p.batch = packed ? in.cu_q.shape[0] - 1 : in.q.shape[0];
  p.heads = in.q.shape[1];
  p.kv_heads = in.k.shape[1];
  p.max_q = packed ? in.max_q : in.q.shape[2];
  p.max_k = packed ? in.max_k : in.k.shape[2];
  p.d = static_cast<int>(in.q.shape[in.q.rank - 1]);
  p.dtype = in.q.dtype;
  p.total_q = packed ? in.q.shape[0] : 0;
  return p;
}

Status check_inputs(const AttentionInputs& in) {
  const TensorView &q = in.q, &k = in.k, &v = in.v;
  STROP_RETURN_IF_ERROR(check_float("q", q.dtype));
  if (q.rank != 3 && q.rank != 4) [[unlikely]]
    return value_error("q", "4 dimensions (B, H, Lq, D) or, packed, 3 (Tq, H, D)", shape_text(q));
  STROP_RETURN_IF_ERROR(check_device("q", q, STROP_WITH_CUDA != 0));
  STROP_RETURN_IF_ERROR(check_data("q", q, is_empty(q)));
  STROP_RETURN_IF_ERROR(check_like_q("k", k, q));
  STROP_RETURN_IF_ERROR(check_like_q("v", v, q));
  const int last = q.rank - 1;
  const std::int64_t d = q.shape[last];
  if (d < 8 || d > 256 || d % 8 != 0) [[unlikely]]
    return value_error("q", "a head size that is a multiple of 8, from 8 to 256", std::to_string(d));
  if (k.shape[last] != d || (q.rank == 4 && k.shape[0] != q.shape[0])) [[unlikely]]
    return value_error("k", "the batch and the head size of q, of shape " + shape_text(q), shape_text(k));
  if (!same_shape(v, k, k.rank)) [[unlikely]]
    return value_error("v", "shape " + shape_text(k) + " like k", shape_text(v));
  if (k.shape[1] < 1 || q.shape[1] < 1 || q.shape[1] % k.shape[1] != 0) [[unlikely]]
    return value_error("q", "heads that are a multiple of k's " + std::to_string(k.shape[1]),
                       std::to_string(q.shape[1]));
  if (q.rank == 3) {
    if (in.cu_q.rank != 1 || in.cu_q.shape[0] < 1) [[unlikely]]
      return value_error("cu_q", "shape (B + 1,), as q is packed", shape_text(in.cu_q));
    STROP_RETURN_IF_ERROR(check_integers("cu_q", in.cu_q, q, in.cu_q.shape[0]));
    STROP_RETURN_IF_ERROR(check_integers("cu_k", in.cu_k, q, in.cu_q.shape[0]));
    if (in.max_q < 0 || in.max_k < 0) [[unlikely]]
      return value_error("max_q and max_k", "lengths", std::to_string(std::min(in.max_q, in.max_k)));
  } else if (in.cu_q.data != nullptr || in.cu_k.data != nullptr) [[unlikely]] {
    return value_error("cu_q", "none, as q is padded", "a tensor");
  }
  const attn::Problem p = sizes(in);
  if (in.key_lengths.data != nullptr) STROP_RETURN_IF_ERROR(check_integers("key_lengths", in.key_lengths, q, p.batch));
  const std::int64_t whole[4] = {p.batch, p.heads, p.max_q, p.max_k};
  const bool nothing = p.batch == 0 || p.max_q == 0 || p.max_k == 0;
  if (in.mask.data != nullptr && !nothing) {
    if (in.mask.dtype != DType::kBool) [[unlikely]]
      return type_error("mask", "bool (a mask that is added is a bias)", dtype_name(in.mask.dtype));
    STROP_RETURN_IF_ERROR(check_mask("mask", in.mask, q, whole));
  }
  if (in.bias.data != nullptr && !nothing) {
    if (in.bias.dtype != DType::kFloat64) STROP_RETURN_IF_ERROR(check_float("bias", in.bias.dtype));
    STROP_RETURN_IF_ERROR(check_mask("bias", in.bias, q, whole));
  }
  return {};
}

Status check_out(const AttentionInputs& in, const TensorView& out) {
  STROP_RETURN_IF_ERROR(check_like_q("out", out, in.q));
  if (!same_shape(out, in.q, in.q.rank)) [[unlikely]]
    return value_error("out", "shape " + shape_text(in.q) + " like q", shape_text(out));
  STROP_RETURN_IF_ERROR(check_elements_apart("out", out));
  const std::pair<const char*, const TensorView*> others[] = {
      {"q", &in.q},       {"k", &in.k},       {"v", &in.v},       {"cu_q", &in.cu_q},
      {"cu_k", &in.cu_k}, {"mask", &in.mask}, {"bias", &in.bias}, {"key_lengths", &in.key_lengths}};
  for (const auto& [name, view] : others) {
    if (range_of(out).overlaps(range_of(*view))) [[unlikely]]
      return value_error("out", "memory of its own", std::string("memory shared with ") + name);
  }
  return {};
}

std::int64_t limit(std::int64_t n) { return std::min(n, attn::kUnlimited); }

}  // namespace

std::size_t attention_workspace_bytes(const AttentionInputs& inputs) {
  if (inputs.q.device != DeviceType::kCuda || !check_inputs(inputs).ok()) return 0;
  return attn::workspace_bytes(sizes(inputs));
}

Status attention(const AttentionInputs& in, const AttentionOptions& options, const TensorView& out,
                 const AttentionExecution& execution) {
  STROP_RETURN_IF_ERROR(check_inputs(in));
  attn::Problem p = sizes(in);
  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(p.d)));
  if (!std::isfinite(static_cast<float>(scale))) [[unlikely]]
    return value_error("scale", "a finite number", std::to_string(scale));
  for (const auto& window : {options.window_left, options.window_right}) {
    if (window.value_or(0) < 0) [[unlikely]]
      return value_error("window_left and window_right", "at least 0", std::to_string(*window));
  }
  STROP_RETURN_IF_ERROR(check_out(in, out));
  if (is_empty(in.q) || (!p.packed && p.batch == 0)) return {};  // packed, the rows of no sequence are still written

  p.q = tensor(in.q), p.k = tensor(in.k), p.v = tensor(in.v), p.out = tensor(out);
  p.cu_q = integers(in.cu_q), p.cu_k = integers(in.cu_k), p.key_lengths = integers(in.key_lengths);
  p.mask = mask(in.mask), p.bias = mask(in.bias);
  p.left = limit(options.window_left.value_or(attn::kUnlimited));
  p.right = limit(options.window_right.value_or(attn::kUnlimited));
  if (options.causal) p.right = 0;
  p.bottom_right = options.diagonal == Diagonal::kBottomRight;
  p.scale = static_cast<float>(scale);
#if STROP_WITH_CUDA
  if (in.q.device == DeviceType::kCuda) {
    const std::size_t bytes = attn::workspace_bytes(p);
    if (bytes > 0) STROP_RETURN_IF_ERROR(check_workspace(execution.workspace, "attention_workspace_bytes"));
    p.workspace = execution.workspace;
    STROP_EMULATOR_NAMES({"q", in.q}, {"k", in.k}, {"v", in.v}, {"cu_q", in.cu_q}, {"cu_k", in.cu_k},
                         {"key_lengths", in.key_lengths}, {"mask", in.mask}, {"bias", in.bias},
                         {"out", out, emu::Access::kOutput}, named_workspace(execution.workspace, bytes));
    return attn::run_cuda(p, execution.stream);
  }
#else
  static_cast<void>(execution);
#endif
  return attn::run_cpu(p);
}

}  // namespace strop
