// What the host runs.
#include "runtime/ops.h"

namespace strop::runtime {
namespace {

void call_host(Call& call) { check(call.host().call(*call.instruction().foreign, call)); }

constexpr Op kOps[] = {
    {"call", &call_host},
    {"python", &call_host},
};

}  // namespace

std::span<const Op> foreign_ops() { return kOps; }

}  // namespace strop::runtime
