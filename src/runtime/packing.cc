#include "runtime/packing.h"

#include <algorithm>

#include "runtime/pointwise.h"
#include "runtime/views.h"
#include "strop/ragged.h"

namespace strop::runtime {
namespace {

Held made(DType dtype, const Sizes& shape) {
  Tensor t;
  t.dtype = dtype;
  make_row_major(t, shape);
  return allocated(t);
}

// Some dimensions in front, in the order given, and the others behind them.
Tensor in_front(const Tensor& t, std::initializer_list<int> dims) {
  Sizes order;
  for (const int d : dims) order.push(dimension(d, t.rank));
  for (int d = 0; d < t.rank; ++d)
    if (std::find(order.values, order.values + dims.size(), d) == order.values + dims.size()) order.push(d);
  return permute(t, order);
}

// The inverse: the first dimensions to the places given.
Tensor from_front(const Tensor& t, std::initializer_list<int> dims) {
  Sizes order;
  order.count = t.rank;
  std::fill(order.values, order.values + t.rank, -1);
  std::int64_t next = 0;
  for (const int d : dims) order[dimension(d, t.rank)] = next++;
  for (int d = 0; d < t.rank; ++d)
    if (order[d] < 0) order[d] = next++;
  return permute(t, order);
}

// (rows, columns) of a tensor with rows in its first `dims` dimensions.
Held matrix_of(const Held& value, int dims) {
  const Tensor& t = value.tensor;
  std::int64_t rows = 1, columns = 1;
  for (int d = 0; d < t.rank; ++d) (d < dims ? rows : columns) *= t.shape[d];
  const Sizes shape{rows, columns};
  Held flat = value;
  if (!reshaped(t, shape, flat.tensor)) {
    flat = row_major(value);
    make_row_major(flat.tensor, shape);
  }
  return flat;
}

// A matrix's rows with the dimensions that a tensor has behind its first `dims`.
void widen(Held& rows, const Tensor& like, int dims) {
  Sizes shape{rows.tensor.shape[0]};
  for (int d = dims; d < like.rank; ++d) shape.push(like.shape[d]);
  make_row_major(rows.tensor, shape);
}

using Take = Status (*)(const TensorView&, const TensorView&, const TensorView&, void*);

// The rows of a tensor that an index names, its rows being in the first `dims` dimensions.
Held taken(Take take, const Held& value, int dims, const Tensor& index) {
  const Held from = matrix_of(value, dims);
  Held to = made(from.tensor.dtype, Sizes{index.shape[0], from.tensor.shape[1]});
  if (to.tensor.numel() > 0) check(take(view_of(from.tensor), view_of(index), view_of(to.tensor), nullptr));
  widen(to, value.tensor, dims);
  return to;
}

Tokens without_padding(std::int64_t batch, std::int64_t length) {
  Tokens tokens{batch, length, batch * length, length, {}, {}, {}, {}};
  tokens.cu = made(DType::kInt32, Sizes{batch + 1});
  range_on_cpu(tokens.cu.tensor, 0, length);
  return tokens;
}

// Each sequence's first token. One without tokens may begin behind the last one.
void find_first(Tokens& tokens) {
  tokens.first = made(DType::kInt32, Sizes{tokens.batch});
  const auto* const cu = static_cast<const std::int32_t*>(tokens.cu.tensor.data);
  auto* const first = static_cast<std::int32_t*>(tokens.first.tensor.data);
  for (std::int64_t b = 0; b < tokens.batch; ++b)
    first[b] = std::min(cu[b], static_cast<std::int32_t>(tokens.count - 1));
}

}  // namespace

Held row_major(const Held& value) { return value.tensor.contiguous() ? value : copied(value); }

Held copied(const Held& value) {
  Held to = made(value.tensor.dtype, value.tensor.sizes());
  if (!copy_on_cpu(to.tensor, value.tensor)) throw Error("a tensor that cannot be copied");
  return to;
}

std::optional<Tokens> locate(const Tensor& mask, std::int64_t batch, std::int64_t length, bool wants_first,
                             bool wants_whole) {
  Tokens tokens = without_padding(batch, length);
  if (mask.data != nullptr) {
    const Tensor whole = expand(mask, Sizes{batch, length});
    const std::int64_t places = batch * length;
    std::int64_t summary[4] = {};
    Held cu = made(DType::kInt32, Sizes{batch + 1}), rows = made(DType::kInt32, Sizes{places}),
         where = made(DType::kInt32, Sizes{places});
    check(token_index(view_of(whole), view_of(cu.tensor), view_of(rows.tensor), view_of(where.tensor),
                      TensorView::contiguous(summary, DType::kInt64, {4})));
    const auto [count, longest, without_first, with_holes] = summary;
    if (count == 0 || (without_first != 0 && wants_first) || (with_holes != 0 && wants_whole)) return std::nullopt;
    if (count < places) {
      rows.tensor.shape[0] = count;
      tokens = {batch, length, count, longest, std::move(cu), {}, std::move(rows), std::move(where)};
    }
  }
  find_first(tokens);
  return tokens;
}

Held pack(const Held& value, const Packing& how, const Tokens& tokens) {
  const auto [b, l] = how.layout;
  if (how.as_it_is) return value;
  Held from = value;
  if (l < 0) {
    from.tensor = in_front(value.tensor, {b});
    return from;
  }
  if (how.batched) {
    from.tensor = in_front(value.tensor, {b, l});
    Sizes shape = from.tensor.sizes();
    shape[0] = tokens.batch;
    from.tensor = expand(from.tensor, shape);
    if (tokens.padded()) return taken(&gather_rows, from, 2, tokens.rows.tensor);
  } else {
    if (b >= 0) from.tensor = select(from.tensor, b, 0);
    from.tensor = in_front(from.tensor, {l - (b >= 0 && b < l)});
    if (tokens.padded()) return taken(&gather_repeated_rows, from, 1, tokens.rows.tensor);
    Sizes shape{tokens.batch};
    for (int d = 0; d < from.tensor.rank; ++d) shape.push(from.tensor.shape[d]);
    from.tensor = expand(from.tensor, shape);
  }
  Held rows = row_major(matrix_of(from, 2));  // a view may still repeat its rows
  widen(rows, from.tensor, 2);
  return rows;
}

Held unpack(const Held& value, const Layout& layout, const Tokens& tokens) {
  if (layout.length < 0) {
    Held moved = value;
    moved.tensor = from_front(value.tensor, {layout.batch});
    return moved;
  }
  Held rows = tokens.padded() ? taken(&scatter_rows, value, 1, tokens.where.tensor) : row_major(value);
  Sizes shape{tokens.batch, tokens.length};
  for (int d = 1; d < rows.tensor.rank; ++d) shape.push(rows.tensor.shape[d]);
  make_row_major(rows.tensor, shape);
  rows.tensor = from_front(rows.tensor, {layout.batch, layout.length});
  return rows;
}

}  // namespace strop::runtime
