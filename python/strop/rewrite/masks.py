"""How the masks of transformers' models become one operation of a captured graph.

transformers builds the mask of an attention layer from a mask function, a closure that says for a batch entry, a query
and a key whether they meet, by some 23 operations. While a model is captured, the functions here stand in: they read
what the closure means and call `strop::attention_mask` once. What they cannot read is left to transformers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .ops import ops


@dataclass
class Kind:
    """What a mask function means; -1 is no bound."""

    left: int = -1
    right: int = -1


def _cells(function: Callable[..., Any]) -> dict[str, Any]:
    closure = getattr(function, "__closure__", None) or ()
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in closure), strict=True))


def _narrower(a: int, b: int) -> int:
    return max(a, b) if min(a, b) < 0 else min(a, b)


def read(function: Callable[..., Any]) -> Kind | None:
    """What a mask function of transformers.masking_utils means; None where it is another or has another form."""
    if getattr(function, "__module__", "") != "transformers.masking_utils" or not hasattr(function, "__code__"):
        return None
    cells = _cells(function)
    maker = function.__qualname__.partition(".")[0]
    if maker == "causal_mask_function":
        return Kind(right=0)
    if maker == "bidirectional_mask_function":
        return Kind()
    if maker == "sliding_window_overlay" and isinstance(cells.get("sliding_window"), int):
        return Kind(left=cells["sliding_window"] - 1)
    if maker == "sliding_window_bidirectional_overlay" and isinstance(cells.get("sliding_window"), int):
        return Kind(left=cells["sliding_window"], right=cells["sliding_window"])
    if maker == "and_masks" and "mask_functions" in cells:
        kinds = [read(part) for part in cells["mask_functions"]]
        kind = Kind()
        for part in kinds:
            if part is None:
                return None
            kind = Kind(_narrower(kind.left, part.left), _narrower(kind.right, part.right))
        return kind
    return None


@dataclass
class Seen:
    """What the hook did during a capture."""

    made: int = 0
    left: list[str] = field(default_factory=list)


def _make(
    seen: Seen,
    original: Callable[..., Any],
    additive: bool,
    batch_size: Any,
    q_length: Any,
    kv_length: Any,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> Tensor | None:
    kind = read(mask_function) if mask_function is not None else None
    offsets = isinstance(q_offset, (int, torch.SymInt)) and isinstance(kv_offset, (int, torch.SymInt))
    plain = attention_mask is None or (attention_mask.dim() == 2 and attention_mask.dtype == torch.bool)
    if kind is None or not offsets or not plain:
        name = getattr(mask_function, "__qualname__", repr(mask_function))
        seen.left.append(f"the mask by {name} is built by PyTorch: its form is not known here")
        return original(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **others,
        )
    if attention_mask is None and kind == Kind() and others.get("allow_is_bidirectional_skip", False):
        return None
    seen.made += 1
    device = attention_mask.device if attention_mask is not None else torch.device(others.get("device", "cpu"))
    mask = ops.attention_mask(
        attention_mask, batch_size, q_length, kv_length, q_offset, kv_offset, kind.left, kind.right, device=device
    )
    if not additive:
        return mask
    dtype = others.get("dtype", torch.float32)
    # Numbers would be tensors on the CPU that are copied at each call, which a CUDA graph cannot record.
    seen_by, hidden = (torch.full((), value, device=mask.device, dtype=dtype) for value in (0, torch.finfo(dtype).min))
    return torch.where(mask, seen_by, hidden)


@contextlib.contextmanager
def hooked() -> Iterator[Seen]:
    """transformers' masks by strop::attention_mask, for sdpa and for eager attention, within the block."""
    seen = Seen()
    module = sys.modules.get("transformers.masking_utils")
    if module is None:  # then no model of its is here
        yield seen
        return
    interface = module.ALL_MASK_ATTENTION_FUNCTIONS
    saved = dict(interface._local_mapping)
    for name, additive in (("sdpa", False), ("eager", True)):
        original = interface[name]
        if getattr(original, "__module__", "") != module.__name__:  # somebody's own
            continue

        def hook(*args: Any, _original: Any = original, _additive: bool = additive, **kwargs: Any) -> Tensor | None:
            return _make(seen, _original, _additive, *args, **kwargs)

        interface[name] = hook
    try:
        yield seen
    finally:
        interface._local_mapping.clear()
        interface._local_mapping.update(saved)
