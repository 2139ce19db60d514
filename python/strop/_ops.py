"""Fake and autograd registrations of ``torch.ops.strop``; the extension module defines it (bindings/torch/ops.cc)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop import _C  # noqa: F401  (loading it defines the operators)

NAMESPACE = "strop"
ops = getattr(torch.ops, NAMESPACE)

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def _fake_loss(like: Tensor) -> Tensor:
    return like.new_empty((), dtype=torch.float32)


def _fake_grad(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _check_devices(first: Tensor, args: tuple[Any, ...]) -> None:
    """One meta tensor among others brings a call here, whose result would be without contents: an error instead."""
    for i, other in enumerate(args, 2):
        if isinstance(other, Tensor) and other.device != first.device:
            raise ValueError(f"argument {i}: expected the first one's device, {first.device}, got {other.device}")


def _fake_fwd(first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    _check_devices(first, args)
    return _fake_loss(first)


def _fake_fused(first: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    _check_devices(first, args)
    return _fake_loss(first), _fake_grad(first)


for _name in ("grpo_loss_fwd", "bnpo_loss_fwd", "reverse_kl_fwd", "reverse_kl_"):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake_fwd, lib=_library)
for _name in ("grpo_loss", "bnpo_loss", "reverse_kl"):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake_fused, lib=_library)


# The gradient of a loss was computed with the loss; backward only scales it. That is an operator of its own so that
# differentiating it a second time is an error: the product rule alone would miss how the gradient depends on the input.
_library.define("scale_grad(Tensor grad, Tensor grad_output) -> Tensor")


def _scale_grad(grad: Tensor, grad_output: Tensor) -> Tensor:
    return grad * grad_output


def _no_double_backward(ctx: Any, grad_output: Tensor) -> None:
    raise RuntimeError("strop: the losses have no second derivative; double backward is not supported")


_library.impl("scale_grad", _scale_grad, "CompositeExplicitAutograd")
torch.library.register_autograd(f"{NAMESPACE}::scale_grad", _no_double_backward, lib=_library)


def _save_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.n_inputs = len(inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (ops.scale_grad(grad, grad_loss), *([None] * (ctx.n_inputs - 1)))


for _name in ("grpo_loss", "bnpo_loss", "reverse_kl"):
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_save_grad, lib=_library)
