// Elementwise operations that the framework's stable interface cannot express (PyTorch's Scalar arguments), or that
// cost less than a call of it. On the CPU alone, but for casts.
#include "runtime/ops.h"
#include "runtime/pointwise.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

// (a, b): tensors of one dtype that broadcast.
template <Pointwise kOp>
void pointwise(Call& call) {
  const Tensor &a = call.tensor(0), &b = call.tensor(1);
  if (a.device != DeviceType::kCpu || b.device != DeviceType::kCpu) throw Error("it is for the CPU");
  const Tensor out = call.make(0, a, a.dtype, broadcast(a.sizes(), b.sizes()));
  if (!pointwise_on_cpu(kOp, a, b, out))
    throw Error(std::string("it does not take ") + dtype_name(a.dtype) + " and " + dtype_name(b.dtype),
                StatusCode::kTypeError);
}

// (t, dtype): always a copy.
void cast(Call& call) {
  const Tensor& t = call.tensor(0);
  copy(call.host(), call.make(0, t, call.dtype(1), t.sizes()), t);
}

// (start, end, step, dtype)
void range(Call& call) {
  const std::int64_t start = call.integer(0), end = call.integer(1), step = call.integer(2);
  if (step == 0) throw Error("a step of 0");
  const std::int64_t distance = step > 0 ? end - start : start - end, pace = step > 0 ? step : -step;
  if (distance < 0) throw Error("an end before the start");
  const Tensor to = call.make(0, Tensor(), call.dtype(3), Sizes{(distance + pace - 1) / pace});
  if (!range_on_cpu(to, start, step)) throw Error(std::string("it does not make ") + dtype_name(to.dtype));
}

constexpr Op kOps[] = {
    {"cpu.add", &pointwise<Pointwise::kAdd>},
    {"cpu.sub", &pointwise<Pointwise::kSub>},
    {"cpu.mul", &pointwise<Pointwise::kMul>},
    {"cpu.range", &range},
    {"cast", &cast},
};

}  // namespace

std::span<const Op> pointwise_ops() { return kOps; }

}  // namespace strop::runtime
