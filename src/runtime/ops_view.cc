// Views, which cost nothing, and reshapes, which copy where strides leave no other way.
#include <algorithm>
#include <limits>

#include "runtime/ops.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

void reshape(Call& call) {
  const Tensor& t = call.tensor(0);
  const Sizes shape = resolved(call.sizes(1), t.numel());
  // The same shape is the same view, whatever its strides.
  if (shape == t.sizes()) return call.set_view(0, t);
  Tensor view;
  if (reshaped(t, shape, view)) return call.set_view(0, view);
  // Rows of the old shape into memory that will be seen in the new one.
  Tensor to = call.make(0, t, t.dtype, shape);
  make_row_major(to, t.sizes());
  copy(call.host(), to, t);
}

void contiguous(Call& call) {
  const Tensor& t = call.tensor(0);
  if (t.contiguous()) return call.set_view(0, t);
  copy(call.host(), call.make(0, t, t.dtype, t.sizes()), t);
}

void slice(Call& call) {
  constexpr std::int64_t kEnd = std::numeric_limits<std::int64_t>::max();
  call.set_view(0, slice(call.tensor(0), call.given(1) ? call.integer(1) : 0, call.given(2) ? call.integer(2) : 0,
                         call.given(3) ? call.integer(3) : kEnd, call.given(4) ? call.integer(4) : 1));
}

// Pieces of a dimension by their sizes; all of them have a register.
void split_with_sizes(Call& call) {
  const Tensor& t = call.tensor(0);
  const std::int64_t dim = call.given(2) ? call.integer(2) : 0;
  const std::vector<Operand>& sizes = call.items(1);
  std::int64_t start = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::int64_t size = call.integer_of(sizes[i]);
    call.set_view(static_cast<int>(i), slice(t, dim, start, start + size, 1));
    start += size;
  }
  if (static_cast<int>(sizes.size()) != call.outs() || t.rank == 0 || start != t.shape[dimension(dim, t.rank)])
    throw Error("split: sizes that do not add up");
}

void split_every(Call& call, std::int64_t size, std::int64_t dim) {
  const Tensor& t = call.tensor(0);
  const std::int64_t whole = t.rank == 0 ? 0 : t.shape[dimension(dim, t.rank)];
  if (size < 1 || std::max<std::int64_t>((whole + size - 1) / size, 1) != call.outs())
    throw Error("split: " + std::to_string(whole) + " by " + std::to_string(size) + " in " +
                std::to_string(call.outs()) + " pieces");
  for (int i = 0; i < call.outs(); ++i) call.set_view(i, slice(t, dim, i * size, (i + 1) * size, 1));
}

void split(Call& call) { split_every(call, call.integer(1), call.given(2) ? call.integer(2) : 0); }

void chunk(Call& call) {
  const Tensor& t = call.tensor(0);
  const std::int64_t chunks = call.integer(1), dim = call.given(2) ? call.integer(2) : 0;
  if (t.rank == 0 || chunks < 1) throw Error("chunk: nothing to cut");
  split_every(call, std::max<std::int64_t>((t.shape[dimension(dim, t.rank)] + chunks - 1) / chunks, 1), dim);
}

void unbind(Call& call) {
  const Tensor& t = call.tensor(0);
  const std::int64_t dim = call.given(1) ? call.integer(1) : 0;
  if (t.rank == 0 || t.shape[dimension(dim, t.rank)] != call.outs())
    throw Error("unbind: another size than " + std::to_string(call.outs()));
  for (int i = 0; i < call.outs(); ++i) call.set_view(i, select(t, dim, i));
}

void squeeze_op(Call& call) {
  call.set_view(0, call.given(1) ? squeeze(call.tensor(0), call.sizes(1)) : squeeze(call.tensor(0)));
}

void t_op(Call& call) {
  const Tensor& t = call.tensor(0);
  if (t.rank > 2) throw Error("t: more than 2 dimensions");
  call.set_view(0, t.rank == 2 ? transpose(t, 0, 1) : t);
}

constexpr Op kOps[] = {
    {"reshape", &reshape, true},
    {"contiguous", &contiguous, true},
    {"transpose", [](Call& c) { c.set_view(0, transpose(c.tensor(0), c.integer(1), c.integer(2))); }, true},
    {"permute", [](Call& c) { c.set_view(0, permute(c.tensor(0), c.sizes(1))); }, true},
    {"unsqueeze", [](Call& c) { c.set_view(0, unsqueeze(c.tensor(0), c.integer(1))); }, true},
    {"squeeze", &squeeze_op, true},
    {"expand", [](Call& c) { c.set_view(0, expand(c.tensor(0), c.sizes(1))); }, true},
    {"expand_as", [](Call& c) { c.set_view(0, expand(c.tensor(0), c.tensor(1).sizes())); }, true},
    {"select", [](Call& c) { c.set_view(0, select(c.tensor(0), c.integer(1), c.integer(2))); }, true},
    {"slice", &slice, true},
    {"split", &split, true},
    {"split_with_sizes", &split_with_sizes, true},
    {"chunk", &chunk, true},
    {"unbind", &unbind, true},
    {"t", &t_op, true},
};

}  // namespace

std::span<const Op> view_ops() { return kOps; }

}  // namespace strop::runtime
