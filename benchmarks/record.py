"""The record of a benchmark: where it was measured, its rows, and the table that is drawn from them."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

FAMILIES = ("grpo_loss", "bnpo_loss", "reverse_kl")
DTYPES = ("fp32", "fp16", "bf16")
FULL_MASK = "bool, every token valid"


def command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        if names:
            return names[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version_of(module: str) -> str | None:
    try:
        return __import__(module).__version__
    except (ImportError, AttributeError):
        return None


def new_record(device: str, inputs: dict[str, str]) -> dict:
    import torch  # here: whoever reads records needs none

    dirty = "" if command("git", "status", "--porcelain", "--untracked-files=no") == "" else "-dirty"
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    versions |= {name: version_of(name) for name in ("torch", "triton", "strop", "liger_kernel")}
    return {
        "gpu" if device == "cuda" else "cpu": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "versions": {name: version for name, version in versions.items() if version is not None},
        # STROP_COMMIT: on a machine that got the files without their history.
        "commit": os.environ.get("STROP_COMMIT") or command("git", "rev-parse", "HEAD") + dirty,
        "limits": {"threads": torch.get_num_threads(), "inputs": inputs, "copy_gb_per_s": {}},
        "rows": [],
    }


def machine(record: dict) -> str:
    return record.get("gpu") or f"{record['cpu']}, {record['limits']['threads']} threads"


def key(row: dict) -> tuple:
    """What a row is of: no two rows of a record have the same."""
    if "model" in row:  # of inference.py
        return (row["model"], tuple(row["shape"]), row["padding"], row["dtype"], row["impl"], row["method"])
    return (row["kernel"], tuple(row["shape"]), row["dtype"], row["beta"], row["impl"], row["method"])


def open_record(path: Path | None, fresh: dict) -> dict:
    """The empty record, or the one at `path` to go on with; one that was measured under other conditions is refused."""
    if path is None or not path.exists():
        return fresh
    record = json.loads(path.read_text())
    measured = ("rows", "limits", "memory")
    different = [name for name in {**fresh, **record} if name not in measured and fresh.get(name) != record.get(name)]
    different += [name for name in ("threads", "inputs") if fresh["limits"][name] != record["limits"][name]]
    if different:
        sys.exit(f"{path} was measured with another {', '.join(different)}: choose another --output")
    return record


def add(record: dict, rows: list[dict], path: Path | None) -> None:
    """Takes the rows in, in place of older ones, and writes the record whole or not at all."""
    fresh = {key(row) for row in rows}
    record["rows"] = [row for row in record["rows"] if key(row) not in fresh] + rows
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(as_json(record))
        os.replace(partial, path)


def as_json(record: dict) -> str:
    """A line for each row, so that a row is a line of a diff."""
    head = json.dumps({name: value for name, value in record.items() if name != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in record["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def copy_class(total: int, device: str) -> int:
    """Bytes at which the copy rate is measured for a call that moves `total`.

    On the CPU the next power of two, so that a call that fits a cache is held against a copy that does; on CUDA always
    1 GiB, far beyond the L2.
    """
    return 2**30 if device == "cuda" else min(2**30, 2 ** math.ceil(math.log2(max(total, 4096))))


def floor_us(row: dict, limits: dict) -> float:
    """Time that a copy of as many bytes takes, in microseconds."""
    rates = limits["copy_gb_per_s"]
    size = min((int(size) for size in rates if int(size) >= row["bytes"]), default=2**30)
    return row["bytes"] / rates[str(size)] / 1e3


def comparisons(record: dict) -> list[dict]:
    """A line for each case: microseconds of each implementation, speed-ups over the baselines, share of the floor."""
    cases: dict[tuple, dict] = {}
    for row in record["rows"]:
        *case, impl, method = key(row)
        line = cases.setdefault((*case, method), {"case": tuple(case), "method": method, "us": {}, "why": {}})
        line["us"][impl], line["floor_us"] = row["us"], floor_us(row, record["limits"])
        line["why"][impl] = row.get("why")
        line["add_us"] = row.get("add_us")  # older records have none
    for line in cases.values():
        times = {impl: us for impl, us in line["us"].items() if us is not None}
        compiles = [us for impl, us in times.items() if impl.startswith("compile")]
        ours = times.get("strop")
        line["vs_eager"] = times["eager"] / ours if ours and "eager" in times else None
        line["vs_compile"] = min(compiles) / ours if ours and compiles else None
        line["of_floor"] = line["floor_us"] / ours if ours else None
        fed = times.get("fused_backward")
        line["of_fused_backward"] = ours / fed if ours and fed else None
    return list(cases.values())


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def print_table(record: dict, order: list[str]) -> None:
    lines = comparisons(record)
    impls = [impl for impl in order if any(impl in line["us"] for line in lines)]
    heads = ["kernel", "shape", "dtype", "beta", "method", *(f"{impl} µs" for impl in impls)]
    heads += ["vs eager", "vs compile", "of floor"]
    table = []
    for line in lines:
        kernel, shape, dtype, beta = line["case"]
        times = [line["us"].get(impl) for impl in impls]
        ratios = [("-" if line[r] is None else f"{line[r]:.2f}") for r in ("vs_eager", "vs_compile", "of_floor")]
        shown = ["-" if us is None else f"{us:.1f}" for us in times]
        described = [kernel, "×".join(map(str, shape)), dtype, "-" if beta is None else f"{beta:g}", line["method"]]
        table.append([*described, *shown, *ratios])
    widths = [max(len(row[i]) for row in [heads, *table]) for i in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *table]:
        cells = [x.ljust(w) if i < 5 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells))
    print("\nGeometric means over shapes (times faster), with the worst shape in brackets:")
    groups: dict[tuple, list[dict]] = {}
    for line in lines:
        kernel, _, dtype, beta = line["case"]
        groups.setdefault((kernel, dtype, beta, line["method"]), []).append(line)
    for (kernel, dtype, beta, method), group in groups.items():
        parts = []
        for ratio in ("vs_eager", "vs_compile"):
            values = [line[ratio] for line in group if line[ratio] is not None]
            if values:
                parts.append(f"{ratio.replace('_', ' ')} {geometric_mean(values):6.2f} ({min(values):.2f})")
        name = kernel if beta is None else f"{kernel}, beta {beta:g}"
        print(f"  {name:<34}{dtype}  {method:<9}{'   '.join(parts)}")
    reasons = {(impl, why) for line in lines for impl, why in line["why"].items() if why}
    for impl, why in sorted(reasons):
        print(f"Without {impl} where: {why}")
