"""The sum of one to three embeddings and its LayerNorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten
from ..registry import Rule

# The padding index, and what follows it, say how gradients are made; a model's forward does without.


def three(
    t0: Tensor, i0: Tensor, t1: Tensor, i1: Tensor, t2: Tensor, i2: Tensor, p0, p1, p2, g0, g1, g2, s0, s1, s2,
    shape, w: Tensor | None, b: Tensor | None, eps: float, cudnn,
):  # fmt: skip
    total = aten.add(aten.embedding(t0, i0, p0, g0, s0), aten.embedding(t1, i1, p1, g1, s1))
    total = aten.add(total, aten.embedding(t2, i2, p2, g2, s2))
    return aten.layer_norm(total, shape, w, b, eps, cudnn)


def two(
    t0: Tensor, i0: Tensor, t1: Tensor, i1: Tensor, p0, p1, g0, g1, s0, s1,
    shape, w: Tensor | None, b: Tensor | None, eps: float, cudnn,
):  # fmt: skip
    total = aten.add(aten.embedding(t0, i0, p0, g0, s0), aten.embedding(t1, i1, p1, g1, s1))
    return aten.layer_norm(total, shape, w, b, eps, cudnn)


def one(
    t0: Tensor, i0: Tensor, p0, g0, s0, shape, w: Tensor | None, b: Tensor | None, eps: float, cudnn
):  # fmt: skip
    return aten.layer_norm(aten.embedding(t0, i0, p0, g0, s0), shape, w, b, eps, cudnn)


def _fits(match: Match) -> bool | str:
    tables = [match.val(name) for name in ("t0", "t1", "t2") if name in match.values()]
    if len(match["shape"]) != 1:
        return "its norm is over more than the last dimension"
    if any(t.dim() != 2 or t.shape[1] != tables[0].shape[1] or t.dtype != tables[0].dtype for t in tables):
        return "its tables differ in width or dtype"
    return True


def _embed_norm(w: Any, b: Any, eps: float, t0: Any, i0: Any, t1=None, i1=None, t2=None, i2=None) -> Any:
    tables, ids = [t for t in (t0, t1, t2) if t is not None], [i for i in (i0, i1, i2) if i is not None]
    return ops.embed_norm(tables, ids, w, b, eps)


def rules() -> Iterator[Rule]:
    for pattern in (three, two, one):
        yield Rule("embedding with layer_norm", Pattern(pattern), _embed_norm, _fits)
