"""A repeated call of a packed model, by the CUDA graph that is there for it: bindings/torch/inference/replay.cc.

Everything else, such as a bucket that is met for the first time or weights that changed, is the Runner's
(strop/rewrite/packed.py), which gives the same results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from .graphs import Graphs, Replay, bucket
from .packed import Runner, starts
from .ragged import SEQUENCES, TOKENS, Layout, Pack
from .weights import Weights, places_of


def _is_simple(how: Pack) -> bool:
    """Whether an input of the body has its rows one behind the other in memory, where it is contiguous."""
    layout = how.layout
    if layout is None or layout.l is None:
        return False
    return layout == TOKENS if how.batched else layout in (TOKENS, Layout(1, 0), Layout(-1, 0))


class Quick:
    """The repeated calls of one program."""

    def __init__(
        self, runner: Runner, graphs: Graphs, names: Sequence[str], weights: Weights, dtype: torch.dtype | None
    ) -> None:
        self.runner = runner
        ragged = runner.ragged
        self.constants = Weights(places_of(ragged.sized), contents=True)
        # The capsule borrows what is in it.
        self.about = (
            tuple(names),
            runner,
            graphs,
            graphs.replays,
            graphs.lock.acquire,
            graphs.lock.release,
            bucket,
            starts,
            graphs.device,
            self._load,
            weights.capsule,
            runner.run_before if runner.before is None else tuple(runner.before),
            tuple(ragged.by_size) if runner.has_sized else None,
            runner.known,
            self.constants.capsule,
            runner.run_after if runner.after is None else tuple(runner.after),
            dtype,
            -1 if runner.mask is None else runner.mask,
            ragged.wants_first,
            ragged.wants_whole,
        )
        # Of a call's arguments by name: its results; None where it is not one for a graph that is there.
        self.run: Callable[[Mapping[str, Tensor]], Sequence[Any] | None] = functools.partial(
            _C.quick_run, _C.quick_load(self.about)
        )

    @classmethod
    def of(
        cls, runner: Runner | None, names: Sequence[str], weights: Weights, dtype: torch.dtype | None
    ) -> Quick | None:
        """None where there are no graphs, or what they take or give is not simply rows."""
        if runner is None or runner.graphs is None:
            return None
        ragged = runner.ragged
        simple = all(map(_is_simple, ragged.packs)) and all(layout in (TOKENS, SEQUENCES) for layout in ragged.rows)
        return cls(runner, runner.graphs, names, weights, dtype) if simple else None

    def _load(self, found: Replay) -> Any:
        """What C++ needs of a graph; False where it does not take it."""
        *own, cu, first = found.inputs
        ragged = self.runner.ragged
        inputs = [(to, not how.batched) for to, how in zip(own, ragged.packs, strict=True)]
        outputs = [(rows, layout.l is None) for rows, layout in zip(found.outputs, ragged.rows, strict=True)]
        launch = found.graph.replay
        if isinstance(found.graph, torch.cuda.CUDAGraph):  # whose method in Python only calls the one below
            launch = super(torch.cuda.CUDAGraph, found.graph).replay
        try:
            found.quick = _C.replay_load(launch, inputs, cu, first, outputs)
        except ValueError:  # something is not contiguous
            found.quick = False
        return found.quick
