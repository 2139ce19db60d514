"""LayerNorm and RMSNorm, alone and of a sum: the residual of a layer. RMSNorm in the spellings of Llama and T5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten, same_shape
from ..registry import Rule


def layer_norm(x: Tensor, shape, w: Tensor | None, b: Tensor | None, eps: float, cudnn):
    return aten.layer_norm(x, shape, w, b, eps, cudnn)


def whole_rms_norm(x: Tensor, shape, w: Tensor | None, eps):
    return aten.rms_norm(x, shape, w, eps)


def _last_dimension(match: Match) -> bool | str:
    return len(match["shape"]) == 1 or "it is over more than the last dimension"


# ---- RMSNorm as it is spelled ---------------------------------------------------------------------------------------

_SQUARES: list[Callable[..., Any]] = [lambda x, two: aten.pow(x, two), lambda x, two: x * x]


def _scaled(x: Any, squares: Callable[..., Any], two: Any, eps: Any) -> Any:
    return x * aten.rsqrt(aten.mean(squares(x, two), [-1], True) + eps)


def _rms(squares: Callable[..., Any], weighted: bool) -> Callable[..., Any]:
    def one_dtype(x: Tensor, w: Tensor, eps: float, two: float):
        y = _scaled(x, squares, two, eps)
        return y * w if weighted else y

    return one_dtype


def _rms_in_float32(squares: Callable[..., Any]) -> Callable[..., Any]:
    def narrow(x: Tensor, w: Tensor, eps: float, two: float, wide: torch.dtype, dtype: torch.dtype):
        return aten._to_copy(_scaled(aten._to_copy(x, dtype=wide), squares, two, eps), dtype=dtype) * w

    return narrow


def _rms_fits(match: Match) -> bool | str:
    x = match.val("x")
    if match.values().get("two", 2) != 2:
        return f"the power is {match['two']}"
    if not x.is_floating_point() or match.values().get("dtype", x.dtype) != x.dtype:
        return f"the result's dtype is not {x.dtype}"
    if match.values().get("wide", torch.float32) != torch.float32:
        return "it is not computed in float32"
    if "w" in match.values():
        w = match.val("w")
        if w.dim() != 1 or w.shape[0] != x.shape[-1] or w.dtype != x.dtype:
            return "what it is multiplied by is not a weight for each column, of its dtype"
    return True


# ---- Of a sum -------------------------------------------------------------------------------------------------------


def _alike(match: Match) -> bool | str:
    x, r = match.val("x"), match.val("r")
    if x.dtype != r.dtype or not same_shape(x, r):
        return "what is added has another shape or dtype"
    return True


def layer_norm_of_sum(x: Tensor, r: Tensor, w, b, eps):
    return ops.layer_norm(aten.add(x, r), w, b, eps)


def layer_norm_and_sum(x: Tensor, r: Tensor, w, b, eps):
    total = aten.add(x, r)
    return ops.layer_norm(total, w, b, eps), total


def rms_norm_of_sum(x: Tensor, r: Tensor, w, eps):
    return ops.rms_norm(aten.add(x, r), w, eps)


def rms_norm_and_sum(x: Tensor, r: Tensor, w, eps):
    total = aten.add(x, r)
    return ops.rms_norm(total, w, eps), total


def _both(pair: Any) -> tuple[Any, Any]:
    return pair[0], pair[1]


def rules() -> Iterator[Rule]:
    plain = Pattern(layer_norm)
    yield Rule("layer_norm", plain, lambda x, w, b, eps: ops.layer_norm(x, w, b, eps), _last_dimension)
    # PyTorch's own takes the dtype's epsilon where none is given.
    yield Rule(
        "rms_norm", Pattern(whole_rms_norm), lambda x, w, eps: ops.rms_norm(x, w, eps),
        lambda match: _last_dimension(match) if isinstance(match["eps"], float) else "it has no eps",
    )  # fmt: skip
    for squares in _SQUARES:
        yield Rule("rms_norm", Pattern(_rms_in_float32(squares)), lambda x, w, eps: ops.rms_norm(x, w, eps), _rms_fits)
        yield Rule("rms_norm", Pattern(_rms(squares, True)), lambda x, w, eps: ops.rms_norm(x, w, eps), _rms_fits)
        yield Rule("rms_norm", Pattern(_rms(squares, False)), lambda x, eps: ops.rms_norm(x, None, eps), _rms_fits)
    yield Rule(
        "layer_norm with residual", Pattern(layer_norm_of_sum),
        lambda x, r, w, b, eps: ops.layer_norm(x, w, b, eps, r), _alike,
    )  # fmt: skip
    yield Rule(
        "layer_norm with residual", Pattern(layer_norm_and_sum),
        lambda x, r, w, b, eps: _both(ops.add_layer_norm(x, r, w, b, eps)), _alike,
    )  # fmt: skip
    yield Rule(
        "rms_norm with residual", Pattern(rms_norm_of_sum),
        lambda x, r, w, eps: ops.rms_norm(x, w, eps, r), _alike,
    )  # fmt: skip
    yield Rule(
        "rms_norm with residual", Pattern(rms_norm_and_sum),
        lambda x, r, w, eps: _both(ops.add_rms_norm(x, r, w, eps)), _alike,
    )  # fmt: skip
