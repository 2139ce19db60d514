#include "runtime/ops.h"

namespace strop::runtime {

const Op* find_op(std::string_view name) {
  for (const std::span<const Op> family : {size_ops(), view_ops(), pointwise_ops(), norm_ops(), attention_ops(),
                                           linear_ops(), ragged_ops(), foreign_ops()}) {
    for (const Op& op : family)
      if (name == op.name) return &op;
  }
  return nullptr;
}

}  // namespace strop::runtime
