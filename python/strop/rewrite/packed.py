"""Runs the graphs of strop/rewrite/ragged.py: packs the real tokens of a call, and gives the padded layout back."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .graphs import Graphs, Replay, bucket
from .ops import ops
from .ragged import Layout, Pack, Ragged

Run = Callable[..., Any]  # a graph, or its plan


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


@functools.lru_cache(maxsize=256)
def starts(batch: int, length: int, device: torch.device) -> Tensor:
    """cu of a batch without padding, which depends on its sizes alone."""
    return torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=device)


def rows_of(value: Tensor, how: Pack, tokens: Tokens) -> Tensor:
    """An output of `before` with the dimensions that rows are taken of in front: batch and length, or length alone."""
    layout = how.layout
    assert layout is not None and layout.l is not None
    if not how.batched:  # a length dimension behind a batch dimension of 1, or alone
        at = layout.l - (0 <= layout.b < layout.l)
        return (value.select(layout.b, 0) if layout.b >= 0 else value).movedim(at, 0)
    if (layout.b, layout.l) != (0, 1):
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
    value = value.view(tokens.batch, tokens.length, *value.shape[1:])
    return value if (layout.b, layout.l) == (0, 1) else value.movedim((0, 1), (layout.b, layout.l))


class Known:
    """What a graph packs that depends on sizes alone, such as positions: computed once for each size."""

    MOST = 64

    def __init__(self, ragged: Ragged, run: Run) -> None:
        self.run = run
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
        with torch.no_grad():
            found = tuple([value.contiguous() for value in self.run(*tensors)])
        with self.lock:
            self.values[key] = found
            if len(self.values) > self.MOST:
                self.values.popitem(last=False)
        return found


class Runner:
    """Runs a model's packed graph."""

    def __init__(
        self, ragged: Ragged, names: Sequence[str], plans: Mapping[str, Run] | None = None, graphs: Graphs | None = None
    ) -> None:
        self.ragged, self.graphs = ragged, graphs
        self.plans = dict(plans or {})  # of its graphs, by name; the others run as they are
        self.body: Run = self.plans.get("body", ragged.body)  # (*packed, cu, first, longest) → rows
        self.run_before: Run = self.plans.get("before", ragged.before)
        self.run_after: Run = self.plans.get("after", ragged.after)
        self.known = Known(ragged, self.plans.get("sized", ragged.sized))
        self.mask = names.index(ragged.mask) if ragged.mask is not None else None
        self.before = as_inputs(ragged.before)
        self.has_sized = any(ragged.by_size)
        self.after = as_inputs(ragged.after)

    def locate(self, tensors: list[Tensor]) -> Tokens | None:
        """Where a call's real tokens are; None where it needs the padded layout. `tensors` are the model's inputs."""
        batch, length = tensors[0].shape[:2]
        if self.mask is not None:
            mask = tensors[self.mask]
            if mask.shape[0] != batch:  # one mask for all sequences
                mask = mask.expand(batch, length)
            cu, rows, where, summary = ops.token_index(mask)
            count, longest, without_first, with_holes = summary.tolist()
            if count == 0 or (without_first and self.ragged.wants_first) or (with_holes and self.ragged.wants_whole):
                return None
            if count < batch * length:
                return Tokens(batch, length, count, longest, cu, rows[:count], where, bool(without_first))
        cu = starts(batch, length, tensors[0].device)
        return Tokens(batch, length, batch * length, length, cu, None, None)

    def __call__(self, tokens: Tokens, tensors: list[Tensor]) -> Sequence[Any]:
        """The outputs of a call."""
        ragged = self.ragged
        if self.before is not None:
            before: Sequence[Tensor] = [tensors[i] for i in self.before]
        else:
            before = self.run_before(*tensors)
        values = before
        if self.has_sized:
            given, sized = iter(before), iter(self.known(tensors))
            values = [next(sized) if by_size else next(given) for by_size in ragged.by_size]
        unpacked = None if self.graphs is None else self._replayed(self.graphs, tokens, values)
        if unpacked is None:
            packed = [pack(v, how, tokens) for v, how in zip(values, ragged.packs, strict=True)]
            rows = self.body(*packed, tokens.cu, tokens.first, tokens.longest)
            unpacked = [unpack(v, layout, tokens) for v, layout in zip(rows, ragged.rows, strict=True)]
        if self.after is not None:
            everything = (*tensors, *unpacked)
            return [everything[i] for i in self.after]
        return self.run_after(*tensors, *unpacked)

    # ---- By CUDA graphs ---------------------------------------------------------------------------------------------

    def _replayed(self, graphs: Graphs, tokens: Tokens, values: Sequence[Tensor]) -> list[Tensor] | None:
        ragged = self.ragged
        sizes = bucket(tokens.count, tokens.batch, tokens.longest)
        whole = tuple([v.shape for v, how in zip(values, ragged.packs, strict=True) if how.layout is None])
        with graphs.lock:
            found = graphs.find((self, sizes, whole), lambda: self._make(sizes, values))
            if found is None:
                return None
            graphs.enter()
            self._fill(found, tokens, values)
            results = []
            for rows, layout in zip(graphs.replay(found), ragged.rows, strict=True):
                n = tokens.batch if layout.l is None else tokens.count
                if len(rows) != n:
                    rows = rows[:n]
                if layout.l is None or tokens.where is None:  # else they are copied when they are unpacked
                    rows = rows.clone()
                results.append(unpack(rows, layout, tokens))
            return results

    def _fill(self, found: Replay, tokens: Tokens, values: Sequence[Tensor]) -> None:
        """Puts a call's tokens where a graph reads them."""
        *own, cu, first = found.inputs
        for to, value, how in zip(own, values, self.ragged.packs, strict=True):
            fill(to, value, how, tokens)
        # Behind the batch are sequences of no token, that begin nowhere.
        ops.pack_starts(tokens.cu, tokens.count, cu, first)

    def _make(self, sizes: tuple[int, int, int], values: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
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


def as_inputs(module: fx.GraphModule) -> list[int] | None:
    """Which of its inputs a graph gives, where it computes nothing; None where it does."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    results = next(node for node in module.graph.nodes if node.op == "output").args[0]
    return [inputs.index(r) for r in results] if all(r in inputs for r in results) else None


def fill(to: Tensor, value: Tensor, how: Pack, tokens: Tokens) -> None:
    """Packs into memory that a graph reads."""
    layout = how.layout
    if layout is None:
        to.copy_(value)
    elif layout.l is None:
        to[: tokens.batch].copy_(value.movedim(layout.b, 0))
    elif tokens.rows is None:
        to[: tokens.count].view(tokens.batch, tokens.length, *to.shape[1:]).copy_(rows_of(value, how, tokens))
    else:
        value = rows_of(value, how, tokens)
        ops.gather_rows_out(value.flatten(0, 1) if how.batched else value, tokens.rows, to, not how.batched)
