"""A linear layer's result added to something, where no norm has taken the sum."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten, same_shape
from ..registry import Rule


def linear_and_sum(x: Tensor, w: Tensor, b: Tensor | None, activation: str, r: Tensor):
    return aten.add(ops.linear_act(x, w, b, activation), r)


def _alike(match: Match) -> bool | str:
    out, r = match.node.meta["val"], match.val("r")
    if out.dtype != r.dtype or not same_shape(out, r):
        return "what is added has another shape or dtype"
    return True


def rules() -> Iterator[Rule]:
    yield Rule(
        "linear with residual", Pattern(linear_and_sum),
        lambda x, w, b, activation, r: ops.linear_act(x, w, b, activation, r), _alike,
    )  # fmt: skip
