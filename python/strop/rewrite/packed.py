"""Runs the graphs of strop/rewrite/ragged.py: packs the real tokens of a call, and gives the padded layout back."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .graphs import Graphs, bucket
from .ops import ops
from .ragged import Layout, Pack, Ragged

Body = Callable[..., Any]  # (*packed, cu, first, longest) → rows


@dataclass
class Tokens:
    """Where the real tokens of a batch are."""

    batch: int
    length: int
    count: int
    longest: int
    cu: Tensor  # int32 (batch + 1): tokens before each sequence
    rows: Tensor | None  # int32: each token's place in the padded layout; None where every place has one
    where: Tensor | None  # int32 (batch · length): each place's token, or -1
    clamped: bool = False  # a sequence without tokens may begin behind the last one

    @property
    def first(self) -> Tensor:
        """int32 (batch): each sequence's first token."""
        first = self.cu[:-1]
        return first.clamp(max=self.count - 1) if self.clamped else first


class Starts:
    """cu of batches without padding, which depends on their sizes alone."""

    MOST = 256

    def __init__(self) -> None:
        self.known: OrderedDict[Any, Tensor] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, batch: int, length: int, device: torch.device) -> Tensor:
        key = (batch, length, device)
        with self.lock:
            found = self.known.get(key)
            if found is None:
                cu = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=device)
                found = self.known[key] = cu
                if len(self.known) > self.MOST:
                    self.known.popitem(last=False)
            else:
                self.known.move_to_end(key)
        return found


_starts = Starts()


def locate(ragged: Ragged, tensors: Mapping[str, Tensor]) -> Tokens | None:
    """Where a call's real tokens are; None where it needs the padded layout."""
    first_input = next(iter(tensors.values()))
    batch, length = first_input.shape[:2]
    mask = tensors.get(ragged.mask) if ragged.mask is not None else None
    if mask is not None:
        if mask.shape[0] != batch:  # one mask for all sequences
            mask = mask.expand(batch, length)
        cu, rows, where, summary = ops.token_index(mask)
        count, longest, without_first, with_holes = summary.tolist()
        if count == 0 or (without_first and ragged.wants_first) or (with_holes and ragged.wants_whole):
            return None
        if count < batch * length:
            return Tokens(batch, length, count, longest, cu, rows[:count], where, bool(without_first))
    cu = _starts(batch, length, first_input.device)
    return Tokens(batch, length, batch * length, length, cu, None, None)


def rows_of(value: Tensor, how: Pack, tokens: Tokens) -> Tensor:
    """An output of `before` with the dimensions that rows are taken of in front: batch and length, or length alone."""
    layout = how.layout
    assert layout is not None and layout.l is not None
    if not how.batched:  # a length dimension behind a batch dimension of 1, or alone
        at = layout.l - (0 <= layout.b < layout.l)
        return (value.select(layout.b, 0) if layout.b >= 0 else value).movedim(at, 0)
    value = value.movedim((layout.b, layout.l), (0, 1))
    return value if value.shape[0] == tokens.batch else value.expand(tokens.batch, *value.shape[1:])


def pack(value: Tensor, how: Pack, tokens: Tokens) -> Tensor:
    """An output of `before` as the body takes it."""
    layout = how.layout
    if layout is None:
        return value
    if layout.l is None:
        return value.movedim(layout.b, 0)
    value = rows_of(value, how, tokens)
    if tokens.rows is not None:
        return ops.gather_rows(value.flatten(0, 1) if how.batched else value, tokens.rows, not how.batched)
    return value.flatten(0, 1) if how.batched else value.expand(tokens.batch, *value.shape).flatten(0, 1)


def unpack(value: Tensor, layout: Layout, tokens: Tokens) -> Tensor:
    """A result of the body in the padded layout."""
    if layout.l is None:
        return value if layout.b == 0 else value.movedim(0, layout.b)
    if tokens.where is not None:
        value = ops.scatter_rows(value, tokens.where)
    value = value.unflatten(0, (tokens.batch, tokens.length))
    return value if (layout.b, layout.l) == (0, 1) else value.movedim((0, 1), (layout.b, layout.l))


class Known:
    """What a graph packs that depends on sizes alone, such as positions: computed once for each size."""

    MOST = 64

    def __init__(self, ragged: Ragged) -> None:
        self.ragged = ragged
        self.constants = [getattr(ragged.sized, n.target) for n in ragged.sized.graph.nodes if n.op == "get_attr"]
        self.values: OrderedDict[Any, tuple[Tensor, ...]] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        key = (*(t.shape for t in tensors), *(c._version for c in self.constants))
        with self.lock:
            found = self.values.get(key)
            if found is not None:
                self.values.move_to_end(key)
                return found
        found = self.ragged.sized(*tensors)
        with self.lock:
            self.values[key] = found
            if len(self.values) > self.MOST:
                self.values.popitem(last=False)
        return found


class Runner:
    """Runs a model's packed graph."""

    def __init__(self, ragged: Ragged, body: Body | None = None, graphs: Graphs | None = None) -> None:
        self.ragged, self.graphs = ragged, graphs
        self.body = body or ragged.body
        self.known = Known(ragged)

    def __call__(self, tokens: Tokens, tensors: list[Tensor]) -> Any:
        """The outputs of a call; `tensors` are the model's inputs, in their order."""
        ragged = self.ragged
        given, sized = iter(ragged.before(*tensors)), iter(self.known(tensors))
        values = [next(sized) if by_size else next(given) for by_size in ragged.by_size]
        unpacked = None if self.graphs is None else self._replayed(self.graphs, tokens, values)
        if unpacked is None:
            packed = [pack(v, how, tokens) for v, how in zip(values, ragged.packs, strict=True)]
            rows = self.body(*packed, tokens.cu, tokens.first, tokens.longest)
            unpacked = [unpack(v, layout, tokens) for v, layout in zip(rows, ragged.rows, strict=True)]
        return ragged.after(*tensors, *unpacked)

    # ---- By CUDA graphs ---------------------------------------------------------------------------------------------

    def _replayed(self, graphs: Graphs, tokens: Tokens, values: list[Tensor]) -> list[Tensor] | None:
        sizes = bucket(tokens.count, tokens.batch, tokens.longest)
        whole = tuple(v.shape for v, how in zip(values, self.ragged.packs, strict=True) if how.layout is None)
        with graphs.lock:
            found = graphs.find((self, sizes, whole), lambda: self._make(sizes, values))
            if found is None:
                return None
            graphs.enter()
            *own, cu, first = found.inputs
            for to, value, how in zip(own, values, self.ragged.packs, strict=True):
                fill(to, value, how, tokens)
            # Behind the batch are sequences of no token, that begin nowhere.
            ops.pack_starts(tokens.cu, tokens.count, cu, first)
            results = []
            for rows, layout in zip(graphs.replay(found), self.ragged.rows, strict=True):
                rows = rows[: tokens.batch if layout.l is None else tokens.count]
                if layout.l is None or tokens.where is None:  # else they are copied when they are unpacked
                    rows = rows.clone()
                results.append(unpack(rows, layout, tokens))
            return results

    def _make(self, sizes: tuple[int, int, int], values: list[Tensor]) -> tuple[list[Tensor], Any]:
        count, batch, longest = sizes
        inputs = []
        for value, how in zip(values, self.ragged.packs, strict=True):
            if how.layout is None:
                shape = list(value.shape)
            else:
                outer = [d for d in how.layout.outer if d >= 0]
                rows = batch if how.layout.l is None else count
                shape = [rows, *(s for d, s in enumerate(value.shape) if d not in outer)]
            inputs.append(torch.zeros(shape, dtype=value.dtype, device=value.device))
        for n in (batch + 1, batch):
            inputs.append(torch.zeros(n, dtype=torch.int32, device=values[0].device))
        return inputs, lambda own: self.body(*own, longest)


def fill(to: Tensor, value: Tensor, how: Pack, tokens: Tokens) -> None:
    """Packs into memory that a graph reads."""
    layout = how.layout
    if layout is None:
        to.copy_(value)
    elif layout.l is None:
        to[: tokens.batch].copy_(value.movedim(layout.b, 0))
    elif tokens.rows is None:
        to[: tokens.count].unflatten(0, (tokens.batch, tokens.length)).copy_(rows_of(value, how, tokens))
    else:
        value = rows_of(value, how, tokens)
        ops.gather_rows_out(value.flatten(0, 1) if how.batched else value, tokens.rows, to, not how.batched)
