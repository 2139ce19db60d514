"""Times strop's losses against PyTorch, eager and compiled, in one run, and writes what it saw to a JSON record.

    python benchmarks/losses.py --device cpu --threads 2 --dtypes fp32,bf16
    python benchmarks/losses.py --device cuda --method do_bench --dtypes bf16 --output benchmarks/records/h100.json

benchmarks/README.md says what is measured and how; a run that was stopped goes on from its record.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import baselines
import record as records
import strop
import timing
import torch
from torch import Tensor
from tqdm import tqdm

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES = ("grpo_loss", "bnpo_loss", "reverse_kl")
KERNELS = [family + variant for variant in ("", "_fwd", "_autograd") for family in FAMILIES]
IMPLS = ["strop", "eager", "compile_traced", "compile_written", "liger"]
POLICY_SHAPES = [(16, 1024), (32, 2048), (64, 4096), (128, 2781), (128, 8192)]
SHAPES = {
    "grpo_loss": POLICY_SHAPES,
    "bnpo_loss": [*POLICY_SHAPES, (16, 2781)],
    "reverse_kl_cuda": [(1, 64), (2, 128), (4, 256), (8, 512), (8, 981), (8, 1024)],  # × 248320
    "reverse_kl_cpu": [(1, 64, 248320), (8, 64, 32000)],
}
INPUTS = {
    "policy_loss": "old = -2 |N(0, 1)|, policy and ref = old + 0.2 N(0, 1), advantages (B,) = N(0, 1)",
    "reverse_kl": "student = 2 N(0, 1), teacher = student + N(0, 1)",
    "full": "bool, every token valid",
    "ragged": "bool, each row valid up to a length drawn from [T/2, T]",
}


def shapes_of(kernel: str, device: str) -> list[tuple[int, ...]]:
    family = baselines.split(kernel)[0]
    if family != "reverse_kl":
        return SHAPES[family]
    return SHAPES["reverse_kl_cpu"] if device == "cpu" else [(*s, 248320) for s in SHAPES["reverse_kl_cuda"]]


def make_inputs(kernel: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, mask_kind: str) -> list[Tensor]:
    """The tensors of one call, in the order of the public function; the distribution is INPUTS."""

    def normal(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, device=device)

    rows = shape[:2]
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    if mask_kind == "ragged":
        lengths = torch.randint(math.ceil(rows[1] / 2), rows[1] + 1, (rows[0], 1), device=device)
        mask = torch.arange(rows[1], device=device) < lengths
    if baselines.split(kernel)[0] == "reverse_kl":
        student = normal(shape).mul_(2)
        teacher = normal(shape).add_(student)
        return [student.to(dtype), teacher.to(dtype), mask]
    old = normal(shape).abs_().mul_(-2)
    policy, ref = (old + 0.2 * normal(shape) for _ in range(2))
    return [policy.to(dtype), old.to(dtype), ref.to(dtype), normal((shape[0],)).to(dtype), mask]


def bytes_moved(kernel: str, inputs: list[Tensor], beta: float | None) -> int:
    """What a call must move: every valid input once, a gradient once. Masked logits need no read."""
    family, variant = baselines.split(kernel)
    grads = 0 if variant == "fwd" else inputs[0].nbytes
    if family == "reverse_kl":
        valid = inputs[2].float().mean().item()
        return round(valid * (inputs[0].nbytes + inputs[1].nbytes)) + inputs[2].nbytes + grads
    read = sum(x.nbytes for i, x in enumerate(inputs) if i != 2 or beta)
    return read + grads


def build(kernel: str, impl: str, beta: float | None) -> Callable:
    if impl != "strop":
        return baselines.build(kernel, impl, beta)
    function = getattr(strop, kernel)
    options = {} if beta is None else {"beta": beta, "eps": baselines.EPS}

    def call(*inputs: Tensor):
        return function(*inputs, **options)

    return baselines.with_backward(call) if kernel.endswith("_autograd") else call


def check(result, expected, dtype: torch.dtype) -> None:
    """Nothing wrong is timed. A gate only: the tests hold the library to its real tolerances."""
    result, expected = (x if isinstance(x, tuple) else (x,) for x in (result, expected))
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    for ours, reference in zip(result, expected, strict=True):
        error = (ours.float() - reference.float()).abs().max().item()
        scale = reference.abs().max().item()
        if not error <= rounding * scale + 1e-6:
            raise AssertionError(f"wrong by {error:.3g} where values reach {scale:.3g}")


def measure(job: dict, options: argparse.Namespace) -> list[dict]:
    """All implementations of one kernel, shape, dtype and beta; one row each."""
    kernel, beta = job["kernel"], job["beta"]
    torch._dynamo.reset()  # static shapes: nothing of an earlier shape may count as a recompilation
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    torch.manual_seed(0)

    def draw() -> list[Tensor]:
        return make_inputs(kernel, tuple(job["shape"]), DTYPES[job["dtype"]], options.device, options.mask)

    sets = [draw()]
    total = bytes_moved(kernel, sets[0], beta)
    if options.method == "graph" and total < 2**28:  # larger ones leave nothing of themselves in the L2 anyway
        sets += [draw(), draw()]
    try:
        expected = baselines.build(kernel, "eager", beta)(*sets[0])
    except torch.OutOfMemoryError:
        expected = None  # only eager needs so much memory; the smaller shapes are checked
    rows, calls = {}, {}
    for impl in options.impl:
        rows[impl] = {**job, "impl": impl, "method": options.method, "us": None, "bytes": total}
        try:
            function = build(kernel, impl, beta)
            result = function(*sets[0])
            if expected is not None:
                check(result, expected, DTYPES[job["dtype"]])
            del result
            calls[impl] = [lambda f=function, x=x: f(*x) for x in sets]
        except (baselines.NotAvailable, ImportError, torch.OutOfMemoryError) as error:
            rows[impl]["why"] = str(error)
        except torch._dynamo.exc.TorchDynamoException as error:
            rows[impl]["why"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    del expected
    first = {impl: group[0] for impl, group in calls.items()}
    if options.method == "graph":
        times = timing.graph_times(calls, options.rounds)
    elif options.method == "do_bench":
        times = timing.do_bench_times(first)
    else:
        times = timing.wall_times(first, options.device, options.rounds)
    average = statistics.mean if options.device == "cuda" and options.method == "wall" else statistics.median
    for impl, row in rows.items():
        if impl in times:
            seen = sorted(times[impl])
            row["us"] = round(1e6 * average(seen), 3)
            spread = (seen[0], seen[len(seen) // 4], seen[(3 * len(seen)) // 4])
            row["us_best_and_quartiles"] = [round(1e6 * seconds, 3) for seconds in spread]
        elif impl in calls:
            row["why"] = "out of memory"
    return list(rows.values())


def run(options: argparse.Namespace) -> dict:
    inputs = {**{family: INPUTS[family] for family in ("policy_loss", "reverse_kl")}, "mask": INPUTS[options.mask]}
    record = records.open_record(options.output, options.device, inputs)
    done = {records.key(row) for row in record["rows"]}
    jobs = []
    for kernel in options.kernels:
        for dtype in options.dtypes:
            for shape in options.shapes or shapes_of(kernel, options.device):
                for beta in [None] if kernel.startswith("reverse_kl") else options.beta:
                    job = {"kernel": kernel, "shape": list(shape), "dtype": dtype, "beta": beta}
                    wanted = {records.key({**job, "impl": impl, "method": options.method}) for impl in options.impl}
                    if not wanted <= done:
                        jobs.append(job)
    with tqdm(jobs, unit="case", dynamic_ncols=True) as bar:
        for job in bar:
            bar.set_description(f"{job['kernel']} {tuple(job['shape'])} {job['dtype']}")
            rows = measure(job, options)
            rates, size = record["limits"]["copy_gb_per_s"], records.copy_class(rows[0]["bytes"], options.device)
            if str(size) not in rates:
                rates[str(size)] = round(timing.copy_rate(options.device, size) / 1e9, 2)
            records.add(record, rows, options.output)
    return record


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def names(allowed: list[str]) -> Callable[[str], list[str]]:
        def split(text: str) -> list[str]:
            unknown = [word for word in text.split(",") if word not in allowed]
            if unknown:
                raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(allowed)}")
            return text.split(",")

        return split

    def shapes(text: str) -> list[tuple[int, ...]]:
        return [tuple(int(size) for size in shape.split("x")) for shape in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--kernels", type=names(KERNELS), default=KERNELS[:6], metavar="NAME,…", help="default: all but autograd")
    add("--shapes", type=shapes, metavar="16x1024,…", help="default: those that others have published figures for")
    add("--dtypes", type=names(list(DTYPES)), default=["fp32"], metavar="fp32,fp16,bf16")
    add("--beta", type=lambda text: [float(x) for x in text.split(",")], default=[0.1], metavar="0.1,0")
    add("--impl", type=names(IMPLS), default=IMPLS[:4], metavar="NAME,…", help=f"of {', '.join(IMPLS)}; all but liger")
    add("--method", choices=["wall", "do_bench", "graph"], default="wall")
    add("--mask", choices=["full", "ragged"], default="full")
    add("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    add("--rounds", type=int, default=25, help="turns that each implementation gets (CPU and graph)")
    add("--output", type=Path, metavar="JSON", help="written after each case, and gone on with")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and options.method != "wall":
        parser.error(f"--method {options.method} needs --device cuda")
    return options


def main(arguments: list[str] | None = None) -> dict:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    record = run(options)
    records.print_table(record, IMPLS)
    return record


if __name__ == "__main__":
    main()
