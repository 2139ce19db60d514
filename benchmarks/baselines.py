"""What strop's losses are compared with: the formulas as one writes them in PyTorch, run eagerly and compiled.

Half-precision inputs are upcast to float32 first, as everyone does who wants a usable loss; gradients come back in the
inputs' dtype. Both families of formulas are those of include/strop/losses.h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

EPS = 0.2

# The forward pass.


def policy_loss(
    policy: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, beta: float, per_sequence: bool
) -> Tensor:
    policy, old, advantages = policy.float(), old.float(), advantages.float().unsqueeze(1)
    ratio = torch.exp(policy - old)
    per_token = -torch.minimum(ratio * advantages, ratio.clamp(1 - EPS, 1 + EPS) * advantages)
    if beta != 0:
        distance = ref.float() - policy
        per_token = per_token + beta * (torch.exp(distance) - distance - 1)
    valid = mask.float()
    if per_sequence:
        return ((per_token * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()
    return (per_token * valid).sum() / valid.sum().clamp(min=1)


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    student = student.log_softmax(dim=-1, dtype=torch.float32)
    teacher = teacher.log_softmax(dim=-1, dtype=torch.float32)
    per_token = (student.exp() * (student - teacher)).sum(dim=-1)
    valid = mask.float()
    return (per_token * valid).sum() / valid.sum().clamp(min=1)


# Forward and backward written out by hand: nothing is left for autograd.


def policy_loss_written(
    policy: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, beta: float, per_sequence: bool
) -> tuple[Tensor, Tensor]:
    dtype = policy.dtype
    policy, old, advantages = policy.float(), old.float(), advantages.float().unsqueeze(1)
    ratio = torch.exp(policy - old)
    plain, clipped = ratio * advantages, ratio.clamp(1 - EPS, 1 + EPS) * advantages
    per_token, grad = -torch.minimum(plain, clipped), torch.where(plain <= clipped, -plain, 0.0)
    if beta != 0:
        distance = ref.float() - policy
        growth = torch.exp(distance)
        per_token, grad = per_token + beta * (growth - distance - 1), grad + beta * (1 - growth)
    valid = mask.float()
    if per_sequence:
        weight = valid / (valid.sum(dim=1, keepdim=True).clamp(min=1) * valid.shape[0])
    else:
        weight = valid / valid.sum().clamp(min=1)
    return (per_token * weight).sum(), (grad * weight).to(dtype)


def reverse_kl_written(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    dtype = student.dtype
    student = student.log_softmax(dim=-1, dtype=torch.float32)
    teacher = teacher.log_softmax(dim=-1, dtype=torch.float32)
    probability, difference = student.exp(), student - teacher
    per_token = (probability * difference).sum(dim=-1)
    valid = mask.float()
    weight = valid / valid.sum().clamp(min=1)
    grad = probability * (difference - per_token.unsqueeze(-1)) * weight.unsqueeze(-1)
    return (per_token * weight).sum(), grad.to(dtype)


# The three variants of a formula: `fwd` gives the loss, `fused` loss and gradient, `autograd` calls backward(). Where
# autograd is at work, the first argument is a leaf that requires grad: it is made once, outside what is timed, and
# torch.compile of PyTorch 2.11 cannot make one inside (`requires_grad_` ends its trace).


def with_grad(formula: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Loss and gradient of the first argument by autograd; it can be traced and compiled as a whole."""

    def fused(leaf: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        loss = formula(leaf, *rest)
        (grad,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), grad

    return fused


def with_backward(loss_function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Loss, and gradient by loss.backward(), as a training loop calls it."""

    def autograd(leaf: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        leaf.grad = None
        loss = loss_function(leaf, *rest)
        loss.backward()
        return loss, leaf.grad

    return autograd


def with_gradient_fed(fused: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The gradient comes with the loss and is fed to backward() by hand: what `*_autograd` is held against."""

    def autograd(leaf: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        leaf.grad = None
        loss, grad = fused(leaf, *rest)
        leaf.backward(grad)
        return loss, leaf.grad

    return autograd


def takes_leaf(kernel: str, impl: str) -> bool:
    """Whether this implementation's first argument requires grad."""
    variant = split(kernel)[1]
    return variant == "autograd" or (variant == "fused" and impl in ("eager", "compile_traced", "liger"))


def compiled(function: Callable) -> Callable:
    return torch.compile(function, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)


def liger_reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Liger's Jensen-Shannon kernel at beta = 1, which is reverse KL of log-probabilities; masked tokens by label."""
    from liger_kernel.transformers.functional import liger_jsd

    vocab = student.shape[-1]
    labels = torch.where(mask.flatten() != 0, 0, -100)
    student = student.log_softmax(dim=-1, dtype=torch.float32)
    teacher = teacher.log_softmax(dim=-1, dtype=torch.float32)
    return liger_jsd(student.view(-1, vocab), teacher.view(-1, vocab), labels, jsd_beta=1.0, ignore_index=-100)


class NotAvailable(Exception):
    """This implementation does not exist on this machine; the message says why."""


def applicable(kernel: str, impl: str) -> bool:
    """Whether there is such an implementation of the public function `kernel` at all."""
    family, variant = split(kernel)
    if impl == "liger":  # its policy losses start from logits, not from log-probabilities
        return family == "reverse_kl"
    if impl == "compile_written":  # a backward pass written by hand leaves autograd nothing to do
        return variant != "autograd"
    if impl == "compile_traced":  # without a backward pass the two compiled forms are one
        return variant != "fwd"
    return variant == "autograd" if impl == "fused_backward" else True


def build(kernel: str, impl: str, beta: float | None) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """A baseline of the public function `kernel`, taking its tensors; see `applicable` and `takes_leaf`."""
    family, variant = split(kernel)
    if family == "reverse_kl":
        formula, written = reverse_kl, reverse_kl_written
    else:
        options = {"beta": beta, "per_sequence": family == "grpo_loss"}
        formula, written = partial(policy_loss, **options), partial(policy_loss_written, **options)
    if impl in ("eager", "liger"):
        formula = liger_reverse_kl if impl == "liger" else formula
        variants = {"fwd": torch.no_grad()(formula), "fused": with_grad(formula), "autograd": with_backward(formula)}
        return variants[variant]
    if impl == "compile_written":
        return compiled(written if variant == "fused" else formula)
    if impl == "compile_traced":
        if variant == "autograd":
            return with_backward(compiled(formula))
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            raise NotAvailable("this PyTorch cannot trace torch.autograd.grad")
        torch._dynamo.config.trace_autograd_ops = True
        return compiled(with_grad(formula))
    raise ValueError(f"no implementation is called {impl!r}")


def split(kernel: str) -> tuple[str, str]:
    """Family and variant of a public function; the bare name is the fused variant."""
    for variant in ("fwd", "autograd"):
        if kernel.endswith("_" + variant):
            return kernel.removesuffix("_" + variant), variant
    return kernel, "fused"
