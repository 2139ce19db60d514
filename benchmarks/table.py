"""Prints what records say as Markdown, for README.md: means and worst shapes, beside what others published.

    python benchmarks/table.py benchmarks/records/h100-*.json

Where records overlap, the later one on the command line counts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import published
import record as records

ORDER = [f"{family}{variant}" for variant in ("", "_fwd", "_autograd") for family in records.FAMILIES]
METHODS = {
    "wall": "wall clock, each call waited for",
    "do_bench": "`do_bench`, a fresh process for each shape",
    "graph": "GPU time of a replayed CUDA graph, the L2 cold",
}
RATIOS = {"vs_eager": "eager", "vs_compile": "compile"}
KEY = (
    "Times faster: geometric mean over shapes, the worst shape in brackets, **bold** where that is slower than the "
    "baseline (below 1). Published: CuTeDSL kernels on an H100, dtype not stated; **bold** where that is faster."
)


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"


def beta_text(beta: float | None) -> str:
    return "–" if beta is None else f"{beta:g}"


def mean_and_worst(lines: list[dict], ratio: str, worst=min) -> str:
    """Of the shapes that have this ratio; how many those are is said where not all do."""
    having = [line for line in lines if line[ratio] is not None]
    if not having:
        return "–"
    mean, least = records.geometric_mean([line[ratio] for line in having]), worst(having, key=lambda line: line[ratio])
    shown = number(least[ratio])
    if worst is min and least[ratio] < 1:
        shown = f"**{shown}**"
    of_all = "" if len(having) == len(lines) else f", {len(having)} of {len(lines)} shapes"
    return f"{number(mean)} ({shown} at {by_shape(least['case'][1])}{of_all})"


def published_cell(lines: list[dict], ratio: str) -> str:
    kernel, _, _, beta = lines[0]["case"]
    theirs = published.speed_up(lines[0]["method"], kernel, beta, ratio)
    if theirs is None:
        return "–"
    ours = [line[ratio] for line in lines if line[ratio] is not None]
    behind = ours and records.geometric_mean(ours) < theirs
    return f"**{theirs:g}**" if behind else f"{theirs:g}"


def smallest(lines: list[dict]) -> str:
    """Microseconds of the smallest shape, and that as a multiple of adding one to one element."""
    line = min(lines, key=lambda line: math.prod(line["case"][1]))
    ours, add = line["us"].get("strop"), line["add_us"]
    return "–" if not ours else number(ours) if not add else f"{number(ours)} ({ours / add:.1f})"


def floor_range(lines: list[dict]) -> str:
    """Share of the rate of a copy, from the smallest shape to the largest."""
    ordered = sorted(lines, key=lambda line: math.prod(line["case"][1]))
    shares = [f"{100 * line['of_floor']:.0f}" for line in ordered if line["of_floor"]]
    return f"{', '.join(shares)} %" if shares else "–"


def groups(lines: list[dict]) -> Iterator[list[dict]]:
    """Lines that differ in shape alone, in the order of the table."""
    found: dict[tuple, list[dict]] = {}
    for line in lines:
        kernel, _, dtype, beta = line["case"]
        place = ORDER.index(kernel), -1 if beta is None else beta, records.DTYPES.index(dtype), line["method"]
        found.setdefault(place, []).append(line)
    for place in sorted(found):
        yield found[place]


def speed_tables(lines: list[dict], gpu: bool) -> Iterator[str]:
    """A table for each method. A CPU is compared with nobody's GPU; by the clock a GPU is far from any copy's rate."""
    for method, title in METHODS.items():
        shares = not (gpu and method == "wall")
        rows = []
        for group in groups([line for line in lines if line["method"] == method and "strop" in line["us"]]):
            kernel, _, dtype, beta = group[0]["case"]
            row = [f"`{kernel}`", beta_text(beta), dtype]
            for ratio in RATIOS:
                row += [mean_and_worst(group, ratio), *[published_cell(group, ratio)] * gpu]
            rows.append([*row, smallest(group), *[floor_range(group)] * shares])
        if rows:
            theirs = ["published"] * gpu
            heads = ["", "beta", "dtype", "vs eager", *theirs, "vs compile", *theirs]
            heads += ["smallest shape, µs (of an `add_`)", *["share of the copy rate, by size"] * shares]
            yield f"**{title[0].upper()}{title[1:]}**\n\n{markdown(heads, rows)}"


def slower(lines: list[dict]) -> Iterator[str]:
    """Every shape that loses to a baseline."""
    for group in groups(lines):
        for line in group:
            kernel, shape, dtype, beta = line["case"]
            for ratio, name in RATIOS.items():
                if line[ratio] is not None and line[ratio] < 1:
                    ours = line["us"]["strop"]
                    yield (
                        f"- `{kernel}` {by_shape(shape)} {dtype}, beta {beta_text(beta)}, {line['method']}: "
                        f"{number(line[ratio])} × {name} ({number(ours)} µs against {number(ours * line[ratio])})"
                    )


def autograd_table(lines: list[dict]) -> str | None:
    rows = []
    for group in groups([line for line in lines if line["of_fused_backward"] is not None]):
        kernel, _, dtype, beta = group[0]["case"]
        ratio = mean_and_worst(group, "of_fused_backward", worst=max)
        rows.append([f"`{kernel}`", beta_text(beta), dtype, group[0]["method"], ratio])
    return (
        markdown(["", "beta", "dtype", "method", "time of the fused call and `backward(grad)`"], rows) if rows else None
    )


def mask_table(masked: list[dict], full: dict[tuple, dict], mask: str) -> str | None:
    """Time with this mask over time with every token valid."""
    lines = []
    for line in masked:
        other = full.get((line["case"], line["method"]), {"us": {}})["us"].get("strop")
        ours = line["us"].get("strop")
        if ours and other:
            lines.append({**line, "of_full": ours / other})
    rows = []
    for group in groups(lines):
        kernel, _, dtype, beta = group[0]["case"]
        ratio = mean_and_worst(group, "of_full", worst=max)
        rows.append([f"`{kernel}`", beta_text(beta), dtype, group[0]["method"], ratio])
    return (
        f"Mask: {mask}\n\n" + markdown(["", "beta", "dtype", "method", "time of a full mask's"], rows) if rows else None
    )


def memory_table(rows: list[dict]) -> str:
    cells = [
        [f"`{row['call']}`", by_shape(row["shape"]), row["dtype"], *(mebibytes(row[n]) for n in ("peak", "beyond"))]
        for row in rows
    ]
    return markdown(["", "shape", "dtype", "peak beyond inputs, MiB", "and beyond the gradient, MiB"], cells)


def mebibytes(count: int | None) -> str:
    return "out of memory" if count is None else f"{count / 2**20:,.1f}"


def report(loaded: list[dict]) -> Iterator[str]:
    """Sections, for each machine."""
    for machine in dict.fromkeys(records.machine(record) for record in loaded):
        own = [record for record in loaded if records.machine(record) == machine]
        masks: dict[str, dict[tuple, dict]] = {}
        for record in own:
            for line in records.comparisons(record):
                masks.setdefault(record["limits"]["inputs"]["mask"], {})[line["case"], line["method"]] = line
        versions = dict.fromkeys(f"PyTorch {r['versions']['torch']}, commit {r['commit'][:10]}" for r in own)
        full = masks.pop(records.FULL_MASK, {})
        yield f"### {machine} ({'; '.join(versions)})"
        if full:
            yield KEY
            yield from speed_tables(list(full.values()), "gpu" in own[0])
            yield "\n".join(["Slower than a baseline:", "", *(list(slower(list(full.values()))) or ["- none"])])
        tables = [autograd_table(list(full.values()))]
        tables += [mask_table(list(lines.values()), full, mask) for mask, lines in masks.items()]
        tables += [memory_table(rows) for rows in [[row for r in own for row in r.get("memory", [])]] if rows]
        yield from (table for table in tables if table)


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    text = "\n\n".join(report([json.loads(path.read_text()) for path in options.records]))
    print(text)
    return text


if __name__ == "__main__":
    main()
