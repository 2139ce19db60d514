"""Experiment 005: what does a differentiable loss cost beyond the fused call, and where?

python lab/005-autograd/autograd_cost.py   (CUDA; wall clock with synchronisation, variants in turn, medians)
"""

import statistics
import time

import strop
import torch
from strop import losses
from torch.autograd.function import once_differentiable

B, T = 16, 1024
torch.manual_seed(0)
old = -2 * torch.randn(B, T, device="cuda").abs()
data = old + 0.2 * torch.randn_like(old)
ref = old + 0.2 * torch.randn_like(old)
adv = torch.randn(B, device="cuda")
mask = torch.ones(B, T, dtype=torch.bool, device="cuda")
policy = data.clone().requires_grad_()
rest = (old, ref, adv, mask)
C = losses._C


def fused_backward():
    policy.grad = None
    loss, grad = strop.grpo_loss(policy, *rest)
    policy.backward(grad)
    return loss


def fused_only():
    return strop.grpo_loss(policy, *rest)


def fused_c():
    return C.grpo_loss(policy, *rest, 0.1, 0.2, None)


def current():
    policy.grad = None
    loss = strop.grpo_loss_autograd(policy, *rest)
    loss.backward()
    return loss


class Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, fused, args):
        loss, ctx.grad = fused(first, *args)
        return loss

    @staticmethod
    def backward(ctx, g):
        grad = ctx.grad
        ctx.grad = None
        return grad.mul_(g), None, None


class PackedNoScale(Packed):
    @staticmethod
    def backward(ctx, g):
        grad = ctx.grad
        ctx.grad = None
        return grad, None, None


raw_apply = super(torch.autograd.Function, Packed).apply


def packed():
    policy.grad = None
    loss = Packed.apply(policy, C.grpo_loss, (*rest, 0.1, 0.2, None))
    loss.backward()
    return loss


def packed_raw():
    policy.grad = None
    loss = raw_apply(policy, C.grpo_loss, (*rest, 0.1, 0.2, None))
    loss.backward()
    return loss


def packed_no_scale():
    policy.grad = None
    loss = PackedNoScale.apply(policy, C.grpo_loss, (*rest, 0.1, 0.2, None))
    loss.backward()
    return loss


def apply_only():
    return Packed.apply(policy, C.grpo_loss, (*rest, 0.1, 0.2, None))


def engine_backward():
    policy.grad = None
    loss = Packed.apply(policy, C.grpo_loss, (*rest, 0.1, 0.2, None))
    torch.autograd.Variable._execution_engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    return loss


ONE = torch.ones((), device="cuda")


def given_one():
    policy.grad = None
    loss = Packed.apply(policy, C.grpo_loss, (*rest, 0.1, 0.2, None))
    loss.backward(ONE)
    return loss


saved_grad = strop.grpo_loss(policy, *rest)[1]


def backward_only():
    policy.grad = None
    policy.backward(saved_grad)


def dot():
    policy.grad = None
    loss, grad = C.grpo_loss(policy, *rest, 0.1, 0.2, None)
    s = torch.dot(policy.view(-1), grad.view(-1))
    s.data = loss
    s.backward()
    return s


def mul_():
    return saved_grad.mul_(ONE)


x = torch.zeros(1, device="cuda")


def add_():
    return x.add_(1)


VARIANTS = [add_, mul_, fused_only, fused_c, backward_only, fused_backward, current, packed, packed_raw, packed_no_scale, apply_only, engine_backward, given_one, dot]
times = {f: [] for f in VARIANTS}
for f in VARIANTS:
    for _ in range(30):
        f()
torch.cuda.synchronize()
for _ in range(400):
    for f in VARIANTS:
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        times[f].append(time.perf_counter() - start)
base = statistics.median(times[fused_backward])
print(torch.__version__, "trace_autograd_ops", hasattr(torch._dynamo.config, "trace_autograd_ops"))
for f in VARIANTS:
    m = statistics.median(times[f])
    print(f"{f.__name__:<20}{1e6 * m:8.1f} us  {m / base:5.2f} of fused_backward")
# Without waiting for the GPU: what the host pays.
for f in VARIANTS:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(500):
        f()
    host = (time.perf_counter() - start) / 500
    torch.cuda.synchronize()
    print(f"host only {f.__name__:<20}{1e6 * host:8.1f} us")
