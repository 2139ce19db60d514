#include "runtime/views.h"

#include <algorithm>
#include <string>

namespace strop::runtime {
namespace {

std::string text(const std::int64_t* values, int count) {
  std::string s = "(";
  for (int i = 0; i < count; ++i) s += (i ? ", " : "") + std::to_string(values[i]);
  return s + ")";
}

void remove(Tensor& t, int dim) {
  for (int d = dim; d + 1 < t.rank; ++d) {
    t.shape[d] = t.shape[d + 1];
    t.strides[d] = t.strides[d + 1];
  }
  --t.rank;
}

void move(Tensor& t, std::int64_t elements) { t.data = static_cast<char*>(t.data) + elements * dtype_size(t.dtype); }

}  // namespace

int dimension(std::int64_t dim, int rank) {
  const int most = std::max(rank, 1);
  if (dim < -most || dim >= most) [[unlikely]]
    throw Error("dimension " + std::to_string(dim) + " of a tensor with " + std::to_string(rank) + " dimensions");
  return static_cast<int>(dim < 0 ? dim + most : dim);
}

void make_row_major(Tensor& t, const Sizes& shape) {
  t.rank = shape.count;
  std::int64_t stride = 1;
  for (int d = shape.count - 1; d >= 0; --d) {
    t.shape[d] = shape[d];
    t.strides[d] = stride;
    stride *= std::max<std::int64_t>(shape[d], 1);
  }
}

Tensor transpose(const Tensor& t, std::int64_t a, std::int64_t b) {
  Tensor v = t;
  const int i = dimension(a, t.rank), j = dimension(b, t.rank);
  std::swap(v.shape[i], v.shape[j]);
  std::swap(v.strides[i], v.strides[j]);
  return v;
}

Tensor permute(const Tensor& t, const Sizes& order) {
  if (order.count != t.rank) [[unlikely]]
    throw Error("permute: " + std::to_string(order.count) + " dimensions of " + std::to_string(t.rank));
  Tensor v = t;
  unsigned seen = 0;
  for (int d = 0; d < t.rank; ++d) {
    const int from = dimension(order[d], t.rank);
    if (seen >> from & 1U) [[unlikely]]
      throw Error("permute: dimension " + std::to_string(from) + " twice");
    seen |= 1U << from;
    v.shape[d] = t.shape[from];
    v.strides[d] = t.strides[from];
  }
  return v;
}

Tensor unsqueeze(const Tensor& t, std::int64_t dim) {
  const int at = dimension(dim, t.rank + 1);
  if (t.rank == kMostDimensions) [[unlikely]]
    throw Error("more than " + std::to_string(kMostDimensions) + " dimensions");
  Tensor v = t;
  ++v.rank;
  for (int d = v.rank - 1; d > at; --d) {
    v.shape[d] = t.shape[d - 1];
    v.strides[d] = t.strides[d - 1];
  }
  v.shape[at] = 1;
  v.strides[at] = at + 1 < v.rank ? v.shape[at + 1] * v.strides[at + 1] : 1;
  return v;
}

Tensor squeeze(const Tensor& t) {
  Tensor v = t;
  for (int d = v.rank - 1; d >= 0; --d)
    if (v.shape[d] == 1) remove(v, d);
  return v;
}

Tensor squeeze(const Tensor& t, const Sizes& dims) {
  unsigned wanted = 0;
  for (int i = 0; i < dims.count; ++i) wanted |= 1U << dimension(dims[i], t.rank);
  Tensor v = t;
  for (int d = v.rank - 1; d >= 0; --d)
    if ((wanted >> d & 1U) && v.shape[d] == 1) remove(v, d);
  return v;
}

Tensor expand(const Tensor& t, const Sizes& shape) {
  if (shape.count < t.rank) [[unlikely]]
    throw Error("expand: " + std::to_string(t.rank) + " dimensions to " + std::to_string(shape.count));
  Tensor v = t;
  v.rank = shape.count;
  const int added = shape.count - t.rank;
  for (int d = v.rank - 1; d >= 0; --d) {
    const bool there = d >= added;
    const std::int64_t size = there ? t.shape[d - added] : 1;
    const std::int64_t wanted = shape[d] == -1 && there ? size : shape[d];
    if (wanted < 0 || (size != wanted && size != 1)) [[unlikely]]
      throw Error("expand: " + text(t.shape, t.rank) + " to " + text(shape.values, shape.count));
    v.shape[d] = wanted;
    v.strides[d] = there && size == wanted ? t.strides[d - added] : 0;
  }
  return v;
}

Tensor select(const Tensor& t, std::int64_t dim, std::int64_t index) {
  const int d = dimension(dim, t.rank);
  if (t.rank == 0 || index < -t.shape[d] || index >= t.shape[d]) [[unlikely]]
    throw Error("select: index " + std::to_string(index) + " of dimension " + std::to_string(dim) + " of " +
                text(t.shape, t.rank));
  Tensor v = t;
  move(v, (index < 0 ? index + t.shape[d] : index) * t.strides[d]);
  remove(v, d);
  return v;
}

Tensor slice(const Tensor& t, std::int64_t dim, std::int64_t start, std::int64_t end, std::int64_t step) {
  const int d = dimension(dim, t.rank);
  if (t.rank == 0 || step < 1) [[unlikely]]
    throw Error("slice: step " + std::to_string(step) + " of " + text(t.shape, t.rank));
  const std::int64_t size = t.shape[d];
  if (start < 0) start += size;
  if (end < 0) end += size;
  start = std::clamp<std::int64_t>(start, 0, size);
  end = std::clamp<std::int64_t>(end, start, size);
  Tensor v = t;
  v.shape[d] = (end - start) / step + ((end - start) % step != 0);
  if (v.numel() > 0) move(v, start * t.strides[d]);
  v.strides[d] = t.strides[d] * step;
  return v;
}

Sizes resolved(const Sizes& shape, std::int64_t elements) {
  Sizes s = shape;
  std::int64_t known = 1;
  int open = -1;
  for (int d = 0; d < s.count; ++d) {
    if (s[d] == -1 && open < 0)
      open = d;
    else
      known *= s[d] < 0 ? 0 : s[d];
  }
  if (open >= 0 && known > 0 && elements % known == 0) {
    s[open] = elements / known;
    known = elements;
  }
  if (known != elements || (open >= 0 && s[open] < 0)) [[unlikely]]
    throw Error("reshape: " + std::to_string(elements) + " elements to " + text(shape.values, shape.count));
  return s;
}

bool reshaped(const Tensor& t, const Sizes& shape, Tensor& view) {
  Tensor v = t;
  if (t.numel() == 0 || t.contiguous()) {
    make_row_major(v, shape);
    view = v;
    return true;
  }
  v.rank = shape.count;
  // Runs of the old dimensions that lie behind each other as one would are cut into the new ones, from the last on.
  int to = shape.count - 1;
  std::int64_t run = 1, cut = 1;
  std::int64_t base = t.strides[t.rank - 1];
  for (int from = t.rank - 1; from >= 0; --from) {
    run *= t.shape[from];
    const bool ends = from == 0 || (t.shape[from - 1] != 1 && t.strides[from - 1] != run * base);
    if (!ends) continue;
    while (to >= 0 && (cut < run || shape[to] == 1)) {
      v.shape[to] = shape[to];
      v.strides[to] = cut * base;
      cut *= shape[to--];
    }
    if (cut != run) return false;
    if (from > 0) {
      base = t.strides[from - 1];
      run = cut = 1;
    }
  }
  if (to != -1) return false;
  view = v;
  return true;
}

bool flattened(const Tensor& t, int kept, Tensor& view) {
  Sizes shape;
  std::int64_t rows = 1;
  for (int d = 0; d < t.rank - kept; ++d) rows *= t.shape[d];
  shape.push(rows);
  for (int d = t.rank - kept; d < t.rank; ++d) shape.push(t.shape[d]);
  if (t.numel() == 0) {
    view = t;
    make_row_major(view, shape);
    return true;
  }
  // Not by reshaped(), which might give other strides to the dimensions that are kept.
  std::int64_t run = 1, stride = 0;
  for (int d = t.rank - kept - 1; d >= 0; --d) {
    if (t.shape[d] == 1) continue;
    if (run == 1)
      stride = t.strides[d];
    else if (t.strides[d] != run * stride)
      return false;
    run *= t.shape[d];
  }
  Tensor v = t;
  v.rank = kept + 1;
  v.shape[0] = rows;
  v.strides[0] = stride;
  for (int d = 0; d < kept; ++d) {
    v.shape[d + 1] = t.shape[t.rank - kept + d];
    v.strides[d + 1] = t.strides[t.rank - kept + d];
  }
  view = v;
  return true;
}

Sizes broadcast(const Sizes& a, const Sizes& b) {
  Sizes s;
  s.count = std::max(a.count, b.count);
  for (int d = s.count - 1; d >= 0; --d) {
    const int i = d - (s.count - a.count), j = d - (s.count - b.count);
    const std::int64_t m = i >= 0 ? a[i] : 1, n = j >= 0 ? b[j] : 1;
    if (m != n && m != 1 && n != 1) [[unlikely]]
      throw Error("broadcast: " + text(a.values, a.count) + " and " + text(b.values, b.count));
    s[d] = m == 1 ? n : m;
  }
  return s;
}

}  // namespace strop::runtime
