"""The nine functions behind one call, so that a test of a common property is written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import strop
import torch

from support.cases import Case
from support.reference import Result


@dataclass(frozen=True)
class Function:
    family: str  # grpo, bnpo, reverse_kl
    variant: str  # fwd, fused, autograd

    @property
    def name(self) -> str:
        base = self.family if self.family == "reverse_kl" else f"{self.family}_loss"
        return base if self.variant == "fused" else f"{base}_{self.variant}"

    def __str__(self) -> str:
        return self.name

    @property
    def is_policy(self) -> bool:
        return self.family != "reverse_kl"

    @property
    def function(self) -> Callable[..., Any]:
        return getattr(strop, self.name)

    def raw(self, case: Case, **extra: Any) -> Any:
        """The function on the case's arguments, whatever it returns."""
        return self.function(*case.args(), **case.kwargs(), **extra)

    def __call__(self, case: Case, **extra: Any) -> Result:
        """Loss and, where the variant has one, the gradient."""
        if self.variant == "fwd":
            return Result(self.raw(case, **extra), None)
        if self.variant == "fused":
            return Result(*self.raw(case, **extra))
        leaf = case.leaf.detach().requires_grad_()
        loss = self.raw(case.replace(**{case.LEAF: leaf}), **extra)
        loss.backward()
        return Result(loss.detach(), leaf.grad)


FAMILIES = ("grpo", "bnpo", "reverse_kl")
NINE = [Function(family, variant) for family in FAMILIES for variant in ("fwd", "fused", "autograd")]
FORWARD = [f for f in NINE if f.variant == "fwd"]
FUSED = [f for f in NINE if f.variant == "fused"]
AUTOGRAD = [f for f in NINE if f.variant == "autograd"]
WITH_GRADIENT = [f for f in NINE if f.variant != "fwd"]


def bitwise_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, NaN included; dtype and shape as well."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(bits), b.to(a.device).contiguous().view(bits))


def same(a: Result, b: Result) -> bool:
    """Bitwise the same loss and gradient."""
    if (a.grad is None) != (b.grad is None):
        return False
    return bitwise_equal(a.loss, b.loss) and (a.grad is None or bitwise_equal(a.grad, b.grad))
