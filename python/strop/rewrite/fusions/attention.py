"""Attention: PyTorch's own operation, its spelling by matmul and softmax, and the mask of `strop::attention_mask`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten, same_size
from ..registry import Rule


def _shapes_fit(match: Match, q: Tensor, k_heads: Any, v: Tensor) -> bool | str:
    if q.dim() != 4 or v.dim() != 4:
        return f"queries have {q.dim()} dimensions, not batch, heads, length and size"
    if not same_size(q.shape[0], v.shape[0]):
        return "queries and values differ in their batch"
    if not (same_size(q.shape[1], v.shape[1]) and same_size(q.shape[1], k_heads)) and not match.values().get("grouped"):
        return "queries, keys and values differ in their heads"
    mask = match.values().get("mask")
    if mask is not None:
        mask = match.val("mask")
        if mask.dtype not in (torch.bool, q.dtype):
            return f"the mask is {mask.dtype}, queries are {q.dtype}"
        if mask.dim() > 4:
            return "the mask has more than four dimensions"
    return True


# ---- scaled_dot_product_attention -----------------------------------------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout, causal: bool, scale, grouped: bool):
    return aten.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped)


def _sdpa_fits(match: Match) -> bool | str:
    if match["dropout"] != 0:
        return "it has dropout"
    return _shapes_fit(
        match, match.val("q"), match.val("k").shape[1] if match.val("k").dim() == 4 else 0, match.val("v")
    )


def _from_sdpa(q, k, v, mask, causal, scale):
    return ops.attention(q, k, v, mask, None, scale, -1, 0 if causal else -1)


# ---- matmul, softmax, matmul ----------------------------------------------------------------------------------------
# Keys come as keysᵀ, however that was made of them; the replacement transposes back, which costs nothing.

_PRODUCTS: dict[str, tuple[Callable[..., Any], Callable[[float], float]]] = {
    "scores * scale": (lambda q, kt, s: aten.mul(aten.matmul(q, kt), s), lambda s: s),
    "scores / scale": (lambda q, kt, s: aten.div(aten.matmul(q, kt), s), lambda s: 1 / s),
    "queries * scale": (lambda q, kt, s: aten.matmul(aten.mul(q, s), kt), lambda s: s),
    "queries / scale": (lambda q, kt, s: aten.matmul(aten.div(q, s), kt), lambda s: 1 / s),
    "keys * scale": (lambda q, kt, s: aten.matmul(q, aten.mul(kt, s)), lambda s: s),
    "keys / scale": (lambda q, kt, s: aten.matmul(q, aten.div(kt, s)), lambda s: 1 / s),
    "no scale": (lambda q, kt, s: aten.matmul(q, kt), lambda s: s),
}
_MASKS: dict[str, Callable[..., Any]] = {
    "two masks": lambda scores, mask, bias: aten.add(aten.add(scores, bias), mask),
    "mask": lambda scores, mask, bias: aten.add(scores, mask),
    "no mask": lambda scores, mask, bias: scores,
}


def _eager(product: Callable[..., Any], masked: Callable[..., Any]) -> Callable[..., Any]:
    def eager(q: Tensor, kt: Tensor, v: Tensor, s: float, mask: Tensor, bias: Tensor, dtype: Any):
        return aten.matmul(aten.softmax(masked(product(q, kt, s), mask, bias), -1, dtype), v)

    return eager


def _eager_fits(match: Match) -> bool | str:
    q, kt = match.val("q"), match.val("kt")
    if match["dtype"] not in (None, torch.float32, q.dtype):
        return f"its softmax is in {match['dtype']}"
    for name in ("mask", "bias"):
        if name in match.values() and match.val(name).dtype != q.dtype:
            return f"the {name} is {match.val(name).dtype}, queries are {q.dtype}"
    if match.val("v").dtype != q.dtype:
        return "queries and values differ in their dtype"
    return _shapes_fit(match, q, kt.shape[1] if kt.dim() == 4 else 0, match.val("v"))


def _from_eager(scale: Callable[[float], float]) -> Callable[..., Any]:
    def replacement(q, kt, v, s=1.0, mask=None, bias=None):
        both = mask if bias is None else aten.add.Tensor(bias, mask)
        return ops.attention(q, aten.transpose.int(kt, -1, -2), v, both, None, float(scale(s)))

    return replacement


# ---- Masks ----------------------------------------------------------------------------------------------------------


def masked(q, k, v, scale, padding, batch, queries, keys, offset, left: int, right: int, device, own: int):
    mask = ops.attention_mask(padding, batch, queries, keys, offset, 0, left, right, device=device)
    return ops.attention(q, k, v, mask, None, scale, -1, own)


def _windows_fit(match: Match) -> bool | str:
    """is_causal counts from the first query, whatever the mask's offset."""
    return match["own"] == -1 or match["offset"] == 0 or "causal and a mask with an offset"


def _from_masked(q, k, v, scale, padding, offset, left, right, own):
    right = max(right, own) if min(right, own) < 0 else min(right, own)
    return ops.attention(q, k, v, None, padding, scale, left, right, offset)


def twice(x, a: int, b: int):
    return aten.transpose(aten.transpose(x, a, b), a, b)


def rules() -> Iterator[Rule]:
    yield Rule("attention", Pattern(sdpa), _from_sdpa, _sdpa_fits)
    for (product, (scores, scale)), (mask, add) in itertools.product(_PRODUCTS.items(), _MASKS.items()):
        pattern = Pattern(_eager(scores, add), f"attention ({product}, {mask})")
        yield Rule("attention", pattern, _from_eager(scale), _eager_fits)
    yield Rule("attention mask", Pattern(masked), _from_masked, _windows_fit, shared=True)
    yield Rule("transposed twice", Pattern(twice), lambda x: x, shared=True)
