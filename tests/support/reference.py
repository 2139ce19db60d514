"""The contract's formulas in plain PyTorch, differentiated by autograd.

`evaluate(case, torch.float64)` is the oracle. `evaluate(case, torch.float32)` is what a user would write: the inputs
upcast, the gradient arriving in the input's own dtype. Both leave masked tokens out before any arithmetic touches
them, because autograd turns 0 * NaN into NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from support.cases import Case, KlCase, PolicyCase


@dataclass(frozen=True)
class Result:
    loss: torch.Tensor
    grad: torch.Tensor | None


def advantages_2d(advantages: torch.Tensor) -> torch.Tensor:
    return advantages.unsqueeze(1) if advantages.dim() == 1 else advantages


def policy_loss(
    family: str,
    policy: torch.Tensor,
    old: torch.Tensor,
    ref: torch.Tensor | None,
    advantages: torch.Tensor,
    valid: torch.Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> torch.Tensor:
    """GRPO or BNPO in the dtype of its inputs; `valid` is a bool mask."""
    eps_high = eps if eps_high is None else eps_high
    zero = torch.zeros((), dtype=policy.dtype, device=policy.device)
    policy = torch.where(valid, policy, zero)
    old = torch.where(valid, old, zero)
    adv = torch.where(valid, advantages_2d(advantages), zero)
    ratio = torch.exp(policy - old)
    per_token = -torch.minimum(ratio * adv, torch.clamp(ratio, 1 - eps, 1 + eps_high) * adv)
    if beta != 0:
        diff = torch.where(valid, ref, zero) - policy
        per_token = per_token + beta * (torch.exp(diff) - diff - 1)
    m = valid.to(policy.dtype)
    if family == "grpo":
        rows = (per_token * m).sum(1) / m.sum(1).clamp(min=1)
        return rows.mean() if rows.numel() else rows.sum()
    return (per_token * m).sum() / m.sum().clamp(min=1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over valid rows of KL(student || teacher), in the dtype of its inputs; `valid` is a bool mask."""
    if valid.numel() == 0:
        return student.sum()
    zero = torch.zeros((), dtype=student.dtype, device=student.device)
    rows = valid.unsqueeze(-1)
    log_p = torch.log_softmax(torch.where(rows, student, zero), -1)
    log_q = torch.log_softmax(torch.where(rows, teacher, zero), -1)
    banned = log_p == -torch.inf  # p is 0 there, and 0 * (-inf - anything) would be NaN
    difference = torch.where(banned, zero, log_p) - torch.where(banned, zero, log_q)
    per_token = (torch.exp(log_p) * difference).sum(-1)
    m = valid.to(student.dtype)
    return (torch.where(valid, per_token, zero)).sum() / m.sum().clamp(min=1)


def evaluate(case: Case, dtype: torch.dtype) -> Result:
    """Loss and gradient of a case with the arithmetic in `dtype`.

    In float64 the gradient is left in float64; otherwise it has the dtype of the argument that it belongs to.
    """
    leaf = case.leaf.detach()
    leaf = (leaf.double() if dtype == torch.float64 else leaf.clone()).requires_grad_()
    if isinstance(case, PolicyCase):
        ref = None if case.ref is None or case.beta == 0 else case.ref.to(dtype)
        loss = policy_loss(
            case.family,
            leaf.to(dtype),
            case.old.to(dtype),
            ref,
            case.advantages.to(dtype),
            case.valid,
            case.beta,
            case.eps,
            case.eps_high,
        )
    else:
        assert isinstance(case, KlCase)
        loss = reverse_kl(leaf.to(dtype), case.teacher.to(dtype), case.valid)
    loss.backward()
    return Result(loss.detach(), leaf.grad)
