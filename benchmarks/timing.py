"""How a call is timed. Implementations take turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

Times = dict[str, list[float]]  # seconds a call, by implementation


def wall_times(calls: dict[str, Callable], device: str, rounds: int) -> Times:
    """By the clock, the result waited for.

    CPU: `rounds` rounds of at least 5 ms for each. CUDA: 20 calls to warm up, then 5 rounds of 20 calls.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    repeats: dict[str, int] = {}
    times: Times = {impl: [] for impl in calls}
    for impl, call in calls.items():
        for _ in range(20 if device == "cuda" else 2):
            call()
            wait()
        start = time.perf_counter()
        call()
        wait()
        repeats[impl] = 20 if device == "cuda" else max(1, math.ceil(0.005 / (time.perf_counter() - start)))
    for _ in range(5 if device == "cuda" else rounds):
        for impl, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeats[impl]):
                call()
                wait()
            times[impl].append((time.perf_counter() - start) / repeats[impl])
    return times


def do_bench_times(calls: dict[str, Callable]) -> Times:
    """Triton's do_bench: GPU time with the L2 cache flushed before each call; the median of three of its medians."""
    from triton.testing import do_bench

    return {impl: [do_bench(call, return_mode="median") * 1e-3 for _ in range(3)] for impl, call in calls.items()}


def graph_times(calls: dict[str, list[Callable]], rounds: int) -> Times:
    """GPU time of replayed CUDA graphs: no host in it. A graph a set of inputs, replayed in turn, and more than the L2
    cache is overwritten before each replay."""
    flush = torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
    graphs: dict[str, list[torch.cuda.CUDAGraph]] = {}
    for impl, sets in calls.items():
        captured = []
        try:
            for call in sets:
                side = torch.cuda.Stream()
                with torch.cuda.stream(side):
                    call()
                side.synchronize()
                captured.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(captured[-1]):
                    call()
        except torch.cuda.OutOfMemoryError:  # the memory of a graph stays its own, and eager needs much
            captured = []
            torch.cuda.empty_cache()
        if captured:
            graphs[impl] = captured
    times: Times = {impl: [] for impl in graphs}
    for number in range(max(rounds, 30)):
        for impl, replays in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            replays[number % len(replays)].replay()
            end.record()
            end.synchronize()
            times[impl].append(start.elapsed_time(end) * 1e-3)
    return times


def copy_rate(device: str, total: int) -> float:
    """Bytes a second, read and written, of tensor.copy_ where both tensors together take `total` bytes."""
    source = torch.ones(total // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    at_once = 20 if device == "cuda" else 1  # so that the launch does not count

    def copy() -> None:
        for _ in range(at_once):
            target.copy_(source)

    times = wall_times({"copy": copy}, device, rounds=25)["copy"]
    return at_once * 2 * source.nbytes / statistics.median(times)
