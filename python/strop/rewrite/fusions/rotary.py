"""Rotary embedding by halves: x · cos + rotate_half(x) · sin, in x's dtype or in float32 and then rounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten, same_shape
from ..registry import Rule


def _sliced(x: Any, half: Any, end: Any) -> Any:
    return aten.slice(x, -1, 0, half), aten.slice(x, -1, half, end)


def _sliced_from_none(x: Any, half: Any, end: Any) -> Any:
    return aten.slice(x, -1, None, half), aten.slice(x, -1, half, end)


def _turned(x: Any, first: Any, second: Any, cos: Any, sin: Any) -> Any:
    return x * cos + aten.cat([aten.neg(second), first], -1) * sin


def sliced(x: Tensor, cos: Tensor, sin: Tensor, half: int, end):
    return _turned(x, *_sliced(x, half, end), cos, sin)


def sliced_from_none(x: Tensor, cos: Tensor, sin: Tensor, half: int, end):
    return _turned(x, *_sliced_from_none(x, half, end), cos, sin)


def chunked(x: Tensor, cos: Tensor, sin: Tensor):
    halves = aten.chunk(x, 2, -1)
    return _turned(x, halves[0], halves[1], cos, sin)


def split(x: Tensor, cos: Tensor, sin: Tensor, half: int):
    halves = aten.split.Tensor(x, half, -1)
    return _turned(x, halves[0], halves[1], cos, sin)


def sliced_in_float32(x: Tensor, cos: Tensor, sin: Tensor, half: int, end, wide: torch.dtype, dtype: torch.dtype):
    halves = _sliced(aten._to_copy(x, dtype=wide), half, end)
    return aten._to_copy(_turned(aten._to_copy(x, dtype=wide), *halves, cos, sin), dtype=dtype)


def sliced_from_none_in_float32(
    x: Tensor, cos: Tensor, sin: Tensor, half: int, end, wide: torch.dtype, dtype: torch.dtype
):
    halves = _sliced_from_none(aten._to_copy(x, dtype=wide), half, end)
    return aten._to_copy(_turned(aten._to_copy(x, dtype=wide), *halves, cos, sin), dtype=dtype)


def chunked_in_float32(x: Tensor, cos: Tensor, sin: Tensor, wide: torch.dtype, dtype: torch.dtype):
    halves = aten.chunk(aten._to_copy(x, dtype=wide), 2, -1)
    return aten._to_copy(_turned(aten._to_copy(x, dtype=wide), halves[0], halves[1], cos, sin), dtype=dtype)


def split_in_float32(x: Tensor, cos: Tensor, sin: Tensor, half: int, wide: torch.dtype, dtype: torch.dtype):
    halves = aten.split.Tensor(aten._to_copy(x, dtype=wide), half, -1)
    return aten._to_copy(_turned(aten._to_copy(x, dtype=wide), halves[0], halves[1], cos, sin), dtype=dtype)


def _fits(match: Match) -> bool | str:
    x, out = match.val("x"), match.node.meta["val"]
    size = x.shape[-1]
    half, end = match.values().get("half", size // 2), match.values().get("end")
    if size % 2 or 2 * half != size or (end is not None and end < size):
        return "it does not turn two equal halves"
    if match.values().get("wide", torch.float32) != torch.float32:
        return "it is not computed in float32"
    if out.dtype != x.dtype or not same_shape(out, x):
        return "cos and sin are wider than what they turn"
    return True


def rules() -> Iterator[Rule]:
    in_float32 = (sliced_in_float32, sliced_from_none_in_float32, chunked_in_float32, split_in_float32)
    for pattern in (*in_float32, sliced, sliced_from_none, chunked, split):
        yield Rule("rotary", Pattern(pattern), lambda x, cos, sin: ops.rotary(x, cos, sin), _fits)
