"""Post-training losses: GRPO, BNPO and reverse KL.

Common to all nine functions: the arithmetic is fp32 whatever the inputs' dtype; the loss is a 0-dim float32 tensor, a
gradient has the dtype and shape of the argument it belongs to; masked tokens reach nothing, even where they hold NaN or
inf, and their gradient is exactly 0; results are bitwise the same from run to run; any strides are right, and unit
stride in the last dimension is fast. On CUDA the work goes to the current stream, in one kernel, without
synchronisation, and may be captured in a graph. Bad arguments raise ``TypeError`` or ``ValueError`` that name the
argument.

``f`` and ``f_fwd`` take no part in autograd; ``f_autograd`` does, and works under ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _C
from ._registrations import ops

_ERRORS = {"TypeError": TypeError, "ValueError": ValueError, "RuntimeError": RuntimeError}


def _dispatch(op: Callable[..., Any], *args: Any) -> Any:
    """Calls an operator; its errors, which the stable ABI carries as text, get their type back."""
    try:
        return op(*args)
    except RuntimeError as error:
        _, found, text = str(error).partition("strop ")
        kind, colon, message = text.partition(": ")
        if not found or not colon or kind not in _ERRORS:
            raise
        raise _ERRORS[kind](message.splitlines()[0]) from None


def _call(fast: Callable[..., Any], op: Callable[..., Any], first: Tensor, *args: Any) -> Any:
    """The eager fast path, or the dispatcher where it must see the call (compilation, subclasses, dispatch modes)."""
    if torch.compiler.is_compiling():
        return op(first.detach(), *args)
    result = fast(first, *args)
    if result is not NotImplemented:
        return result
    return _dispatch(op, first.detach() if first.requires_grad else first, *args)


# The cheapest differentiable call that eager mode has (lab/005-autograd): one argument beside the tensors, the gradient
# as an attribute rather than a saved tensor, and none of torch.autograd.Function.apply's and once_differentiable's
# Python on the usual path.
class _FusedLoss(torch.autograd.Function):
    """A loss whose gradient, a tensor that nobody else has, is computed with it: `call` gives both."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, call: Callable[..., tuple[Tensor, Tensor]], args: tuple[Any, ...]) -> Tensor:  # type: ignore[override]
        loss, ctx.grad = call(first, *args)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, None, None]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            return _once_scaled(ctx, grad_output), None, None
        return _scaled(ctx, grad_output), None, None


def _scaled(ctx: Any, grad_output: Tensor) -> Tensor:
    grad = ctx.grad
    if grad is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time: a loss gives its gradient away at the first. "
            "Specify retain_graph=True if you need to backward through it again."
        )
    # The graph is freed after this unless the caller keeps it: then the gradient's memory may be scaled in place,
    # which for logits saves gigabytes.
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return grad * grad_output
    ctx.grad = None
    return grad.mul_(grad_output)


_once_scaled = once_differentiable(_scaled)
_attach = super(torch.autograd.Function, _FusedLoss).apply


class _FusedLossInPlace(torch.autograd.Function):
    """The same where the gradient is the first tensor's memory: saved, so that autograd sees what others do to it."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., tuple[Tensor, Tensor]], first: Tensor, *args: Any) -> Tensor:  # type: ignore[override]
        loss, grad = call(first, *args)
        ctx.save_for_backward(grad)
        ctx.n_rest = len(args)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (ctx.grad,) = ctx.saved_tensors
        return (None, _scaled(ctx, grad_output), *([None] * ctx.n_rest))


def _differentiable(
    fused: Callable[..., tuple[Tensor, Tensor]],
    fwd: Callable[..., Tensor],
    op: Callable[..., Any],
    first: Tensor,
    *args: Any,
) -> Tensor:
    if torch.compiler.is_compiling():
        return op(first, *args)[0]
    if not isinstance(first, Tensor) or not first.requires_grad or not torch.is_grad_enabled():
        return fwd(first, *args)
    if type(first) is not Tensor and type(first) is not torch.nn.Parameter:
        return _dispatch(op, first, *args)[0]
    if torch._C._are_functorch_transforms_active():
        return _FusedLoss.apply(first, fused, args)  # says what it cannot do
    return _attach(first, fused, args)


def grpo_loss_fwd(
    policy_logprobs: Tensor,
    old_policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completions_mask: Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> Tensor:
    """GRPO loss: the mean over sequences of each sequence's mean over its valid tokens.

    With r = exp(policy - old), A the advantage and d = ref - policy, a token's loss is
    ``-min(r * A, clip(r, 1 - eps, 1 + eps_high) * A) + beta * (exp(d) - d - 1)`` (Shao et al. 2024, arXiv:2402.03300).

    Args:
        policy_logprobs: (B, T) float32, float16 or bfloat16.
        old_policy_logprobs: (B, T), any of the three dtypes.
        ref_logprobs: (B, T), any of the three. Not read, and may be None, where ``beta == 0``.
        advantages: (B,) or (B, T), any of the three.
        completions_mask: (B, T) bool, integer or float; non-zero means valid.
        beta: weight of the KL penalty towards the reference policy.
        eps: the ratio is clipped from below at ``1 - eps``.
        eps_high: and from above at ``1 + eps_high``; ``eps`` where None.

    Returns:
        The loss, 0-dim float32. No gradient flows through it.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    args = (policy_logprobs, old_policy_logprobs, ref_logprobs, advantages, completions_mask, beta, eps, eps_high)
    return _call(_C.grpo_loss_fwd, ops.grpo_loss_fwd, *args)


def grpo_loss(
    policy_logprobs: Tensor,
    old_policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completions_mask: Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> tuple[Tensor, Tensor]:
    """GRPO loss and its gradient in one launch; arguments as :func:`grpo_loss_fwd`.

    Returns:
        ``(loss, grad)``: grad is d loss / d policy_logprobs, (B, T), in its dtype, as PyTorch's autograd gives it for
        the formula. Feed it to ``policy_logprobs.backward(grad)``.
    """
    args = (policy_logprobs, old_policy_logprobs, ref_logprobs, advantages, completions_mask, beta, eps, eps_high)
    return _call(_C.grpo_loss, ops.grpo_loss, *args)


def grpo_loss_autograd(
    policy_logprobs: Tensor,
    old_policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completions_mask: Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> Tensor:
    """Differentiable GRPO loss; arguments as :func:`grpo_loss_fwd`.

    Returns:
        The loss, 0-dim float32; ``loss.backward()`` reaches policy_logprobs alone. The gradient is computed with the
        loss and scaled in backward. Double backward is an error.
    """
    args = (policy_logprobs, old_policy_logprobs, ref_logprobs, advantages, completions_mask, beta, eps, eps_high)
    return _differentiable(grpo_loss, grpo_loss_fwd, ops.grpo_loss, *args)


def bnpo_loss_fwd(
    policy_logprobs: Tensor,
    old_policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completions_mask: Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> Tensor:
    """BNPO loss: :func:`grpo_loss_fwd`'s token losses, averaged over all valid tokens of the batch at once.

    Arguments, result and errors as :func:`grpo_loss_fwd`.
    """
    args = (policy_logprobs, old_policy_logprobs, ref_logprobs, advantages, completions_mask, beta, eps, eps_high)
    return _call(_C.bnpo_loss_fwd, ops.bnpo_loss_fwd, *args)


def bnpo_loss(
    policy_logprobs: Tensor,
    old_policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completions_mask: Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> tuple[Tensor, Tensor]:
    """BNPO loss and its gradient in one launch; as :func:`grpo_loss`."""
    args = (policy_logprobs, old_policy_logprobs, ref_logprobs, advantages, completions_mask, beta, eps, eps_high)
    return _call(_C.bnpo_loss, ops.bnpo_loss, *args)


def bnpo_loss_autograd(
    policy_logprobs: Tensor,
    old_policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completions_mask: Tensor,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
) -> Tensor:
    """Differentiable BNPO loss; as :func:`grpo_loss_autograd`."""
    args = (policy_logprobs, old_policy_logprobs, ref_logprobs, advantages, completions_mask, beta, eps, eps_high)
    return _differentiable(bnpo_loss, bnpo_loss_fwd, ops.bnpo_loss, *args)


def reverse_kl_fwd(student_logits: Tensor, teacher_logits: Tensor, completions_mask: Tensor) -> Tensor:
    """Mean over valid tokens of KL(student || teacher) = sum_v p (log p - log q), p and q the softmaxes of the logits.

    A student logit of -inf (a banned token) contributes 0; a teacher logit of -inf where the student has mass makes the
    loss +inf (Gu et al. 2023, arXiv:2306.08543, for its use in distillation).

    Args:
        student_logits: (N, C, V) or (R, V) float32, float16 or bfloat16.
        teacher_logits: same shape, any of the three dtypes.
        completions_mask: (N, C) or (R,), bool, integer or float; non-zero means valid. Masked rows are not read.

    Returns:
        The loss, 0-dim float32. No gradient flows through it.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    return _call(_C.reverse_kl_fwd, ops.reverse_kl_fwd, student_logits, teacher_logits, completions_mask)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, completions_mask: Tensor, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """Reverse KL and its gradient in one launch; arguments as :func:`reverse_kl_fwd`.

    Args:
        inplace: the gradient takes the memory of student_logits, which autograd sees as a modification. A leaf that
            requires a gradient, and memory that several elements share, are a ValueError.

    Returns:
        ``(loss, grad)``: grad is d loss / d student_logits in its dtype and shape; with ``inplace`` it is
        student_logits itself.
    """
    if inplace:
        return _reverse_kl_in_place(student_logits, teacher_logits, completions_mask)
    return _call(_reverse_kl_out_of_place, ops.reverse_kl, student_logits, teacher_logits, completions_mask)


def _reverse_kl_out_of_place(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    return _C.reverse_kl(*tensors, False)


def _reverse_kl_in_place(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(student, Tensor) and student.requires_grad and student.is_leaf:
        raise ValueError(
            "student_logits: expected a tensor that is no leaf, or requires no gradient, for inplace=True; "
            "got a leaf that requires a gradient, whose value would be lost"
        )
    if torch.compiler.is_compiling():
        grad = student.detach()
        return ops.reverse_kl_(grad, teacher, mask), grad
    result = _C.reverse_kl(student, teacher, mask, True)
    if result is NotImplemented:
        grad = student.detach()  # shares memory and version counter
        return _dispatch(ops.reverse_kl_, grad, teacher, mask), grad
    if not student.is_inference():
        torch.autograd.graph.increment_version(student)
    return result[0], student.detach()


def reverse_kl_autograd(
    student_logits: Tensor, teacher_logits: Tensor, completions_mask: Tensor, inplace: bool = False
) -> Tensor:
    """Differentiable reverse KL; arguments as :func:`reverse_kl_fwd`.

    Args:
        inplace: the gradient, computed with the loss, takes the memory of student_logits until backward. An operation
            that saved the logits for its own backward will raise there. A leaf that requires a gradient, and memory
            that several elements share, are a ValueError. Under torch.compile, where memory is the compiler's to
            plan, it has no effect.

    Returns:
        The loss, 0-dim float32; ``loss.backward()`` reaches student_logits alone. Double backward is an error.
    """
    if not inplace or torch.compiler.is_compiling():
        return _differentiable(
            reverse_kl, reverse_kl_fwd, ops.reverse_kl, student_logits, teacher_logits, completions_mask
        )
    if not isinstance(student_logits, Tensor) or not student_logits.requires_grad or not torch.is_grad_enabled():
        return _reverse_kl_in_place(student_logits, teacher_logits, completions_mask)[0]
    if student_logits.is_leaf:
        _reverse_kl_in_place(student_logits, teacher_logits, completions_mask)  # raises
    return _FusedLossInPlace.apply(_reverse_kl_in_place, student_logits, teacher_logits, completions_mask)
