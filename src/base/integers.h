// Lengths, positions and ids: int32 or int64 of any stride.
#pragma once

#include <cstdint>

#include "strop/tensor_view.h"

namespace strop {

struct Integers {
  const void* data = nullptr;  // null where there are none
  std::int64_t stride = 1;
  bool wide = false;  // int64, else int32

  constexpr std::int64_t at(std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i * stride]
                : static_cast<const std::int32_t*>(data)[i * stride];
  }
  constexpr int bytes() const { return wide ? 8 : 4; }
};

// Of a view of one dimension that is one or the other, or none.
inline Integers integers(const TensorView& view) {
  return view.data == nullptr ? Integers{} : Integers{view.data, view.strides[0], view.dtype == DType::kInt64};
}

}  // namespace strop
