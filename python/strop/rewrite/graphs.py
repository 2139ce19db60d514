"""CUDA graphs of what a model computes: launch costs gone, and results that stay valid.

A graph is recorded for a bucket, so many tokens and so many sequences, and replayed for every call that fits into it:
its inputs lie in memory of its own, into which a call's tokens are put, and what it gives is copied out before the next
replay. The number of graphs is bounded, the least recently used one goes first, and all of a model share one memory
pool. Replays of a model are one after the other, whatever threads and streams they come from: they share that pool.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[list[Tensor]], Sequence[Any]]

# Much cheaper than torch.cuda.current_stream(); absent in builds without CUDA.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

MOST_GRAPHS = 64  # of one model
MOST_SEEN = 1024  # keys of calls that were met once


def _finer(n: int, parts: int) -> int:
    """n rounded up to one of `parts` steps within each power of two."""
    if n <= parts:
        return n
    step = 1 << max((n - 1).bit_length() - 1 - (parts.bit_length() - 1), 0)
    return -(-n // step) * step


@functools.lru_cache(maxsize=4096)
def bucket(count: int, batch: int, longest: int) -> tuple[int, int, int]:
    """The tokens, sequences and longest sequence that a graph for such a call is recorded with.

    At most an eighth more tokens than there are, as every one is computed; sequences and lengths, of which only those
    that are there cost something, in powers of two.
    """
    tokens = _finer(-(-count // 16), 8) * 16
    sequences = 1 << (batch - 1).bit_length()
    return tokens, sequences, max(16, 1 << (longest - 1).bit_length())


@dataclass
class Replay:
    """One recorded graph, with where it reads and writes."""

    graph: Any  # torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]
    quick: Any = None  # the same for C++; False where it does not take it


@dataclass
class Graphs:
    """The graphs of one model on one device."""

    device: torch.device
    at_once: bool = False  # recorded when a bucket is met first; else when it is met again
    most: int = MOST_GRAPHS
    replays: OrderedDict[Any, Replay] = field(default_factory=OrderedDict)
    seen: OrderedDict[Any, None] = field(default_factory=OrderedDict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    pool: Any = None
    side: Any = None  # the stream on which graphs are recorded
    stream: Any = None  # of the last replay
    raw_stream: int | None = None  # its cudaStream_t
    recorded: int = 0
    replayed: int = 0
    broken: str = ""  # why nothing is recorded any more

    def known(self, key: Any) -> Replay | None:
        """The graph of a key where there is one, with the lock held."""
        found = self.replays.get(key)
        if found is not None:
            self.replays.move_to_end(key)
        return found

    def find(self, key: Any, make: Callable[[], tuple[list[Tensor], Compute]]) -> Replay | None:
        """The graph of a key; None where it is met for the first time, and then the call is to run as it is.

        `make` gives the graph's inputs, and what computes its outputs of them. To be called, and what it returns used,
        with the lock held.
        """
        found = self.known(key)
        if found is not None:
            return found
        if self.broken:
            return None
        if not self.at_once and key not in self.seen:
            self.seen[key] = None
            if len(self.seen) > MOST_SEEN:
                self.seen.popitem(last=False)
            return None
        self.seen.pop(key, None)
        try:
            found = self._record(*make())
        except RuntimeError as error:  # of CUDA: something that cannot be recorded
            self.broken = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            return None
        self.replays[key] = found
        while len(self.replays) > self.most:
            self.replays.popitem(last=False)
        return found

    def _record(self, inputs: list[Tensor], compute: Callable[[list[Tensor]], Sequence[Tensor]]) -> Replay:
        self.enter()
        current = self.stream
        first = self.side is None
        if first:
            self.pool, self.side = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        self.side.wait_stream(current)
        # Not torch.cuda.graph(): it empties PyTorch's cache of memory, which has others pay for every recording.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.stream(self.side):
            if first:
                compute(inputs)  # what libraries allocate at their first call on a stream must not be recorded
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                outputs = list(compute(inputs))
            finally:
                graph.capture_end()
        current.wait_stream(self.side)
        self.recorded += 1
        return Replay(graph, inputs, outputs)

    def recording(self) -> bool:
        """Whether somebody records what this thread does into a graph of their own."""
        return torch.cuda.is_current_stream_capturing()

    def enter(self) -> None:
        """Before inputs are put into a graph's memory: what another stream has under way there comes first."""
        current = _raw_stream(self.device.index)
        if current == self.raw_stream:
            return
        stream = torch.cuda.current_stream(self.device)
        if self.stream is not None:
            stream.wait_stream(self.stream)
        self.stream, self.raw_stream = stream, current

    def replay(self, replay: Replay) -> list[Tensor]:
        """Replays, and gives the graph's own outputs: they are to be copied before the lock is given back."""
        replay.graph.replay()
        self.replayed += 1
        return replay.outputs

    def clear(self) -> None:
        with self.lock:
            self.replays.clear()
            self.seen.clear()
            self.pool = self.side = None


def run_as_it_is(
    graphs: Graphs, key: Any, tensors: list[Tensor], compute: Callable[..., Sequence[Any]]
) -> Sequence[Any] | None:
    """A call whose sizes are those of the graph: for what is not packed. None where it is not recorded."""
    with graphs.lock:
        found = graphs.find(
            (key, *(t.shape for t in tensors)), lambda: ([t.clone() for t in tensors], lambda inputs: compute(*inputs))
        )
        if found is None:
            return None
        graphs.enter()
        for own, given in zip(found.inputs, tensors, strict=True):
            own.copy_(given)
        return [t.clone() if isinstance(t, Tensor) else t for t in graphs.replay(found)]
