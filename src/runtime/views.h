// Views: other shapes of the same memory, computed without touching it. They follow PyTorch, dimensions counted from
// the end included; what PyTorch refuses throws Error.
#pragma once

#include <cstdint>

#include "runtime/tensor.h"

namespace strop::runtime {

// A dimension counted from either end as one from the front.
int dimension(std::int64_t dim, int rank);

void make_row_major(Tensor& t, const Sizes& shape);

Tensor transpose(const Tensor& t, std::int64_t a, std::int64_t b);
Tensor permute(const Tensor& t, const Sizes& order);
Tensor unsqueeze(const Tensor& t, std::int64_t dim);
Tensor squeeze(const Tensor& t);
Tensor squeeze(const Tensor& t, const Sizes& dims);
// -1 keeps a size.
Tensor expand(const Tensor& t, const Sizes& shape);
Tensor select(const Tensor& t, std::int64_t dim, std::int64_t index);
// Ends outside of the tensor are cut, as in Python.
Tensor slice(const Tensor& t, std::int64_t dim, std::int64_t start, std::int64_t end, std::int64_t step);

// A shape of as many elements, in which one size may be -1.
Sizes resolved(const Sizes& shape, std::int64_t elements);
// Whether the elements in their order can be seen in another shape without a copy, and if so, how.
bool reshaped(const Tensor& t, const Sizes& shape, Tensor& view);

// All dimensions but the last `kept` as one; false where strides do not allow it.
bool flattened(const Tensor& t, int kept, Tensor& view);

// The shape that two broadcast to.
Sizes broadcast(const Sizes& a, const Sizes& b);

}  // namespace strop::runtime
