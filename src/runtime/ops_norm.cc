// Norms by the functions of include/strop/norm.h. Rows may have any dimensions in front.
#include "runtime/ops.h"
#include "runtime/views.h"
#include "strop/norm.h"

namespace strop::runtime {
namespace {

using Norm = Status (*)(const NormInputs&, double, const NormOutputs&, void*);

// (x, residual?, weight?, bias?, eps); a second result is x + residual.
template <Norm kNorm>
void norm(Call& call) {
  const Tensor& x = call.tensor(0);
  NormInputs in;
  in.x = view_of(call.rows(x, 1));
  if (const Tensor* residual = call.tensor_or_null(1)) in.residual = view_of(call.rows(*residual, 1));
  if (const Tensor* weight = call.tensor_or_null(2)) in.weight = view_of(*weight);
  if (const Tensor* bias = call.tensor_or_null(3)) in.bias = view_of(*bias);
  const auto rows_of = [&](Tensor t) {
    make_row_major(t, Sizes{in.x.shape[0], in.x.shape[1]});
    return view_of(t);
  };
  NormOutputs to;
  to.out = rows_of(call.make(0, x, x.dtype, x.sizes()));
  if (call.outs() > 1) to.residual_out = rows_of(call.make(1, x, x.dtype, x.sizes()));
  check(kNorm(in, call.real(4), to, call.host().stream()));
}

// (tables, ids, weight?, bias?, eps): ids broadcast to one another.
void embedding(Call& call) {
  const std::vector<Operand>&tables = call.items(0), &ids = call.items(1);
  if (tables.size() != ids.size() || tables.empty() || tables.size() > EmbeddingInputs::kMaxTables)
    throw Error("expected up to " + std::to_string(EmbeddingInputs::kMaxTables) + " tables, each with its ids");
  Sizes shape = call.tensor_of(ids[0]).sizes();
  for (const Operand& i : ids) shape = broadcast(shape, call.tensor_of(i).sizes());
  EmbeddingInputs in;
  for (std::size_t k = 0; k < tables.size(); ++k) {
    in.tables[k] = view_of(call.tensor_of(tables[k]));
    in.ids[k] = view_of(call.rows(expand(call.tensor_of(ids[k]), shape), 0));
  }
  if (const Tensor* weight = call.tensor_or_null(2)) in.weight = view_of(*weight);
  if (const Tensor* bias = call.tensor_or_null(3)) in.bias = view_of(*bias);
  const Tensor& table = call.tensor_of(tables[0]);
  if (table.rank != 2) throw Error("tables[0]: expected 2 dimensions");
  const std::int64_t columns = table.shape[1];
  shape.push(columns);
  Tensor out = call.make(0, table, table.dtype, shape);
  make_row_major(out, Sizes{in.ids[0].shape[0], columns});
  NormOutputs to;
  to.out = view_of(out);
  check(embedding_norm(in, call.real(4), to, call.host().stream()));
}

constexpr Op kOps[] = {
    {"strop.layer_norm", &norm<&layer_norm>},
    {"strop.rms_norm", &norm<&rms_norm>},
    {"strop.embedding_norm", &embedding},
};

}  // namespace

std::span<const Op> norm_ops() { return kOps; }

}  // namespace strop::runtime
