"""Reverse KL, from logits, against the same formula in plain PyTorch, for `kernels benchmark`.

fwd is the loss alone, fused the loss and its gradient in one pass; for the latter plain PyTorch runs autograd. It
computes in float32 whatever the inputs' dtype. `kernels` compares the loss by itself; the gradient is compared here.
"""

from __future__ import annotations

from functools import partialmethod

import torch
from kernels.benchmark import Benchmark

VOCABULARY = 248_320
SHAPES = [(1, 64), (2, 128), (4, 256), (8, 512), (8, 981), (8, 1024)]  # sequences, tokens
if not torch.cuda.is_available():
    SHAPES = [(1, 8), (1, 64)]


def plain_loss(student, teacher, mask):
    student = student.log_softmax(dim=-1, dtype=torch.float32)
    teacher = teacher.log_softmax(dim=-1, dtype=torch.float32)
    per_token = (student.exp() * (student - teacher)).sum(dim=-1)
    valid = mask.float()
    return (per_token * valid).sum() / valid.sum().clamp(min=1)


class ReverseKlBf16(Benchmark):  # no fp32: nine tensors of 8 GB for the largest shape in plain PyTorch
    seed = 0
    dtype = torch.bfloat16
    tolerance = 1e-2  # of the gradient's norm

    def draw(self, rows: int, tokens: int) -> None:
        shape, like = (rows, tokens, VOCABULARY), {"device": self.device, "dtype": self.dtype}
        student = 2 * torch.randn(shape, **like)
        teacher = student + torch.randn(shape, **like)
        self.inputs = (student, teacher, torch.ones(rows, tokens, device=self.device, dtype=torch.bool))

    def fwd(self) -> None:
        self.out = self.kernel.reverse_kl_fwd(*self.inputs)

    def fused(self) -> None:
        self.out, self.grad = self.kernel.reverse_kl(*self.inputs)

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


class ReverseKlFp16(ReverseKlBf16):
    dtype = torch.float16


for rows, tokens in SHAPES:
    for variant in ("fwd", "fused"):
        workload = f"{variant}_{rows}x{tokens}"
        setattr(ReverseKlBf16, f"setup_{workload}", partialmethod(ReverseKlBf16.draw, rows, tokens))
        setattr(ReverseKlBf16, f"benchmark_{workload}", getattr(ReverseKlBf16, variant))
        setattr(ReverseKlBf16, f"verify_{workload}", getattr(ReverseKlBf16, f"plain_{variant}"))
