"""Fake and autograd registrations of the operators, which the extension module defines (bindings/torch/ops.cc)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._ops import add_op_namespace_prefix, ops

_library = torch.library.Library(add_op_namespace_prefix("").removesuffix("::"), "FRAGMENT")


def _fake_loss(like: Tensor) -> Tensor:
    return like.new_empty((), dtype=torch.float32)


def _fake_grad(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


_POLICY_TENSORS = ("policy_logprobs", "old_policy_logprobs", "ref_logprobs", "advantages", "completions_mask")
_KL_TENSORS = ("student_logits", "teacher_logits", "completions_mask")


def _check_devices(args: tuple[Any, ...]) -> None:
    """One meta tensor among others brings a call here, whose result would be without contents: an error instead."""
    names = _POLICY_TENSORS if len(args) > len(_KL_TENSORS) else _KL_TENSORS
    for name, tensor in zip(names, args, strict=False):
        if isinstance(tensor, Tensor) and tensor.device != args[0].device:
            raise ValueError(f"{name}: expected the device of {names[0]}, {args[0].device}, got {tensor.device}")


def _fake_fwd(*args: Any) -> Tensor:
    _check_devices(args)
    return _fake_loss(args[0])


def _fake_fused(*args: Any) -> tuple[Tensor, Tensor]:
    _check_devices(args)
    return _fake_loss(args[0]), _fake_grad(args[0])


for _name in ("grpo_loss_fwd", "bnpo_loss_fwd", "reverse_kl_fwd", "reverse_kl_"):
    torch.library.register_fake(add_op_namespace_prefix(_name), _fake_fwd, lib=_library)
for _name in ("grpo_loss", "bnpo_loss", "reverse_kl"):
    torch.library.register_fake(add_op_namespace_prefix(_name), _fake_fused, lib=_library)


# The gradient of a loss was computed with the loss; backward only scales it. That is an operator of its own so that
# differentiating it a second time is an error: the product rule alone would miss how the gradient depends on the input.
_library.define("scale_grad(Tensor grad, Tensor grad_output) -> Tensor")


def _scale_grad(grad: Tensor, grad_output: Tensor) -> Tensor:
    return grad * grad_output


def _no_double_backward(ctx: Any, grad_output: Tensor) -> None:
    raise RuntimeError("strop: the losses have no second derivative; double backward is not supported")


_library.impl("scale_grad", _scale_grad, "CompositeExplicitAutograd")
torch.library.register_autograd(add_op_namespace_prefix("scale_grad"), _no_double_backward, lib=_library)


def _save_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.n_inputs = len(inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (ops.scale_grad(grad, grad_loss), *([None] * (ctx.n_inputs - 1)))


for _name in ("grpo_loss", "bnpo_loss", "reverse_kl"):
    torch.library.register_autograd(add_op_namespace_prefix(_name), _backward, setup_context=_save_grad, lib=_library)
