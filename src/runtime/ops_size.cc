// Sizes of tensors and what models compute of them, as Python's integers do.
#include <algorithm>

#include "runtime/ops.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

void size(Call& call) {
  const Tensor& t = call.tensor(0);
  const int d = dimension(call.integer(1), t.rank);
  if (t.rank == 0) throw Error("the size of a tensor without dimensions");
  call.set_int(0, t.shape[d]);
}

void floor_divide(Call& call) {
  const std::int64_t a = call.integer(0), b = call.integer(1);
  if (b == 0) throw Error("division by zero");
  call.set_int(0, a / b - (a % b != 0 && (a < 0) != (b < 0)));
}

void modulo(Call& call) {
  const std::int64_t a = call.integer(0), b = call.integer(1);
  if (b == 0) throw Error("division by zero");
  const std::int64_t rest = a % b;
  call.set_int(0, rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

template <class F>
void with_two(Call& call, F&& f) {
  const Value a = call.value_of(call.operand(0)), b = call.value_of(call.operand(1));
  if (a.kind == Value::Kind::kNone || b.kind == Value::Kind::kNone) throw Error("None is no number");
  if (a.kind == Value::Kind::kDouble || b.kind == Value::Kind::kDouble)
    call.set_double(0, f(a.real, b.real));
  else
    call.set_int(0, f(a.integer, b.integer));
}

template <class F>
void compare(Call& call, F&& f) {
  call.set_bool(0, f(call.integer(0), call.integer(1)));
}

constexpr Op kOps[] = {
    {"size", &size},
    {"int.floordiv", &floor_divide},
    {"int.mod", &modulo},
    {"int.add", [](Call& c) { with_two(c, [](auto a, auto b) { return a + b; }); }},
    {"int.sub", [](Call& c) { with_two(c, [](auto a, auto b) { return a - b; }); }},
    {"int.mul", [](Call& c) { with_two(c, [](auto a, auto b) { return a * b; }); }},
    {"int.min", [](Call& c) { with_two(c, [](auto a, auto b) { return std::min(a, b); }); }},
    {"int.max", [](Call& c) { with_two(c, [](auto a, auto b) { return std::max(a, b); }); }},
    {"int.neg", [](Call& c) { c.set_int(0, -c.integer(0)); }},
    {"int.float", [](Call& c) { c.set_double(0, c.real(0)); }},
    {"int.eq", [](Call& c) { compare(c, [](auto a, auto b) { return a == b; }); }},
    {"int.ne", [](Call& c) { compare(c, [](auto a, auto b) { return a != b; }); }},
    {"int.lt", [](Call& c) { compare(c, [](auto a, auto b) { return a < b; }); }},
    {"int.le", [](Call& c) { compare(c, [](auto a, auto b) { return a <= b; }); }},
    {"int.gt", [](Call& c) { compare(c, [](auto a, auto b) { return a > b; }); }},
    {"int.ge", [](Call& c) { compare(c, [](auto a, auto b) { return a >= b; }); }},
};

}  // namespace

std::span<const Op> size_ops() { return kOps; }

}  // namespace strop::runtime
