"""Times strop's losses against PyTorch, eager and compiled, and writes what it saw to a JSON record.

    python benchmarks/losses.py --device cpu --threads 2 --dtypes fp32,bf16
    python benchmarks/losses.py --device cuda --method wall,do_bench,graph --output benchmarks/records/my-gpu.json

Each kernel and shape has a fresh process. benchmarks/README.md says what is measured and how; a run that was stopped
goes on from its record.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path

import cases
import children
import measure
import record as records
from tqdm import tqdm

METHODS = ["wall", "do_bench", "graph"]


def list_jobs(options: argparse.Namespace, record: dict) -> list[dict]:
    """What is not yet in the record, a job for each kernel and shape."""
    done = {records.key(row) for row in record["rows"]}
    jobs = []
    for kernel in options.kernels:
        axes = 3 if cases.is_reverse_kl(kernel) else 2
        chosen = [shape for shape in options.shapes if len(shape) == axes] if options.shapes else None
        for shape in cases.shapes_of(kernel, options.device) if chosen is None else chosen:
            job = {"kernel": kernel, "shape": list(shape), "cases": []}
            for dtype in options.dtypes:
                for beta in [None] if cases.is_reverse_kl(kernel) else options.beta:
                    case = {"dtype": dtype, "beta": beta}
                    missing = [m for m in options.method if not wanted(job, case, m, options.impl) <= done]
                    if missing:
                        job["cases"].append({**case, "methods": missing})
            if job["cases"]:
                jobs.append(job)
    return jobs


def wanted(job: dict, case: dict, method: str, impls: list[str]) -> set[tuple]:
    common = {"kernel": job["kernel"], "shape": job["shape"], **case, "method": method}
    return {records.key({**common, "impl": impl}) for impl in cases.impls_of(job["kernel"], impls)}


def compile_first(jobs: list[dict], options: argparse.Namespace, settings: measure.Settings, context, memory: int):
    """Fills Triton's cache of binaries by compiling everything once, several processes at a time.

    What is measured on the way, to tune, goes into a folder of its own and is thrown away: others were on the GPU.
    """
    until = None if settings.deadline is None else (time.time() + settings.deadline) / 2
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for job in jobs:
            # Inputs, as they are drawn in fp32, a gradient and as much again.
            need = max(24 * math.prod(job["shape"]), 2**31)
            own = {"inductor_cache": Path(folder), "memory_share": min(1.0, need / memory), "compile_threads": 1}
            for dtype in options.dtypes:
                part = {**job, "cases": [case for case in job["cases"] if case["dtype"] == dtype]}
                if part["cases"]:
                    parts.append((need, (part, dataclasses.replace(settings, **own))))
        run = children.run_together(context, measure.compile_only, parts, options.compile_first, 0.85 * memory, until)
        with tqdm(total=len(parts), unit="process", desc="compiling", dynamic_ncols=True) as bar:
            for ended in run:
                bar.update(ended)


def run(options: argparse.Namespace) -> tuple[dict, list[str]]:
    """The record, and what could not be measured because its process died."""
    deadline = None if options.budget is None else time.time() + options.budget
    context = children.context(options.start)
    settings = measure.Settings(
        options.device, tuple(options.impl), options.mask, options.threads, options.rounds, deadline
    )
    fresh, memory = children.ask(context, measure.describe, settings)
    record = records.open_record(options.output, fresh)
    jobs = list_jobs(options, record)
    if options.compile_first and jobs:
        cache = os.environ.get("TRITON_CACHE_DIR") or Path(tempfile.gettempdir(), f"strop-benchmarks-{os.getuid()}")
        settings = dataclasses.replace(settings, triton_cache=Path(cache), compile_threads=1)
        compile_first(jobs, options, settings, context, memory)
    return record, measure_jobs(jobs, options, settings, context, record)


def measure_jobs(
    jobs: list[dict], options: argparse.Namespace, settings: measure.Settings, context: BaseContext, record: dict
) -> list[str]:
    dead, rates = [], record["limits"]["copy_gb_per_s"]
    with tqdm(total=sum(len(job["cases"]) for job in jobs), unit="case", dynamic_ncols=True) as bar:

        def take(kind: str, what: object) -> None:
            if kind == "rows":
                records.add(record, what, options.output)
            elif kind == "rate":
                rates[str(what[0])] = what[1]
                records.add(record, [], options.output)
            elif kind == "begin":
                bar.set_description(f"{job['kernel']} {tuple(job['shape'])} {what['dtype']}")
            elif kind == "done":
                bar.update()

        for job in jobs:
            if settings.deadline is not None and time.time() > settings.deadline:
                break
            job["rates"] = [int(size) for size in rates]
            dead += children.run_job(context, measure.measure, job, settings, take, settings.deadline)
        left = bar.total - bar.n - len(dead)
    if left:
        print(f"{left} cases are left: the same command goes on with them", file=sys.stderr)
    return dead


def names(allowed: list[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        unknown = [word for word in text.split(",") if word not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(allowed)}")
        return text.split(",")

    return split


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    floats, impls = lambda text: [float(x) for x in text.split(",")], cases.IMPLS[:-1]
    shapes = lambda text: [tuple(int(size) for size in shape.split("x")) for shape in text.split(",")]  # noqa: E731
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--method", type=names(METHODS), default=["wall"], metavar="NAME,…", help=f"of {', '.join(METHODS)}")
    add("--kernels", type=names(cases.KERNELS), default=cases.KERNELS[:6], metavar="NAME,…", help="all but autograd")
    add("--shapes", type=shapes, metavar="16x1024,…", help="default: those that others have published figures for")
    add("--dtypes", type=names(list(cases.DTYPES)), default=["fp32"], metavar="fp32,fp16,bf16")
    add("--beta", type=floats, default=[0.1], metavar="0.1,0")
    add("--impl", type=names(cases.IMPLS), default=impls, metavar="NAME,…", help=f"{', '.join(cases.IMPLS)}; not liger")
    add("--mask", choices=list(cases.MASKS), default="full")
    add("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    add("--rounds", type=int, default=25, help="turns that each implementation gets on a CPU")
    add("--budget", type=float, metavar="SECONDS", help="begin no case after so long")
    add("--compile-first", type=int, metavar="N", help="CUDA: compile everything before, N processes at once")
    add("--start", choices=["forkserver", "spawn"], default="forkserver", help="how processes start")
    add("--output", type=Path, metavar="JSON", help="written after each case and method, and gone on with")
    options = parser.parse_args(arguments)
    gpu_only = [m for m in options.method if m != "wall"] + ["compiling first"] * bool(options.compile_first)
    if options.device == "cpu" and gpu_only:
        parser.error(f"{', '.join(gpu_only)}: only with --device cuda")
    if options.shapes and {len(shape) for shape in options.shapes} - {2, 3}:
        parser.error("shapes have two lengths, those of reverse KL three")
    return options


def main(arguments: list[str] | None = None) -> dict:
    options = parse(arguments)
    record, dead = run(options)
    records.print_table(record, cases.IMPLS)
    if dead:
        sys.exit("\n".join(["not measured, since the process died:", *dead]))
    return record


if __name__ == "__main__":
    main()
