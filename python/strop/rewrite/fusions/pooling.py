"""The mean of the tokens that a mask counts, as sentence-transformers and the model cards spell it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten
from ..registry import Rule

_WEIGHTS: dict[str, Callable[..., Any]] = {
    "unsqueezed, then float": lambda m, d: aten._to_copy(aten.unsqueeze(m, -1), dtype=d),
    "float, then unsqueezed": lambda m, d: aten.unsqueeze(aten._to_copy(m, dtype=d), -1),
    "unsqueezed": lambda m, d: aten.unsqueeze(m, -1),
}


def _expanded(before: bool) -> Callable[..., Any]:
    def weights(m: Any, d: Any, sizes: Any) -> Any:
        if before:
            return aten._to_copy(aten.expand(aten.unsqueeze(m, -1), sizes), dtype=d)
        return aten.expand(aten._to_copy(aten.unsqueeze(m, -1), dtype=d), sizes)

    return weights


def _pooled(weights: Callable[..., Any], bounded: Callable[..., Any]) -> Callable[..., Any]:
    def pattern(x: Tensor, mask: Tensor, dtype: torch.dtype, least: float, sizes: Any):
        w = weights(mask, dtype, sizes)
        return aten.sum(x * w, [1]) / bounded(aten.sum(w, [1]), least)

    return pattern


def _fits(match: Match) -> bool | str:
    x, mask, out = match.val("x"), match.val("mask"), match.node.meta["val"]
    if x.dim() != 3 or mask.dim() != 2:
        return "it is not over the tokens of a batch"
    if x.dtype != torch.float32 or out.dtype != x.dtype or match.values().get("dtype", x.dtype) != x.dtype:
        return "it mixes dtypes"
    return True


def rules() -> Iterator[Rule]:
    weights: list[Callable[..., Any]] = [_expanded(True), _expanded(False)]
    weights += [lambda m, d, sizes, f=f: f(m, d) for f in _WEIGHTS.values()]
    bounds: list[Callable[..., Any]] = [
        lambda s, least: aten.clamp(s, least),
        lambda s, least: aten.clamp_min(s, least),
    ]
    for w, bound in itertools.product(weights, bounds):
        yield Rule(
            "mean pooling", Pattern(_pooled(w, bound), "mean_pool"),
            lambda x, mask, least: ops.mean_pool(x, mask, least), _fits,
        )  # fmt: skip
