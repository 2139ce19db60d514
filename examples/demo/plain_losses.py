"""GRPO and reverse KL in plain PyTorch, as one writes them without a library: what the demo holds strop against."""

from __future__ import annotations

import torch
from torch import Tensor


def grpo_loss(
    policy: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, beta: float, eps: float
) -> Tensor:
    ratio = torch.exp(policy - old)
    advantages = advantages.unsqueeze(1)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages)
    distance = ref - policy
    per_token = -surrogate + beta * (torch.exp(distance) - distance - 1)
    valid = mask.float()
    return ((per_token * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    student, teacher = student_logits.log_softmax(dim=-1), teacher_logits.log_softmax(dim=-1)
    per_token = (student.exp() * (student - teacher)).sum(dim=-1)
    valid = mask.float()
    return (per_token * valid).sum() / valid.sum().clamp(min=1)
