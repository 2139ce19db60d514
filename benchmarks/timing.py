"""How a call is timed. Implementations take turns, so that what disturbs the machine disturbs all of them alike.

Each method has totals for a call: so many warm-ups, so many samples. Turns share them out. What takes long gets fewer:
its totals end after SECONDS, though never below LEAST samples.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

Call = Callable[[], object]
Sampler = Callable[[], list[float]]  # takes one turn; seconds a call
Times = dict[str, list[float] | str]  # by implementation; or why there are none

TURNS = 5
WARM_UPS, CALLS = 20, 100  # by wall clock, as Hugging Face's `kernels benchmark` has them
REPLAYS = 50
SECONDS, LEAST = 1.0, 10
FLUSHED = 512 * 2**20  # bytes written to empty the L2: several times the largest there is


def measure(method: str, calls: dict[str, Call], device: str, large: bool, rounds: int) -> Times:
    """Samples of every call by one method: "wall", "do_bench" or "graph".

    `large` calls come one after the other, each with all of the memory to itself: they are too long for the host's
    noise to matter, and the allocator must not have to give back one's memory while another is timed. `rounds` is the
    number of turns on a CPU.
    """
    times: Times = {}
    groups = [{name: call} for name, call in calls.items()] if large else [calls]
    turns = rounds if device == "cpu" else 1 if large else TURNS
    for group in groups:
        times |= take_turns(partial(sampler, method, device=device, turns=turns), group, turns)
        if large:
            release(device)
    return times


def take_turns(
    prepare: Callable[[Call], contextlib.AbstractContextManager[Sampler]], calls: dict[str, Call], turns: int
) -> Times:
    times: Times = {}
    with contextlib.ExitStack() as stack:
        samplers: dict[str, Sampler] = {}
        for name, call in calls.items():
            times[name] = []
            with excused(times, name):
                samplers[name] = stack.enter_context(prepare(call))
        for _ in range(turns):
            for name, sample in samplers.items():
                if isinstance(times[name], list):
                    with excused(times, name):
                        times[name] += sample()
    return times


@contextlib.contextmanager
def excused(times: Times, name: str) -> Iterator[None]:
    """What runs out of memory, or cannot be captured, goes without times; the others go on."""
    try:
        yield
    except (torch.OutOfMemoryError, NotCaptured) as error:
        times[name] = str(error) if isinstance(error, NotCaptured) else "out of memory"
    if isinstance(times[name], str):  # here: until then the error holds on to what it passed through
        torch.cuda.empty_cache()


@contextlib.contextmanager
def sampler(method: str, call: Call, device: str, turns: int) -> Iterator[Sampler]:
    """What takes one of `turns` turns at timing a call."""
    if method == "graph":
        with captured(call) as replay:
            yield partial(replays, replay, turns)
    elif method == "do_bench":
        yield partial(do_bench, call, turns)
    else:
        yield partial(wall_cuda, call, turns) if device == "cuda" else partial(wall_cpu, call)


def share(total: int, turns: int, seconds: float) -> int:
    """Samples in one turn of a call that takes `seconds`: `total` in all, within SECONDS, but LEAST at the least."""
    in_all = min(total, max(LEAST, int(SECONDS / seconds)))
    return -(-in_all // turns)


def wall_cpu(call: Call) -> list[float]:
    """By the clock, on a CPU: the mean of as many calls as fill 5 ms."""
    start, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= 0.005:
            return [elapsed / calls]


def wall_cuda(call: Call, turns: int) -> list[float]:
    """By the clock, on CUDA, each call waited for: what Hugging Face's `kernels benchmark` measures."""

    def clocked() -> float:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    samples = share(CALLS, turns, clocked())
    for _ in range(max(1, samples * WARM_UPS // CALLS) - 1):
        clocked()
    return [clocked() for _ in range(samples)]


def do_bench(call: Call, turns: int) -> list[float]:
    """Triton's do_bench: GPU time by events around each call, the L2 flushed before it.

    It measures for 100 ms in all, as by itself, except where that would be two or three calls.
    """
    from triton.testing import do_bench as triton_do_bench

    milliseconds = 500 if turns == 1 else 100 / turns
    return [1e-3 * ms for ms in triton_do_bench(call, milliseconds / 4, milliseconds, return_mode="all")]


class NotCaptured(Exception):
    """No CUDA graph can be made of a call; the message says why."""


@contextlib.contextmanager
def captured(call: Call) -> Iterator[Callable[[], None]]:
    """A call as a CUDA graph: replaying it leaves the host with nothing to do. Its memory is its own until it ends."""
    torch.cuda.empty_cache()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    side.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:  # where memory runs out in there, the end of the capture fails as well
        full = any(isinstance(e, torch.OutOfMemoryError) for e in (error, error.__context__))
        raise NotCaptured("out of memory" if full else f"not captured: {first_line(error)}") from None
    try:
        yield graph.replay
    finally:
        graph.reset()


def replays(replay: Call, turns: int) -> list[float]:
    """GPU time of a replay, the L2 overwritten just before, which also keeps the GPU busy while the host catches up."""
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")

    def timed() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    return [timed() for _ in range(share(REPLAYS, turns, timed()))]


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def copy_rate(device: str, total: int) -> float:
    """Bytes a second, read and written, of tensor.copy_ where both tensors together take `total` bytes."""
    source = torch.ones(total // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    at_once = 20 if device == "cuda" else 1  # so that the launch does not count

    def copy() -> None:
        for _ in range(at_once):
            target.copy_(source)

    samples = measure("wall", {"copy": copy}, device, large=False, rounds=25)["copy"]
    return at_once * 2 * source.nbytes / statistics.median(samples)
