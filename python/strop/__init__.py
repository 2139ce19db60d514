"""strop: fused kernels that make PyTorch transformers train and run faster.

Inference: :func:`optimize_model` rewrites a transformer into one that calls strop's operators, :func:`report` says what
came of it, :func:`restore` undoes it and :func:`replace_pattern` adds replacements of one's own. :func:`save_plan`
writes the result to a file that C++ programs run (strop/plan.h), :func:`load_plan` reads it.

Post-training losses, each as the loss alone (``*_fwd``), loss and gradient in one launch, and differentiable
(``*_autograd``): :func:`grpo_loss`, :func:`bnpo_loss`, :func:`reverse_kl`. They take CPU and CUDA tensors alike.
:func:`doctor` says what was built, what was found and which path each operation will take.
"""

from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (first: the extension finds libtorch_cpu.so by its name, once it is loaded)

from ._C import VERSION as __version__
from ._doctor import doctor
from .losses import (
    bnpo_loss,
    bnpo_loss_autograd,
    bnpo_loss_fwd,
    grpo_loss,
    grpo_loss_autograd,
    grpo_loss_fwd,
    reverse_kl,
    reverse_kl_autograd,
    reverse_kl_fwd,
)

if TYPE_CHECKING:
    from .rewrite import load_plan, optimize_model, replace_pattern, report, restore, save_plan

__all__ = [
    "__version__",
    "bnpo_loss",
    "bnpo_loss_autograd",
    "bnpo_loss_fwd",
    "doctor",
    "grpo_loss",
    "grpo_loss_autograd",
    "grpo_loss_fwd",
    "load_plan",
    "optimize_model",
    "replace_pattern",
    "report",
    "restore",
    "reverse_kl",
    "reverse_kl_autograd",
    "reverse_kl_fwd",
    "save_plan",
]


def __getattr__(name: str) -> Any:
    """Rewriting is imported when it is first used: the losses alone need not wait for it."""
    if name in ("load_plan", "optimize_model", "replace_pattern", "report", "restore", "save_plan"):
        try:
            from . import rewrite
        except ModuleNotFoundError as error:  # the Hub's copy
            raise ImportError(f"{name}: this copy of strop has the losses alone; the package has all of it") from error
        return getattr(rewrite, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
