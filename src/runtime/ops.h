// The operations that a program may name. To add one: write a function of Call in the ops_<family>.cc that it belongs
// to, and a line in that file's table; python/strop/rewrite/lower.py says which nodes of a graph become it.
#pragma once

#include <span>
#include <string_view>

#include "runtime/frame.h"

namespace strop::runtime {

struct Op {
  const char* name;
  void (*run)(Call& call);  // throws Error
  bool views = false;       // its results may lie in the memory of its first argument
};

std::span<const Op> size_ops();
std::span<const Op> view_ops();
std::span<const Op> pointwise_ops();
std::span<const Op> norm_ops();
std::span<const Op> attention_ops();
std::span<const Op> linear_ops();
std::span<const Op> ragged_ops();
std::span<const Op> foreign_ops();

const Op* find_op(std::string_view name);  // null where there is none

}  // namespace strop::runtime
