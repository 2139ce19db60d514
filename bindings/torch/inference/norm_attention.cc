// The kernels of norms, embeddings, rotary embeddings and attention as operators of a rewritten model (operators.h).
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "execute.h"
#include "operators.h"
#include "strop/attention.h"
#include "strop/norm.h"
#include "strop/rotary.h"
#include "tensors.h"

namespace strop::binding {
namespace {

// ---- Norms ----------------------------------------------------------------------------------------------------------

using Norm = Status (*)(const NormInputs&, double, const NormOutputs&, void*);

bool norm_takes(const Tensor& x, const Tensor* residual, const MaybeTensor& weight, const MaybeTensor& bias) {
  return x.dim() > 0 && x.size(x.dim() - 1) > 0 && is_float(x) && is_float(weight) && is_float(bias) &&
         (residual == nullptr || is_alike(*residual, x));
}

// `sum` gets x + residual, where it is wanted.
Tensor run_norm(Norm norm, const Tensor& x, const Tensor* residual, const MaybeTensor& weight, const MaybeTensor& bias,
                double eps, Tensor* sum) {
  Tensor kept_x, kept_residual, ignored;
  NormInputs in;
  in.x = rows_of(x, kept_x);
  if (residual != nullptr) in.residual = rows_of(*residual, kept_residual);
  in.weight = view_if(weight, "weight");
  in.bias = view_if(bias, "bias");
  const Tensor out = new_tensor(x, sizes_of(x));
  NormOutputs to;
  to.out = rows_of(out, ignored);
  if (sum != nullptr) {
    *sum = new_tensor(x, sizes_of(x));
    to.residual_out = rows_of(*sum, ignored);
  }
  check(on_stream(in.x, [&](void* stream) { return norm(in, eps, to, stream); }));
  return out;
}

Tensor layer_norm_op(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                     const MaybeTensor& residual) {
  const Tensor* const r = residual.has_value() ? &*residual : nullptr;
  if (!norm_takes(x, r, weight, bias)) return one("strop::layer_norm_plain", x, weight, bias, eps, residual);
  return run_norm(&layer_norm, x, r, weight, bias, eps, nullptr);
}

std::tuple<Tensor, Tensor> add_layer_norm_op(const Tensor& x, const Tensor& residual, const MaybeTensor& weight,
                                             const MaybeTensor& bias, double eps) {
  if (!norm_takes(x, &residual, weight, bias)) {
    return two("strop::add_layer_norm_plain", x, residual, weight, bias, eps);
  }
  Tensor sum;
  const Tensor out = run_norm(&layer_norm, x, &residual, weight, bias, eps, &sum);
  return {out, sum};
}

Tensor rms_norm_op(const Tensor& x, const MaybeTensor& weight, double eps, const MaybeTensor& residual) {
  const Tensor* const r = residual.has_value() ? &*residual : nullptr;
  if (!norm_takes(x, r, weight, {})) return one("strop::rms_norm_plain", x, weight, eps, residual);
  return run_norm(&rms_norm, x, r, weight, {}, eps, nullptr);
}

std::tuple<Tensor, Tensor> add_rms_norm_op(const Tensor& x, const Tensor& residual, const MaybeTensor& weight,
                                           double eps) {
  if (!norm_takes(x, &residual, weight, {})) return two("strop::add_rms_norm_plain", x, residual, weight, eps);
  Tensor sum;
  const Tensor out = run_norm(&rms_norm, x, &residual, weight, {}, eps, &sum);
  return {out, sum};
}

// ---- Embeddings -----------------------------------------------------------------------------------------------------

// What shapes broadcast to; none where they don't.
std::optional<std::vector<std::int64_t>> broadcast(const std::vector<Tensor>& tensors) {
  std::int64_t rank = 0;
  for (const Tensor& t : tensors) rank = std::max(rank, t.dim());
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(rank), 1);
  for (const Tensor& t : tensors) {
    for (std::int64_t i = 0; i < t.dim(); ++i) {
      std::int64_t& size = sizes[static_cast<std::size_t>(rank - t.dim() + i)];
      const std::int64_t own = t.size(i);
      if (own != 1 && size != 1 && own != size) return {};
      if (own != 1) size = own;
    }
  }
  return sizes;
}

// Ids of all rows, (R,): with stride 0 where there is one for all, of a copy where the strides are several.
TensorView ids_of(const Tensor& ids, const std::vector<std::int64_t>& sizes, std::int64_t rows, Tensor& keep) {
  keep = ids;
  std::optional<Extent> whole;
  if (ids.numel() == 1) {
    whole = Extent{rows, 0};
  } else {
    if (sizes_of(ids) != sizes) {
      keep = torch::stable::detail::to<Tensor>(call("aten::expand", "", ids, sizes, false)[0]);
    }
    whole = merged(extents(keep, 0, keep.dim()));
    if (!whole.has_value()) {
      keep = torch::stable::contiguous(keep);
      whole = merged(extents(keep, 0, keep.dim()));
    }
  }
  TensorView view = start_of(keep);
  push(view, *whole);
  return view;
}

bool embedding_takes(const std::vector<Tensor>& tables, const std::vector<Tensor>& ids, const MaybeTensor& weight,
                     const MaybeTensor& bias) {
  const bool sizes = !tables.empty() && tables.size() <= EmbeddingInputs::kMaxTables && ids.size() == tables.size();
  return sizes && is_float(weight) && is_float(bias) &&
         std::all_of(tables.begin(), tables.end(),
                     [&](const Tensor& t) {
                       return t.dim() == 2 && t.size(1) > 0 && is_float(t) &&
                              t.scalar_type() == tables[0].scalar_type();
                     }) &&
         std::all_of(ids.begin(), ids.end(), is_index);
}

Tensor embed_norm_op(const std::vector<Tensor>& tables, const std::vector<Tensor>& ids, const MaybeTensor& weight,
                     const MaybeTensor& bias, double eps) {
  const std::optional<std::vector<std::int64_t>> sizes = broadcast(ids);
  if (!embedding_takes(tables, ids, weight, bias) || !sizes.has_value()) {
    return one("strop::embed_norm_plain", tables, ids, weight, bias, eps);
  }
  std::int64_t rows = 1;
  for (const std::int64_t size : *sizes) rows *= size;
  EmbeddingInputs in;
  std::array<Tensor, EmbeddingInputs::kMaxTables> kept;
  for (std::size_t k = 0; k < tables.size(); ++k) {
    in.tables[k] = view_of(tables[k], "tables");
    in.ids[k] = ids_of(ids[k], *sizes, rows, kept[k]);
  }
  in.weight = view_if(weight, "weight");
  in.bias = view_if(bias, "bias");
  std::vector<std::int64_t> shape = *sizes;
  shape.push_back(tables[0].size(1));
  const Tensor out = new_tensor(tables[0], shape);
  NormOutputs to;
  Tensor ignored;
  to.out = rows_of(out, ignored);
  check(on_stream(in.tables[0], [&](void* stream) { return embedding_norm(in, eps, to, stream); }));
  return out;
}

// ---- Rotary ---------------------------------------------------------------------------------------------------------

// The dimensions of x before the last one, those of size 1 left out, with what each tensor steps by: 0 where cos and
// sin are broadcast.
struct Step {
  std::int64_t size, x, out, cos, sin;
};

std::vector<Step> steps_of(const Tensor& x, const Tensor& out, const Tensor& cos, const Tensor& sin) {
  std::vector<Step> steps;
  const auto stride = [&](const Tensor& table, std::int64_t i) {
    const std::int64_t at = i - (x.dim() - table.dim());
    return at < 0 || table.size(at) == 1 ? 0 : table.stride(at);
  };
  for (std::int64_t i = 0; i + 1 < x.dim(); ++i) {
    if (x.size(i) != 1) steps.push_back({x.size(i), x.stride(i), out.stride(i), stride(cos, i), stride(sin, i)});
  }
  return steps;
}

bool fits_in(const Tensor& table, const Tensor& x) {
  if (!is_float(table) || table.dim() < 1 || table.dim() > x.dim()) return false;
  for (std::int64_t i = 0; i + 1 < table.dim(); ++i) {
    if (table.size(i) != 1 && table.size(i) != x.size(x.dim() - table.dim() + i)) return false;
  }
  return table.size(table.dim() - 1) == x.size(x.dim() - 1);
}

// Some of the steps as one dimension of one of the tensors.
std::optional<Extent> merged(const std::vector<Step>& steps, std::int64_t Step::*stride) {
  std::vector<Extent> dims;
  for (const Step& step : steps) dims.push_back({step.size, step.*stride});
  return merged(dims);
}

// (tokens, heads, d) of x and out and (rows, d) of cos and sin, if x can be seen so: tokens are the dimensions that cos
// changes with, heads the others. With `batch`, the first of these others belongs to the tokens, in each of whose parts
// the rows begin anew.
bool as_tokens(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& out, bool batch, RotaryInputs& in,
               TensorView& to) {
  std::vector<Step> rows, tokens, heads;
  for (const Step& step : steps_of(x, out, cos, sin)) {
    const bool turns = step.cos != 0 || step.sin != 0;
    if (turns) rows.push_back(step);
    const bool leads = batch && !turns && tokens.empty() && heads.empty();
    (turns || leads ? tokens : heads).push_back(step);
  }
  const auto x_tokens = merged(tokens, &Step::x), x_heads = merged(heads, &Step::x);
  const auto out_tokens = merged(tokens, &Step::out), out_heads = merged(heads, &Step::out);
  const auto cos_rows = merged(rows, &Step::cos), sin_rows = merged(rows, &Step::sin);
  if (!x_tokens || !x_heads || !out_tokens || !out_heads || !cos_rows || !sin_rows) return false;
  const auto view = [](const Tensor& t, std::initializer_list<Extent> dims) {
    TensorView v = start_of(t);
    for (const Extent& dim : dims) push(v, dim);
    push(v, {t.size(t.dim() - 1), t.stride(t.dim() - 1)});
    return v;
  };
  in.x = view(x, {*x_tokens, *x_heads});
  to = view(out, {*out_tokens, *out_heads});
  in.cos = view(cos, {*cos_rows});
  in.sin = view(sin, {*sin_rows});
  return true;
}

Tensor rotary_op(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const auto plain = [&] { return one("strop::rotary_plain", x, cos, sin); };
  if (!is_float(x) || x.dim() < 1 || x.size(x.dim() - 1) < 2 || x.size(x.dim() - 1) % 2 != 0 || !fits_in(cos, x) ||
      !fits_in(sin, x)) {
    return plain();
  }
  const Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  RotaryInputs in;
  TensorView to;
  if (!as_tokens(x, cos, sin, out, false, in, to) && !as_tokens(x, cos, sin, out, true, in, to)) return plain();
  check(on_stream(in.x, [&](void* stream) { return rotary_embedding(in, to, stream); }));
  return out;
}

// ---- Attention ------------------------------------------------------------------------------------------------------

// What padded and packed attention have in common.
bool attention_takes(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t rank) {
  if (q.dim() != rank || k.dim() != rank || v.dim() != rank) return false;
  const std::int64_t size = q.size(rank - 1);
  return is_float(q) && k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type() && size % 8 == 0 &&
         size >= 8 && size <= 256 && same_shape(k, v);
}

std::optional<std::int64_t> bound(std::int64_t window) {
  return window < 0 ? std::nullopt : std::optional<std::int64_t>(window);
}

void run_attention(const AttentionInputs& in, const AttentionOptions& options, const TensorView& out) {
  check(on_stream(in.q, [&](void* stream) {
    AttentionExecution execution;
    execution.stream = stream;
    Workspace workspace;
    if (const std::size_t bytes = attention_workspace_bytes(in); bytes > 0) {
      if (Status s = workspace.allocate(in.q, bytes, stream, &execution.workspace); !s.ok()) return s;
    }
    return attention(in, options, out, execution);
  }));
}

// (batch or 1, keys or more), bool, as a mask (batch or 1, 1, 1, keys).
Tensor mask_of_padding(const Tensor& padding, std::int64_t keys) {
  return reinterpreted(padding, {padding.size(0), 1, 1, keys}, {padding.stride(0), 0, 0, padding.stride(1)});
}

Tensor attention_op(const Tensor& query, const Tensor& key, const Tensor& value, const MaybeTensor& mask,
                    const MaybeTensor& padding, std::optional<double> scale, std::int64_t window_left,
                    std::int64_t window_right, std::int64_t query_offset) {
  const auto plain = [&] {
    return one("strop::attention_plain", query, key, value, mask, padding, scale, window_left, window_right,
               query_offset);
  };
  if (!attention_takes(query, key, value, 4)) return plain();
  const std::int64_t keys = key.size(2);
  if (padding.has_value() &&
      (padding->dim() != 2 || padding->scalar_type() != ScalarType::Bool || padding->size(1) < keys ||
       (padding->size(0) != 1 && padding->size(0) != query.size(0)))) {
    return plain();
  }
  const bool admits = mask.has_value() && mask->scalar_type() == ScalarType::Bool;
  if (mask.has_value() && !admits && mask->scalar_type() != query.scalar_type()) return plain();
  if (mask.has_value() && mask->dim() > 4) return plain();

  AttentionOptions options;
  options.scale = scale;
  options.window_left = bound(window_left);
  options.window_right = bound(window_right);
  if ((options.window_left || options.window_right) && query_offset != 0) {
    if (query_offset != keys - query.size(2)) return plain();
    options.diagonal = Diagonal::kBottomRight;
  }

  AttentionInputs in;
  in.q = view_of(query, "query");
  in.k = view_of(key, "key");
  in.v = view_of(value, "value");
  MaybeTensor admitted;
  if (admits) admitted = mask;
  if (padding.has_value()) {
    const Tensor real = mask_of_padding(*padding, keys);
    admitted = admits ? one("aten::logical_and", *mask, real) : real;
  }
  in.mask = view_if(admitted, "mask");
  if (mask.has_value() && !admits) in.bias = view_of(*mask, "mask");

  const std::int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2), size = query.size(3);
  const Tensor out = new_tensor(query, {batch, heads, queries, size}, {queries * heads * size, size, heads * size, 1});
  run_attention(in, options, view_of(out, "out"));
  return out;
}

Tensor attention_packed_op(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& cu,
                           std::int64_t longest, std::optional<double> scale, std::int64_t window_left,
                           std::int64_t window_right) {
  if (!attention_takes(query, key, value, 3) || !is_index(cu)) {
    return one("strop::attention_packed_plain", query, key, value, cu, longest, scale, window_left, window_right);
  }
  AttentionInputs in;
  in.q = view_of(query, "query");
  in.k = view_of(key, "key");
  in.v = view_of(value, "value");
  in.cu_q = in.cu_k = view_of(cu, "cu");
  in.max_q = in.max_k = longest;
  AttentionOptions options;
  options.scale = scale;
  options.window_left = bound(window_left);
  options.window_right = bound(window_right);
  const Tensor out = new_tensor(query, sizes_of(query));
  run_attention(in, options, view_of(out, "out"));
  return out;
}

}  // namespace

void implement_norms_and_attention(OperatorLibrary& m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm_op));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm_op));
  m.impl("rms_norm", TORCH_BOX(&rms_norm_op));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm_op));
  m.impl("embed_norm", TORCH_BOX(&embed_norm_op));
  m.impl("rotary", TORCH_BOX(&rotary_op));
  m.impl("attention", TORCH_BOX(&attention_op));
  m.impl("attention_packed", TORCH_BOX(&attention_packed_op));
}

}  // namespace strop::binding
