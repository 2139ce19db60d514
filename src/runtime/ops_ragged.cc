// Packing, unpacking and pooling by the functions of include/strop/ragged.h and pool.h.
#include "runtime/ops.h"
#include "runtime/views.h"
#include "strop/pool.h"
#include "strop/ragged.h"

namespace strop::runtime {
namespace {

using Take = Status (*)(const TensorView&, const TensorView&, const TensorView&, void*);

// (x, index): x (N, ...), of which rows are taken.
template <Take kTake>
void take(Call& call) {
  const Tensor &x = call.tensor(0), &index = call.tensor(1);
  if (x.rank < 1 || index.rank != 1) throw Error("expected rows, and indices of one dimension");
  Sizes shape = x.sizes();
  std::int64_t columns = 1;
  for (int d = 1; d < shape.count; ++d) columns *= shape[d];
  shape[0] = index.shape[0];
  Tensor out = call.make(0, x, x.dtype, shape);
  if (columns == 0) return;
  const auto flat = [&](const Tensor& t) {
    Tensor view;
    const Sizes rows{t.shape[0], columns};
    if (!reshaped(t, rows, view)) reshaped(call.row_major(t), rows, view);
    return view_of(view);
  };
  check(kTake(flat(x), view_of(index), flat(out), call.host().stream()));
}

// (mask) -> cu, rows, where, summary
void token_index_op(Call& call) {
  const Tensor& mask = call.tensor(0);
  if (mask.rank != 2) throw Error("mask: expected 2 dimensions");
  const std::int64_t places = mask.shape[0] * mask.shape[1];
  const TensorView cu = view_of(call.make(0, mask, DType::kInt32, Sizes{mask.shape[0] + 1}));
  const TensorView rows = view_of(call.make(1, mask, DType::kInt32, Sizes{places}));
  const TensorView where = view_of(call.make(2, mask, DType::kInt32, Sizes{places}));
  const TensorView summary = view_of(call.make(3, mask, DType::kInt64, Sizes{4}));
  check(token_index(view_of(mask), cu, rows, where, summary, call.host().stream()));
}

// (x, mask, least)
void mean_pool_op(Call& call) {
  const Tensor& x = call.tensor(0);
  if (x.rank != 3) throw Error("x: expected 3 dimensions");
  const Tensor out = call.make(0, x, x.dtype, Sizes{x.shape[0], x.shape[2]});
  check(mean_pool(view_of(x), view_of(call.tensor(1)), call.real(2), view_of(out), call.host().stream()));
}

// (x, cu, least)
void mean_pool_packed_op(Call& call) {
  const Tensor &x = call.tensor(0), &cu = call.tensor(1);
  if (x.rank != 2 || cu.rank != 1 || cu.shape[0] < 1) throw Error("expected x (T, n) and cu (B + 1,)");
  const Tensor out = call.make(0, x, x.dtype, Sizes{cu.shape[0] - 1, x.shape[1]});
  check(mean_pool_packed(view_of(x), view_of(cu), call.real(2), view_of(out), call.host().stream()));
}

constexpr Op kOps[] = {
    {"strop.gather_rows", &take<&gather_rows>},       {"strop.scatter_rows", &take<&scatter_rows>},
    {"strop.token_index", &token_index_op},           {"strop.mean_pool", &mean_pool_op},
    {"strop.mean_pool_packed", &mean_pool_packed_op},
};

}  // namespace

std::span<const Op> ragged_ops() { return kOps; }

}  // namespace strop::runtime
