"""TRL's ``GRPOTrainer`` with strop's losses.

    from strop.integrations import trl as strop_trl

    strop_trl.patch()         # every GRPOTrainer; patch(trainer) for one
    ...
    strop_trl.unpatch()

The loss of ``loss_type="grpo"`` and ``"bnpo"`` then comes from :func:`strop.grpo_loss_autograd` and
:func:`strop.bnpo_loss_autograd`. All else stays TRL's: generation, rewards, log-probabilities, the logged metrics. A
setting that changes the loss into something strop does not compute is a ``ValueError`` that names it, and a TRL whose
loss has not been read for this module is a ``RuntimeError``: neither is ever trained with silently.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

import torch

from ..losses import bnpo_loss_autograd, grpo_loss_autograd

SUPPORTED = ("1.15", "1.16")  # TRL's minor versions whose _compute_loss is the one that _compute_loss below follows

_LOSSES = {"grpo": grpo_loss_autograd, "bnpo": bnpo_loss_autograd}
_of_trl: Any = None  # GRPOTrainer's own _compute_loss while the class is patched

T = TypeVar("T")


def patch(trainer_or_class: T | None = None) -> T:
    """Makes a GRPOTrainer compute its loss with strop.

    Args:
        trainer_or_class: a ``GRPOTrainer``, whose settings are looked at here and now; or its class or a subclass,
            whose trainers are looked at when they compute their first loss. ``trl.GRPOTrainer`` where None.

    Returns:
        What was patched. Patching twice is patching once.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: the installed TRL is none of ``SUPPORTED``.
        TypeError: no GRPOTrainer, or one that overrides ``_compute_loss``, which patching would switch off.
        ValueError: a setting of the trainer that strop's losses do not cover; the message names it.
    """
    global _of_trl
    base = _grpo_trainer()
    target, cls = _target(trainer_or_class, base)
    in_use = cls._compute_loss
    if in_use is not _compute_loss and in_use is not base._compute_loss:
        raise TypeError(f"trainer_or_class: {cls.__name__} overrides _compute_loss, so its loss is not GRPOTrainer's")
    if target is base:
        if in_use is not _compute_loss:
            _of_trl = in_use
            base._compute_loss = _compute_loss
    elif target is cls:
        cls._compute_loss = _compute_loss
    else:
        _check_settings(target)
        target._compute_loss = MethodType(_compute_loss, target)
    return target


def unpatch(trainer_or_class: T | None = None) -> T:
    """Undoes :func:`patch` of the same argument; without one to undo, does nothing. Returns what was unpatched."""
    global _of_trl
    base = _grpo_trainer()
    target, _ = _target(trainer_or_class, base)
    patched = vars(target).get("_compute_loss")
    if getattr(patched, "__func__", patched) is not _compute_loss:
        return target
    if target is base:
        base._compute_loss, _of_trl = _of_trl, None
    else:
        del target._compute_loss  # what it inherits is in use again
    return target


def _grpo_trainer() -> Any:
    supported = f"strop.integrations.trl supports trl {' and '.join(f'{v}.x' for v in SUPPORTED)}"
    try:
        import trl
    except ImportError as error:
        raise ImportError(f"{supported}; none is installed") from error
    if ".".join(trl.__version__.split(".")[:2]) not in SUPPORTED:
        raise RuntimeError(f"{supported}; installed is {trl.__version__}, whose loss may be another")
    return trl.GRPOTrainer


def _target(trainer_or_class: Any, base: Any) -> tuple[Any, Any]:
    target = base if trainer_or_class is None else trainer_or_class
    cls = target if isinstance(target, type) else type(target)
    if not issubclass(cls, base):
        raise TypeError(f"trainer_or_class: expected trl.GRPOTrainer, a subclass or an instance; got {cls.__name__}")
    return target, cls


def _check_settings(trainer: Any) -> None:
    """Everything that _compute_loss of TRL branches on, beyond the formula of docs/losses.md."""
    args = trainer.args
    uncovered = {
        "loss_type": trainer.loss_type not in _LOSSES and "set 'grpo' or 'bnpo'",
        "importance_sampling_level": trainer.importance_sampling_level != "token" and "set 'token'",
        "delta": args.delta is not None and "set None: there is no two-sided clipping",
        "top_entropy_quantile": trainer.top_entropy_quantile < 1.0 and "set 1.0: there is no entropy mask",
        "off_policy_mask_threshold": trainer.off_policy_mask_threshold is not None and "set None",
        "vllm_importance_sampling_correction": trainer.use_vllm
        and trainer.vllm_importance_sampling_correction
        and "set False, or use_vllm=False",
        "use_bias_correction_kl": trainer.beta != 0.0 and args.use_bias_correction_kl and "set False",
        "use_adaptive_entropy": trainer.use_adaptive_entropy and "set False: there is no entropy bonus",
        "entropy_coef": not trainer.use_adaptive_entropy
        and trainer._entropy_bonus_enabled
        and "set 0.0: there is no entropy bonus",
        "router_aux_loss_coef": trainer.aux_loss_enabled and "set 0.0: there is no loss for balancing experts",
    }
    for name, advice in uncovered.items():
        if advice:
            value = getattr(trainer, name, getattr(args, name, None))  # in use, which args may leave to the model
            raise ValueError(f"{name}: strop's loss does not cover {value!r}; {advice}, or unpatch()")


def _compute_loss(self: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """In place of GRPOTrainer._compute_loss: the same calls in the same order, collectives included."""
    _check_settings(self)  # each time, as a callback may change them
    completion_ids, completion_mask = inputs["completion_ids"], inputs["completion_mask"]
    mask = completion_mask if "tool_mask" not in inputs else completion_mask * inputs["tool_mask"]
    images = (
        *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
        *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
    )
    logps, entropies, _ = self._get_per_token_logps_and_entropies(
        model,
        torch.cat([inputs["prompt_ids"], completion_ids], dim=1),
        torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
        completion_ids.size(1),
        compute_entropy=True,
        compute_aux_loss=False,
        **{name: inputs.get(name) for name in images},
    )
    old_logps = inputs.get("old_per_token_logps")
    old_logps = logps.detach() if old_logps is None else old_logps  # on policy: the ratio is 1
    ref_logps = inputs["ref_per_token_logps"] if self.beta != 0.0 else None
    advantages = inputs["advantages"]
    loss = _LOSSES[self.loss_type](
        logps,
        old_logps,
        ref_logps,
        advantages if advantages.dim() == 1 else advantages.expand_as(logps),
        mask,
        beta=self.beta,
        eps=self.epsilon_low,
        eps_high=self.epsilon_high,
    )
    mode = "train" if self.model.training else "eval"
    if mode == "train":
        loss = loss / self.current_gradient_accumulation_steps
    with torch.no_grad():
        _log_metrics(self, self._metrics[mode], logps, old_logps, ref_logps, advantages, entropies, mask)
    return loss


def _log_metrics(
    trainer: Any,
    metrics: Any,
    logps: torch.Tensor,
    old_logps: torch.Tensor,
    ref_logps: torch.Tensor | None,
    advantages: torch.Tensor,
    entropies: torch.Tensor,
    mask: torch.Tensor,
) -> None:
    """What TRL logs of a loss, in its own arithmetic: the values are to be the same."""
    accelerator = trainer.accelerator
    single = logps.size(1) == 1  # TRL takes a single column for a value a sequence, and does not mask it

    def per_sequence(x: torch.Tensor) -> torch.Tensor:
        means = x.squeeze(1) if single else (x * mask).sum(-1) / mask.sum(-1)
        gathered = accelerator.gather(means)
        return gathered[~gathered.isnan()]

    def over_all(x: torch.Tensor) -> float:
        parts = (x.sum(), x.new_tensor(float(x.size(0)))) if single else ((x * mask).sum(), mask.sum().float())
        total, count = accelerator.reduce(torch.stack(parts), reduction="sum")
        return (total / count.clamp(min=1.0)).item()

    if ref_logps is not None:
        difference = ref_logps - logps
        metrics["kl"].append(over_all(difference.exp() - difference - 1))
    metrics["entropy"].append(over_all(entropies))

    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    ratio = torch.exp(logps - old_logps)
    low = (ratio < 1 - trainer.epsilon_low) & (advantages < 0)
    high = (ratio > 1 + trainer.epsilon_high) & (advantages > 0)
    for name, clipped in (("low_mean", low), ("high_mean", high), ("region_mean", low | high)):
        metrics[f"clip_ratio/{name}"].append(over_all(clipped.float()))
    for name, clipped, extreme in (("low_min", low, torch.min), ("high_max", high, torch.max)):
        values = per_sequence(clipped.float())
        metrics[f"clip_ratio/{name}"].append(extreme(values).item() if values.numel() else float("nan"))
