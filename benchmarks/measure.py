"""What a fresh process does: all that is to be measured of one kernel and shape, each compiled form compiled once for
all methods. It tells the process that started it what it sees, in messages (kind, what):

    ("begin", case)  ("rate", (bytes, GB/s))  ("rows", rows of one method)  ("done", case)
"""

from __future__ import annotations

import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import baselines
import cases
import record as records
import timing
import torch
from torch import Tensor

ADD_ONE = "add_one"  # x.add_(1) on one element: the least that a call of anything takes by a method
LARGE = 2**30  # bytes a call moves


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is the same for all processes of a run."""

    device: str = "cpu"
    impls: tuple[str, ...] = ("strop", "eager", "compile_traced", "compile_written", "fused_backward")
    mask: str = "full"
    threads: int | None = None
    rounds: int = 25
    deadline: float | None = None  # by time.time(); no case is begun after it
    compile_threads: int | None = None
    triton_cache: Path | None = None  # of Triton's binaries
    inductor_cache: Path | None = None  # of torch.compile's own files, what it tuned included
    memory_share: float | None = None  # of the GPU's memory, where processes share it


def set_up(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.triton_cache:
        os.environ["TRITON_CACHE_DIR"] = str(settings.triton_cache)
    if settings.inductor_cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(settings.inductor_cache)
    if settings.compile_threads:
        import torch._inductor.config as inductor

        inductor.compile_threads = settings.compile_threads
    if settings.memory_share:
        torch.cuda.set_per_process_memory_fraction(settings.memory_share)


def describe(settings: Settings, connection: Connection) -> None:
    """Sends an empty record of this machine, and the GPU's memory. In a process too, so that only those use CUDA."""
    set_up(settings)
    record = records.new_record(settings.device, cases.described(settings.mask))
    memory = torch.cuda.get_device_properties(0).total_memory if settings.device == "cuda" else None
    connection.send(("described", (record, memory)))


def measure(job: dict, settings: Settings, connection: Connection) -> None:
    """A job: {"kernel", "shape", "cases": [{"dtype", "beta", "methods"}, …], "rates": sizes of copies timed before}."""
    set_up(settings)
    rates = set(job["rates"])
    for case in job["cases"]:
        if settings.deadline and time.time() > settings.deadline:
            return
        connection.send(("begin", case))
        for rows in measure_case(job["kernel"], tuple(job["shape"]), case, settings):
            size = records.copy_class(rows[0]["bytes"], settings.device)
            if size not in rates:
                rates.add(size)
                connection.send(("rate", (size, round(timing.copy_rate(settings.device, size) / 1e9, 2))))
            connection.send(("rows", rows))
        connection.send(("done", case))


def compile_only(job: dict, settings: Settings) -> None:
    """Compiles what `measure` will compile, for the binaries that this leaves in Triton's cache."""
    set_up(settings)
    compiled = [impl for impl in cases.impls_of(job["kernel"], list(settings.impls)) if impl.startswith("compile")]
    for case in job["cases"]:
        begin_afresh(settings.device)
        shape, dtype = tuple(job["shape"]), cases.DTYPES[case["dtype"]]
        try:
            inputs = cases.make_inputs(job["kernel"], shape, dtype, settings.device, settings.mask)
            leaf = cases.leaf_of(inputs)
            for impl in compiled:
                cases.ready(job["kernel"], impl, case["beta"], inputs, leaf)()
            timing.wait(settings.device)
        except Exception as error:  # it shows again, and is recorded, where it is measured
            print(f"compiling {job['kernel']} {shape} {case['dtype']} first: {timing.first_line(error)}", flush=True)
            inputs = leaf = None


def begin_afresh(device: str) -> None:
    torch._dynamo.reset()  # static shapes: nothing of an earlier case may count as a recompilation
    gc.collect()
    timing.release(device)
    torch.manual_seed(0)


def measure_case(kernel: str, shape: tuple[int, ...], case: dict, settings: Settings) -> Iterator[list[dict]]:
    """All implementations of one kernel, shape, dtype and beta; the rows of one method after the other."""
    begin_afresh(settings.device)
    dtype = cases.DTYPES[case["dtype"]]
    inputs = cases.make_inputs(kernel, shape, dtype, settings.device, settings.mask)
    moved = cases.bytes_moved(kernel, inputs, case["beta"])
    large = settings.device == "cuda" and moved >= LARGE
    impls = cases.impls_of(kernel, list(settings.impls))
    calls, about = first_calls(kernel, impls, case["beta"], inputs, dtype, large)
    for known in about.values():
        known["bytes"] = moved
    calls[ADD_ONE] = add_one(settings.device)
    for method in case["methods"]:
        times = timing.measure(method, calls, settings.device, large, settings.rounds)
        average = statistics.mean if settings.device == "cuda" and method == "wall" else statistics.median
        add_us = 1e6 * average(times[ADD_ONE])
        yield [
            {"kernel": kernel, "shape": list(shape), "dtype": case["dtype"], "beta": case["beta"], "impl": impl}
            | {"method": method, "us": None, "add_us": round(add_us, 3), **known, **summary(times.get(impl), average)}
            for impl, known in ((impl, about[impl]) for impl in impls)
        ]


def first_calls(
    kernel: str, impls: list[str], beta: float | None, inputs: list[Tensor], dtype: torch.dtype, large: bool
) -> tuple[dict[str, Callable], dict[str, dict]]:
    """Calls every implementation once and compares it with eager: what can be timed, and what there is to say of each.

    Eager comes first, wanted or not, and without anything else in memory: it needs the most. Where it needs more than
    there is, the others go unchecked; the smaller shapes are checked.
    """
    device, leaf = inputs[0].device.type, cases.leaf_of(inputs)
    calls: dict[str, Callable] = {}
    about: dict[str, dict] = {}
    expected = None
    for impl in ["eager", *(impl for impl in impls if impl != "eager")]:
        start, result, about[impl] = time.perf_counter(), None, {}
        try:
            call = cases.ready(kernel, impl, beta, inputs, leaf)
            result = call()
            timing.wait(device)
            about[impl]["first_call_s"] = round(time.perf_counter() - start, 2)
            if impl == "eager":
                expected = result
            elif expected is not None:
                cases.check(result, expected, dtype)
            if impl in impls:
                calls[impl] = call
        except Exception as error:
            about[impl]["why"] = excuse(impl, error)
        if large:
            result = None
            timing.release(device)
    return calls, about


def add_one(device: str) -> Callable[[], object]:
    x = torch.zeros(1, device=device)
    return lambda: x.add_(1)


def summary(samples: list[float] | str | None, average: Callable[[list[float]], float]) -> dict:
    if not samples:
        return {}
    if isinstance(samples, str):
        return {"why": samples}
    seen = sorted(samples)
    spread = (seen[0], seen[len(seen) // 4], seen[(3 * len(seen)) // 4])
    return {
        "us": round(1e6 * average(seen), 3),
        "us_best_and_quartiles": [round(1e6 * seconds, 3) for seconds in spread],
        "calls": len(seen),
    }


def excuse(impl: str, error: Exception) -> str:
    """Why an implementation is not measured. Where that must not be passed over, the error goes on."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if impl in cases.OURS or isinstance(error, torch.AcceleratorError):  # after the latter CUDA is of no more use
        raise error
    if isinstance(error, (baselines.NotAvailable, ImportError, AssertionError)):
        return str(error)
    return f"{type(error).__name__}: {timing.first_line(error)}"
