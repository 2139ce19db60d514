"""Rotary embedding by halves: x · cos + rotate_half(x) · sin."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten, same_shape
from ..registry import Rule


def sliced(x: Tensor, cos: Tensor, sin: Tensor, half: int, end):
    first, second = aten.slice(x, -1, 0, half), aten.slice(x, -1, half, end)
    return x * cos + aten.cat([aten.neg(second), first], -1) * sin


def sliced_from_none(x: Tensor, cos: Tensor, sin: Tensor, half: int, end):
    first, second = aten.slice(x, -1, None, half), aten.slice(x, -1, half, end)
    return x * cos + aten.cat([aten.neg(second), first], -1) * sin


def chunked(x: Tensor, cos: Tensor, sin: Tensor):
    halves = aten.chunk(x, 2, -1)
    return x * cos + aten.cat([aten.neg(halves[1]), halves[0]], -1) * sin


def split(x: Tensor, cos: Tensor, sin: Tensor, half: int):
    halves = aten.split.Tensor(x, half, -1)
    return x * cos + aten.cat([aten.neg(halves[1]), halves[0]], -1) * sin


def _fits(match: Match) -> bool | str:
    x, out = match.val("x"), match.node.meta["val"]
    size = x.shape[-1]
    half, end = match.values().get("half", size // 2), match.values().get("end")
    if size % 2 or 2 * half != size or (end is not None and end < size):
        return "it does not turn two equal halves"
    if out.dtype != x.dtype or not same_shape(out, x):
        return "cos and sin are wider than what they turn"
    return True


def rules() -> Iterator[Rule]:
    for pattern in (sliced, sliced_from_none, chunked, split):
        yield Rule("rotary", Pattern(pattern), lambda x, cos, sin: ops.rotary(x, cos, sin), _fits)
