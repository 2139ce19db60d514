"""A repeated call of a packed model: by the CUDA graph that is there for it, with as little Python as can be.

Everything else, such as a bucket that is met for the first time or weights that changed, is the Runner's
(strop/rewrite/packed.py), which gives the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from .graphs import Graphs, Replay, bucket
from .packed import Runner, starts
from .ragged import SEQUENCES, TOKENS, Layout, Pack
from .weights import Weights


def _is_simple(how: Pack) -> bool:
    """Whether an input of the body has its rows one behind the other in memory, where it is contiguous."""
    layout = how.layout
    if layout is None or layout.l is None:
        return False
    return layout == TOKENS if how.batched else layout in (TOKENS, Layout(1, 0), Layout(-1, 0))


class Quick:
    """The repeated calls of one program."""

    def __init__(self, runner: Runner, graphs: Graphs, names: Sequence[str], weights: Weights) -> None:
        self.runner, self.graphs, self.names, self.weights = runner, graphs, names, weights
        ragged = runner.ragged
        self.refuses = (ragged.wants_first, ragged.wants_whole)
        self.by_size = ragged.by_size if runner.has_sized else None
        self.tokens = _C.tokens_load()
        self.last: Any = None  # the graph of the last call, for the kinds of its results

    @classmethod
    def of(cls, runner: Runner | None, names: Sequence[str], weights: Weights) -> Quick | None:
        """None where there are no graphs, or what they take or give is not simply rows."""
        if runner is None or runner.graphs is None:
            return None
        ragged = runner.ragged
        simple = all(map(_is_simple, ragged.packs)) and all(layout in (TOKENS, SEQUENCES) for layout in ragged.rows)
        return cls(runner, runner.graphs, names, weights) if simple else None

    def __call__(self, given: Mapping[str, Tensor], dtype: torch.dtype | None) -> Sequence[Any] | None:
        """A call's results; None where it is not one for a graph that is there."""
        tensors = [given[name] for name in self.names]
        if dtype is not None:
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        runner, graphs = self.runner, self.graphs
        batch, length = tensors[0].shape[:2]
        before = runner.before
        if before is not None:
            values: Sequence[Tensor] = [tensors[i] for i in before]
        else:
            with torch.no_grad():
                values = runner.run_before(*tensors)
        if self.by_size is not None:
            own, sized = iter(values), iter(runner.known(tensors))
            values = [next(sized) if by_size else next(own) for by_size in self.by_size]
        with graphs.lock:
            if graphs.recording():
                return None
            graphs.enter()
            weights = self.weights.capsule
            if runner.mask is not None:
                located = _C.tokens_locate(self.tokens, tensors[runner.mask], batch, length, weights, self.last)
                if located is None or located is NotImplemented:
                    return None
                count, longest, without_first, with_holes = located
                if count == 0 or (without_first and self.refuses[0]) or (with_holes and self.refuses[1]):
                    return None
                cu, weights = None, None  # both found
            else:
                count, longest = batch * length, length
                cu = starts(batch, length, tensors[0].device)
            found = graphs.known((runner, bucket(count, batch, longest), ()))
            if found is None:
                return None
            if found.quick is None:
                found.quick = self._load(found)
            if found.quick is False:
                return None
            unpacked = _C.replay_run(found.quick, self.tokens, cu, tuple(values), batch, length, count, weights)
            if unpacked is None or unpacked is NotImplemented:
                return None
            graphs.replayed += 1
            self.last = found.quick
        if runner.after is not None:
            if len(runner.after) == len(unpacked) and runner.after_is_rows:
                return unpacked
            everything = (*tensors, *unpacked)
            return [everything[i] for i in runner.after]
        with torch.no_grad():
            return runner.run_after(*tensors, *unpacked)

    def _load(self, found: Replay) -> Any:
        *own, cu, first = found.inputs
        ragged = self.runner.ragged
        inputs = [(to, not how.batched) for to, how in zip(own, ragged.packs, strict=True)]
        outputs = [(rows, layout.l is None) for rows, layout in zip(found.outputs, ragged.rows, strict=True)]
        launch = found.graph.replay
        if isinstance(found.graph, torch.cuda.CUDAGraph):  # whose method in Python only calls the one below
            launch = super(torch.cuda.CUDAGraph, found.graph).replay
        try:
            return _C.replay_load(launch, inputs, cu, first, outputs)
        except ValueError:  # something is not contiguous
            return False
