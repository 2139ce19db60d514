"""What reverse KL allocates on a GPU beyond its inputs, and beyond its gradient, into the "memory" of a record.

    python benchmarks/memory.py --output benchmarks/records/h100.json

Without --shapes and --dtypes it takes the largest shape of losses.py, in bf16. No time is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import baselines
import cases
import record as records
import torch
from torch import Tensor
from tqdm import tqdm


def calls() -> dict[str, tuple[Callable, bool]]:
    """By name: what is called with student, teacher and mask, and whether the gradient takes the student's memory."""
    import strop

    def inplace(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return strop.reverse_kl(student, teacher, mask, inplace=True)

    def eager(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return baselines.build("reverse_kl", "eager", None)(student.detach().requires_grad_(), teacher, mask)

    return {
        "reverse_kl_fwd": (strop.reverse_kl_fwd, True),  # it has no gradient to account for
        "reverse_kl": (strop.reverse_kl, False),
        "reverse_kl(inplace=True)": (inplace, True),
        "eager": (eager, False),
    }


def peak_beyond_inputs(call: Callable[[], object]) -> int | None:
    """Bytes allocated at once at the most while it runs, beyond what was; None: more than there is.

    It runs twice: what the first call sets up once is not a call's.
    """
    try:
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    except torch.OutOfMemoryError:
        return None


def measure(shape: tuple[int, ...], dtype: str) -> list[dict]:
    torch.manual_seed(0)
    rows = []
    student, teacher, mask = cases.make_inputs("reverse_kl", shape, cases.DTYPES[dtype], "cuda", "full")
    for name, (function, no_gradient) in calls().items():
        peak = peak_beyond_inputs(lambda function=function: function(student, teacher, mask))
        beyond = None if peak is None else peak - (0 if no_gradient else student.nbytes)
        rows.append({"call": name, "shape": list(shape), "dtype": dtype, "peak": peak, "beyond": beyond})
        torch.cuda.empty_cache()
    return rows


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="8x1024x248320", metavar="8x1024x248320,…")
    parser.add_argument("--dtypes", default="bf16", metavar="fp32,fp16,bf16")
    parser.add_argument("--output", type=Path, metavar="JSON", help="the record that the figures are added to")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device: this asks PyTorch's allocator for one")
    record = records.open_record(options.output, records.new_record("cuda", cases.described("full")))
    chosen = [(tuple(map(int, s.split("x"))), d) for s in options.shapes.split(",") for d in options.dtypes.split(",")]
    fresh = [row for shape, dtype in tqdm(chosen, unit="case") for row in measure(shape, dtype)]
    measured = {(tuple(row["shape"]), row["dtype"]) for row in fresh}
    kept = [row for row in record.get("memory", []) if (tuple(row["shape"]), row["dtype"]) not in measured]
    record["memory"] = kept + fresh
    records.add(record, [], options.output)
    for row in fresh:
        sizes = ", ".join(f"{n} {'-' if row[n] is None else f'{row[n]:,}'} bytes" for n in ("peak", "beyond"))
        print(f"{row['call']} {tuple(row['shape'])} {row['dtype']}: {sizes}")
    return record


if __name__ == "__main__":
    main()
