"""Times whole models: strop.optimize_model against PyTorch, eager and compiled, and ONNX Runtime on a CPU.

    python benchmarks/inference.py --threads 2 --output build/cpu-inference.json
    python benchmarks/inference.py --device cuda --dtypes fp16,bf16 --output build/gpu-inference.json
    python benchmarks/inference.py --models tiny --shapes 4x32 --impl strop,eager     # a try of some seconds

Each model, shape and dtype has a fresh process. benchmarks/README.md says what is measured and how; a run that was
stopped goes on from its record.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is here

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import importlib.metadata  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from functools import partial  # noqa: E402
from multiprocessing.connection import Connection  # noqa: E402
from pathlib import Path  # noqa: E402

import children  # noqa: E402
import encoders  # noqa: E402
import measure as measures  # noqa: E402
import record as records  # noqa: E402
import timing  # noqa: E402
import torch  # noqa: E402
from losses import names  # noqa: E402
from tqdm import tqdm  # noqa: E402

METHODS = {
    "wall": "a call by the clock, waited for",
    "host": "CUDA: until a call returns, not waited for",
    "first_call": "making it and its first call, which captures, compiles or exports",
    "new_shape": "the first call at a length not seen before",
    "next_shape": "the first call at yet another length",
}
ONCE = ("first_call", "new_shape", "next_shape")  # of a process, whatever the padding
SHAPES = [(1, 16), (1, 128), (8, 128), (32, 128), (8, 512)]


@dataclasses.dataclass(frozen=True)
class Settings:
    device: str
    impls: tuple[str, ...]
    threads: int | None
    rounds: int
    deadline: float | None


# ---- What is to be measured -----------------------------------------------------------------------------------------


def list_jobs(options: argparse.Namespace, record: dict) -> list[dict]:
    """What is not yet in the record: a job, which is a process, for each model, shape and dtype.

    Real sentences have a shape of their own. What is measured once a process comes with its first padding, new shapes
    last of all: they may change how the old one runs.
    """
    done = {records.key(row) for row in record["rows"]}
    jobs = []
    for model in options.models:
        for shape, paddings in shapes_with_paddings(options):
            for dtype in options.dtypes:
                job = {"kernel": model, "shape": list(shape), "dtype": dtype, "cases": []}
                steps = [(padding, [m for m in options.method if m not in ONCE]) for padding in paddings]
                steps = [(paddings[0], ["first_call"]), *steps, (paddings[0], ["new_shape", "next_shape"])]
                for padding, methods in steps:
                    wanted = [m for m in methods if m in options.method]
                    missing = [m for m in wanted if not keys(job, padding, m, options) <= done]
                    if missing:
                        job["cases"].append({"padding": padding, "methods": missing})
                if job["cases"]:
                    jobs.append(job)
    return jobs


def shapes_with_paddings(options: argparse.Namespace) -> list[tuple[tuple[int, int], list[str]]]:
    found: dict[tuple[int, int], list[str]] = {}
    for batch, length in options.shapes:
        # A single row has no padding; real sentences come once a batch size, cut at what all models take.
        alike = [p for p in options.padding if p == "none" or (p != "text" and batch > 1)]
        if alike:
            found.setdefault((batch, length), []).extend(p for p in alike if p not in found.get((batch, length), []))
    if "text" in options.padding:
        for batch in dict.fromkeys(batch for batch, _ in options.shapes):
            shape = encoders.shape_of(batch, 256, "text")
            found.setdefault(shape, []).append("text")
    return list(found.items())


def keys(job: dict, padding: str, method: str, options: argparse.Namespace) -> set[tuple]:
    common = {"model": job["kernel"], "shape": job["shape"], "padding": padding, "dtype": job["dtype"]}
    impls = encoders.impls_of(options.impl, job["dtype"], options.device)
    return {records.key({**common, "impl": impl, "method": method}) for impl in impls}


# ---- What a process does --------------------------------------------------------------------------------------------


def describe(settings: Settings, connection: Connection) -> None:
    """Sends an empty record of this machine. In a process too, so that only those use CUDA."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    record = records.new_record(settings.device, {**encoders.MODELS, **encoders.PADDINGS})
    for name in ("transformers", "onnxruntime"):
        try:
            record["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    connection.send(("described", record))


def measure(job: dict, settings: Settings, connection: Connection) -> None:
    """A job: {"kernel": the model, "shape", "dtype", "cases": [{"padding", "methods"}, …]}."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        # A first call captures and compiles, whatever ran here before.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["STROP_CACHE_DIR"] = folder
        runner = None
        for case in job["cases"]:
            if settings.deadline and time.time() > settings.deadline:
                return
            connection.send(("begin", case))
            if runner is None:
                runner = Runner(job, case["padding"], settings)
            for method in case["methods"]:
                connection.send(("rows", runner.rows(case["padding"], method)))
            connection.send(("done", case))


class Runner:
    """All implementations of one model, each called once and held against eager fp32."""

    def __init__(self, job: dict, padding: str, settings: Settings) -> None:
        self.job, self.settings = job, settings
        self.shape, self.dtype, self.device = tuple(job["shape"]), job["dtype"], settings.device
        self.impls = encoders.impls_of(list(settings.impls), self.dtype, self.device)
        self.model = encoders.make_model(job["kernel"]).to(self.device)
        self.functions: dict[str, Callable] = {}
        self.why: dict[str, str] = {}
        self.first: dict[str, float] = {}
        self.checked: dict[str, dict[str, float]] = {}
        batch = self.batch(padding)
        if "strop" in self.impls:
            import strop  # noqa: F401, no part of a first call, as importing torch is none
        for impl in self.impls:
            start = time.perf_counter()
            try:
                function = encoders.build(impl, self.model, self.dtype, self.device)
                function(batch)
                timing.wait(self.device)
                self.first[impl] = time.perf_counter() - start
                self.functions[impl] = function
            except Exception as error:
                self.why[impl] = self.excuse(impl, error)

    def batch(self, padding: str, shape: tuple[int, int] | None = None) -> encoders.Batch:
        return encoders.make_batch(*(shape or self.shape), padding, self.device)

    def excuse(self, impl: str, error: Exception) -> str:
        """Ours may fail for want of memory alone."""
        if isinstance(error, torch.OutOfMemoryError):
            timing.release(self.device)
            return "out of memory"
        if impl == "strop":
            raise error
        return str(error) if isinstance(error, encoders.NotAvailable) else f"{type(error).__name__}: {first(error)}"

    def check(self, padding: str, batch: encoders.Batch) -> dict[str, float]:
        """How far each is from eager fp32. Nothing wrong is timed."""
        if padding not in self.checked:
            expected = self.model(**batch).last_hidden_state
            self.checked[padding] = found = {}
            for impl, function in list(self.functions.items()):
                found[impl] = encoders.difference(function(batch), expected, batch["attention_mask"])
                if not found[impl] <= encoders.WRONG["fp32" if impl == "eager_fp32" else self.dtype]:  # NaN as well
                    wrong = AssertionError(f"differs from eager fp32 by {found[impl]:.2g} of the largest state")
                    self.why[impl] = self.excuse(impl, wrong)
                    del self.functions[impl]
        return self.checked[padding]

    def rows(self, padding: str, method: str) -> list[dict]:
        common = {"model": self.job["kernel"], "shape": list(self.shape), "padding": padding, "dtype": self.dtype}
        batch = self.batch(padding)
        found = self.check(padding, batch)
        times = self.times(method, padding, batch)
        rows = []
        for impl in self.impls:
            row = {**common, "impl": impl, "method": method, "ms": None, **summary(times.get(impl))}
            if impl in found:
                row["difference"] = float(f"{found[impl]:.2g}")
            if row["ms"] is None:
                row["why"] = row.get("why") or self.why.get(impl, "not measured")
            rows.append(row)
        return rows

    def times(self, method: str, padding: str, batch: encoders.Batch) -> timing.Times:
        """Seconds by implementation."""
        if method == "first_call":
            return {impl: [seconds] for impl, seconds in self.first.items()}
        if method in ("new_shape", "next_shape"):
            rows, length = self.shape
            other = self.batch("none", (rows, max(1, length - (3 if method == "new_shape" else 5))))
            return {impl: self.once(function, other) for impl, function in self.functions.items()}
        calls = {impl: partial(function, batch) for impl, function in self.functions.items()}
        for call in calls.values():  # what is recorded or settled in the first calls of a shape
            for _ in range(3):
                call()
            timing.wait(self.device)
        if method == "host":
            return timing.take_turns(host_sampler, calls, timing.TURNS)
        return timing.measure("wall", calls, self.device, large=False, rounds=self.settings.rounds)

    def once(self, function: Callable, batch: encoders.Batch) -> list[float] | str:
        timing.wait(self.device)
        start = time.perf_counter()
        try:
            function(batch)
            timing.wait(self.device)
        except Exception as error:
            return f"{type(error).__name__}: {first(error)}"
        return [time.perf_counter() - start]


@contextmanager
def host_sampler(call: Callable) -> Iterator[Callable[[], list[float]]]:
    """Time until a call returns, the GPU idle before it."""

    def sample() -> list[float]:
        seen = []
        for _ in range(timing.CALLS // timing.TURNS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            seen.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        return seen

    yield sample


def first(error: Exception) -> str:
    return timing.first_line(error)


def summary(samples: list[float] | str | None) -> dict:
    found = measures.summary(samples, statistics.median)
    if "us" not in found:
        return found
    quartiles = [round(us / 1e3, 4) for us in found["us_best_and_quartiles"]]
    known = {"ms": round(found["us"] / 1e3, 4)}
    return {**known, "ms_best_and_quartiles": quartiles, "calls": found["calls"]} if len(samples) > 1 else known


# ---- The run --------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> tuple[dict, list[str]]:
    """The record, and what could not be measured because its process died."""
    deadline = None if options.budget is None else time.time() + options.budget
    context = children.context(options.start)
    settings = Settings(options.device, tuple(options.impl), options.threads, options.rounds, deadline)
    record = records.open_record(options.output, children.ask(context, describe, settings))
    jobs, dead = list_jobs(options, record), []
    with tqdm(total=sum(len(job["cases"]) for job in jobs), unit="case", dynamic_ncols=True) as bar:

        def take(kind: str, what: object) -> None:
            if kind == "rows":
                records.add(record, what, options.output)
            elif kind == "begin":
                bar.set_description(f"{job['kernel']} {tuple(job['shape'])} {job['dtype']} {what['padding']}")
            elif kind == "done":
                bar.update()

        for job in jobs:
            if deadline is not None and time.time() > deadline:
                break
            dead += children.run_job(context, measure, job, settings, take, deadline)
        left = bar.total - bar.n - len(dead)
    if left:
        print(f"{left} cases are left: the same command goes on with them", file=sys.stderr)
    return record, dead


def print_table(record: dict) -> None:
    """A line for each case: milliseconds of each, and times faster than eager in the same dtype and than compiled."""
    from tabulate import tabulate

    lines: dict[tuple, dict[str, float | None]] = {}
    for row in record["rows"]:
        *case, impl, method = records.key(row)
        lines.setdefault((*case, method), {})[impl] = row["ms"]
    impls = [impl for impl in encoders.IMPLS if any(impl in line for line in lines.values())]
    table = []
    for (model, shape, padding, dtype, method), ms in lines.items():
        ours = ms.get("strop")
        ratios = [ms[name] / ours if ours and ms.get(name) else None for name in ("eager", "compile")]
        table.append([model, "×".join(map(str, shape)), padding, dtype, method, *map(ms.get, impls), *ratios])
    heads = ["model", "shape", "padding", "dtype", "method", *(f"{impl} ms" for impl in impls)]
    heads += ["vs eager", "vs compile"]
    print(tabulate(table, heads, floatfmt=[""] * 5 + [".3f"] * len(impls) + [".2f"] * 2, missingval="-"))
    reasons = {(row["impl"], row["why"]) for row in record["rows"] if row.get("why")}
    for impl, why in sorted(reasons):
        print(f"Without {impl} where: {why}")


def shapes_of(text: str) -> list[tuple[int, int]]:
    shapes = [tuple(int(size) for size in shape.split("x")) for shape in text.split(",")]
    if any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise argparse.ArgumentTypeError("a shape is batch and length, as 8x128")
    return shapes


def parse(arguments: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(
        f"{title}:\n" + "\n".join(f"  {name:<12}{text}" for name, text in what.items())
        for title, what in [("models", encoders.MODELS), ("padding", encoders.PADDINGS), ("methods", METHODS)]
    )
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, what = parser.add_argument, parser.add_argument_group
    group = what("what is measured")
    group.add_argument("--models", type=lambda text: text.split(","), default=["minilm", "bert-base"],
                       metavar="NAME,…", help="names below, or folders that transformers loads")  # fmt: skip
    group.add_argument("--shapes", type=shapes_of, default=SHAPES, metavar="8x128,…", help="batch and length; default: "
                       + ",".join(f"{b}x{n}" for b, n in SHAPES))  # fmt: skip
    group.add_argument("--padding", type=names(list(encoders.PADDINGS)), default=list(encoders.PADDINGS),
                       metavar="NAME,…", help="default: all of those below; a single row has none")  # fmt: skip
    group.add_argument("--dtypes", type=names(list(encoders.DTYPES)), metavar="fp32,fp16,bf16",
                       help="default: fp32, on CUDA fp16")  # fmt: skip
    group.add_argument("--impl", type=names(encoders.IMPLS), default=encoders.IMPLS, metavar="NAME,…",
                       help=f"default: {', '.join(encoders.IMPLS)}, the last on a CPU alone")  # fmt: skip
    group.add_argument("--method", type=names(list(METHODS)), metavar="NAME,…", help="default: all of those below")
    group = what("how")
    group.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    group.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    group.add_argument("--rounds", type=int, default=25, help="turns that each implementation gets on a CPU")
    group.add_argument("--budget", type=float, metavar="SECONDS", help="begin no case after so long")
    group.add_argument("--start", choices=["forkserver", "spawn"], default="forkserver", help="how processes start")
    add("--output", type=Path, metavar="JSON", help="written after each case and method, and gone on with")
    options = parser.parse_args(arguments)
    cpu = options.device == "cpu"
    if cpu and "host" in (options.method or []):
        parser.error("host: only with --device cuda")
    options.method = options.method or [method for method in METHODS if not (cpu and method == "host")]
    options.dtypes = options.dtypes or ["fp32" if cpu else "fp16"]
    if "minilm" in options.models or "text" in options.padding:
        try:
            encoders.minilm_folder()
        except encoders.NotAvailable as error:
            parser.error(f"minilm and real sentences: {error}")
    return options


def main(arguments: list[str] | None = None) -> dict:
    options = parse(arguments)
    record, dead = run(options)
    print_table(record)
    if dead:
        sys.exit("\n".join(["not measured, since the process died:", *dead]))
    return record


if __name__ == "__main__":
    main()
