"""GRPO loss against the same formula in plain PyTorch, for `kernels benchmark`.

fwd is the loss alone, fused the loss and its gradient in one pass; for the latter plain PyTorch runs autograd. It
computes in float32 whatever the inputs' dtype. `kernels` compares the loss by itself; the gradient is compared here.
"""

from __future__ import annotations

from functools import partialmethod

import torch
from kernels.benchmark import Benchmark

SHAPES = [(16, 1024), (32, 2048), (64, 4096), (128, 2781), (128, 8192)]  # sequences, tokens
if not torch.cuda.is_available():
    SHAPES = SHAPES[:3]
BETA, EPS = 0.1, 0.2


def plain_loss(policy, old, ref, advantages, mask):
    policy, old, ref, advantages = policy.float(), old.float(), ref.float(), advantages.float().unsqueeze(1)
    ratio = torch.exp(policy - old)
    per_token = -torch.minimum(ratio * advantages, ratio.clamp(1 - EPS, 1 + EPS) * advantages)
    distance = ref - policy
    per_token = per_token + BETA * (torch.exp(distance) - distance - 1)
    valid = mask.float()
    return ((per_token * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()


class GrpoLossFp32(Benchmark):
    seed = 0
    dtype = torch.float32
    tolerance = 2e-3  # of the gradient's norm: where a ratio is at a clip border, rounding decides which side it is on

    def draw(self, rows: int, tokens: int) -> None:
        old = -2 * torch.randn(rows, tokens, device=self.device).abs()
        policy, ref = (old + 0.2 * torch.randn_like(old) for _ in range(2))
        advantages = torch.randn(rows, device=self.device)
        mask = torch.ones(rows, tokens, device=self.device, dtype=torch.bool)
        self.inputs = (*(t.to(self.dtype) for t in (policy, old, ref, advantages)), mask)

    def fwd(self) -> None:
        self.out = self.kernel.grpo_loss_fwd(*self.inputs, beta=BETA, eps=EPS)

    def fused(self) -> None:
        self.out, self.grad = self.kernel.grpo_loss(*self.inputs, beta=BETA, eps=EPS)

    @torch.no_grad()
    def plain_fwd(self) -> torch.Tensor:
        return plain_loss(*self.inputs)

    def plain_fused(self) -> torch.Tensor:
        leaf = self.inputs[0].detach().requires_grad_()
        loss = plain_loss(leaf, *self.inputs[1:])
        (expected,) = torch.autograd.grad(loss, leaf)
        if self.grad is not None:  # once, in what is not timed
            error = (self.grad - expected).norm(dtype=torch.float32) / expected.norm(dtype=torch.float32)
            if not error < self.tolerance:
                raise RuntimeError(f"the gradient's relative error is {error:.1e}")
            self.grad = None
        return loss.detach()


class GrpoLossFp16(GrpoLossFp32):
    dtype = torch.float16


class GrpoLossBf16(GrpoLossFp32):
    dtype = torch.bfloat16
    tolerance = 1e-2


for rows, tokens in SHAPES:
    for variant in ("fwd", "fused"):
        workload = f"{variant}_{rows}x{tokens}"
        setattr(GrpoLossFp32, f"setup_{workload}", partialmethod(GrpoLossFp32.draw, rows, tokens))
        setattr(GrpoLossFp32, f"benchmark_{workload}", getattr(GrpoLossFp32, variant))
        setattr(GrpoLossFp32, f"verify_{workload}", getattr(GrpoLossFp32, f"plain_{variant}"))
