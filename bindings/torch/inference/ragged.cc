// The kernels of packing and pooling as operators of a rewritten model (operators.h).
#include "strop/ragged.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "execute.h"
#include "operators.h"
#include "strop/pool.h"
#include "tensors.h"

namespace strop::binding {
namespace {

bool has_size(const Tensor& t) { return dtype_of(t.scalar_type()) != DType::kOther; }

// ---- Packing --------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor> token_index_op(const Tensor& mask) {
  if (!has_size(mask)) {
    std::array<StableIValue, 4> stack{torch::stable::detail::from(mask)};  // with room for the results
    dispatch("strop::token_index_plain", "", stack.data());
    const auto result = [&](std::size_t i) { return torch::stable::detail::to<Tensor>(stack[i]); };
    return {result(0), result(1), result(2), result(3)};
  }
  const TensorView in = view_of(mask, "mask");
  const std::int64_t batch = mask.dim() > 0 ? mask.size(0) : 0, positions = mask.numel();  // wrong ranks: the core's
  const std::int32_t narrow = aoti_torch_dtype_int32();
  const Tensor cu = new_vector(mask, batch + 1, narrow), rows = new_vector(mask, positions, narrow);
  const Tensor where = new_vector(mask, positions, narrow), summary = new_vector(mask, 4, aoti_torch_dtype_int64());
  const TensorView to[] = {view_of(cu, "cu"), view_of(rows, "rows"), view_of(where, "where"),
                           view_of(summary, "summary")};
  check(on_stream(in, [&](void* stream) { return token_index(in, to[0], to[1], to[2], to[3], stream); }));
  return {cu, rows, where, summary};
}

// (R, …) as (R, n), of a copy where it has to be one; none where rows have no element.
std::optional<TensorView> flat_rows(const Tensor& t, Tensor& keep) {
  keep = t;
  std::optional<Extent> row = merged(extents(t, 1, t.dim()));
  if (!row.has_value()) {
    keep = torch::stable::contiguous(t);
    row = merged(extents(keep, 1, keep.dim()));
  }
  if (t.numel() == 0) {  // merged has no size for what has none
    row = Extent{1, 1};
    for (std::int64_t i = 1; i < t.dim(); ++i) row->size *= t.size(i);
    if (row->size == 0) return {};
  }
  TensorView view = start_of(keep);
  push(view, {keep.size(0), keep.stride(0)});
  push(view, *row);
  return view;
}

using Take = Status (*)(const TensorView&, const TensorView&, const TensorView&, void*);

// Nothing where the kernel does not take it.
MaybeTensor take(Take core, const Tensor& x, const Tensor& index, const char* name) {
  if (!has_size(x) || x.dim() < 1 || index.dim() != 1) return {};
  Tensor kept, ignored;
  const std::optional<TensorView> from = flat_rows(x, kept);
  if (!from.has_value()) return {};
  std::vector<std::int64_t> sizes = sizes_of(x);
  sizes[0] = index.size(0);
  const Tensor out = new_tensor(x, sizes);
  const TensorView numbers = view_of(index, name), to = *flat_rows(out, ignored);
  check(on_stream(*from, [&](void* stream) { return core(*from, numbers, to, stream); }));
  return out;
}

Take gather(bool repeated) { return repeated ? &gather_repeated_rows : &gather_rows; }

Tensor gather_rows_op(const Tensor& x, const Tensor& rows, bool repeated) {
  const MaybeTensor out = take(gather(repeated), x, rows, "rows");
  return out.has_value() ? *out : one("strop::gather_rows_plain", x, rows, repeated);
}

// Into the first rows of what is there already.
void gather_rows_out_op(const Tensor& x, const Tensor& rows, const Tensor& out, bool repeated) {
  const auto plain = [&] { call("strop::gather_rows_out_plain", "", x, rows, out, repeated); };
  if (!has_size(x) || x.dim() < 1 || out.dim() != x.dim() || rows.dim() != 1 || rows.size(0) > out.size(0) ||
      !out.is_contiguous()) {
    return plain();
  }
  for (std::int64_t i = 1; i < x.dim(); ++i) {
    if (x.size(i) != out.size(i)) return plain();
  }
  Tensor kept, ignored;
  const std::optional<TensorView> from = flat_rows(x, kept);
  if (!from.has_value()) return;  // rows of no element
  TensorView to = *flat_rows(out, ignored);
  to.shape[0] = rows.size(0);
  const TensorView numbers = view_of(rows, "rows");
  check(on_stream(*from, [&](void* stream) { return gather(repeated)(*from, numbers, to, stream); }));
}

void pack_starts_op(const Tensor& cu, std::int64_t count, const Tensor& cu_out, const Tensor& first_out) {
  const TensorView in = view_of(cu, "cu"), numbers = view_of(cu_out, "cu_out"), first = view_of(first_out, "first_out");
  check(on_stream(in, [&](void* stream) { return pack_starts(in, count, numbers, first, stream); }));
}

Tensor scatter_rows_op(const Tensor& x, const Tensor& where) {
  const MaybeTensor out = take(&scatter_rows, x, where, "where");
  return out.has_value() ? *out : one("strop::scatter_rows_plain", x, where);
}

// ---- Pooling --------------------------------------------------------------------------------------------------------

Tensor mean_pool_op(const Tensor& x, const Tensor& mask, double least) {
  // Where a mask is broadcast, that is PyTorch's.
  if (!is_float(x) || !has_size(mask) || x.dim() != 3 || x.size(2) == 0 || mask.dim() != 2 ||
      mask.size(0) != x.size(0) || mask.size(1) != x.size(1)) {
    return one("strop::mean_pool_plain", x, mask, least);
  }
  const TensorView in = view_of(x, "x"), weights = view_of(mask, "mask");
  const Tensor out = new_tensor(x, {x.size(0), x.size(2)});
  const TensorView to = view_of(out, "out");
  check(on_stream(in, [&](void* stream) { return mean_pool(in, weights, least, to, stream); }));
  return out;
}

Tensor mean_pool_packed_op(const Tensor& x, const Tensor& cu, double least) {
  if (!is_float(x) || !is_index(cu) || x.dim() != 2 || x.size(1) == 0 || cu.dim() != 1 || cu.size(0) == 0) {
    return one("strop::mean_pool_packed_plain", x, cu, least);
  }
  const TensorView in = view_of(x, "x"), ends = view_of(cu, "cu");
  const Tensor out = new_tensor(x, {cu.size(0) - 1, x.size(1)});
  const TensorView to = view_of(out, "out");
  check(on_stream(in, [&](void* stream) { return mean_pool_packed(in, ends, least, to, stream); }));
  return out;
}

}  // namespace

void implement_ragged(OperatorLibrary& m) {
  m.impl("token_index", TORCH_BOX(&token_index_op));
  m.impl("gather_rows", TORCH_BOX(&gather_rows_op));
  m.impl("gather_rows_out", TORCH_BOX(&gather_rows_out_op));
  m.impl("pack_starts", TORCH_BOX(&pack_starts_op));
  m.impl("scatter_rows", TORCH_BOX(&scatter_rows_op));
  m.impl("mean_pool", TORCH_BOX(&mean_pool_op));
  m.impl("mean_pool_packed", TORCH_BOX(&mean_pool_packed_op));
}

}  // namespace strop::binding
