"""Whether an installed strop works, by itself: the nine functions against the formulas, and what they say about errors.

    python -I tests/support/smoke.py

Needs torch and strop alone, so that it can be run where a wheel was installed and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import strop
import torch
from torch import Tensor


def policy_loss(family: str, policy: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio, d = (policy - old).exp(), ref - policy
    tokens = -torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
    tokens = (tokens + 0.1 * (d.exp() - d - 1)) * mask
    return (tokens.sum(1) / mask.sum(1)).mean() if family == "grpo_loss" else tokens.sum() / mask.sum()


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * mask).sum() / mask.sum()


def check_function(name: str, formula: Callable[..., Tensor], leaf: Tensor, *rest: Tensor) -> None:
    """Loss and gradient of a function's three variants against its formula in double precision."""
    exact = leaf.double().requires_grad_()
    want = formula(exact, *(t.double() for t in rest))
    want.backward()

    fused_loss, fused_grad = getattr(strop, name)(leaf, *rest)
    loss = getattr(strop, f"{name}_fwd")(leaf, *rest)
    given = leaf.clone().requires_grad_()
    differentiable = getattr(strop, f"{name}_autograd")(given, *rest)
    differentiable.backward()
    for got in (fused_loss, loss, differentiable):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    for grad in (fused_grad, given.grad):
        torch.testing.assert_close(grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def check_error(error: type[Exception], word: str, call: Callable[[], object]) -> None:
    try:
        call()
    except error as raised:
        assert word in str(raised), raised
    else:
        raise AssertionError(f"no {error.__name__} about {word}")


class Subclass(Tensor):
    """Only PyTorch's dispatcher understands it: calls take the way through torch.ops."""


def main() -> None:
    assert Path(strop.__file__).is_relative_to(sys.prefix), f"strop is from {strop.__file__}, not from {sys.prefix}"
    torch.manual_seed(7)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = torch.tensor([[37], [20], [1], [30]], device=device)
    mask = torch.arange(37, device=device) < lengths
    policy = -2 * torch.rand(4, 37, device=device)
    old, ref = (policy + 0.3 * torch.randn_like(policy) for _ in range(2))
    advantages = torch.randn(4, device=device)
    for name in ("grpo_loss", "bnpo_loss"):
        check_function(name, lambda *a, name=name: policy_loss(name, *a), policy, old, ref, advantages, mask)
    student = torch.randn(4, 37, 1003, device=device)
    check_function("reverse_kl", reverse_kl, student, student + torch.randn_like(student), mask)

    for t in (policy, policy.as_subclass(Subclass)):
        check_error(ValueError, "advantages", lambda t=t: strop.grpo_loss(t, old, ref, advantages[:3], mask))
        check_error(TypeError, "policy_logprobs", lambda t=t: strop.bnpo_loss(t.double(), old, ref, advantages, mask))
    # The exception itself, from the module's code through PyTorch's to Python.
    operator = torch.ops.strop.reverse_kl_fwd
    check_error(RuntimeError, "strop ValueError: teacher_logits", lambda: operator(student, student[:3], mask))
    print(f"strop {strop.__version__} works on {device}")


if __name__ == "__main__":
    main()
