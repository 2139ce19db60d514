"""Draws a plot for each kernel and method of a record: speed-up by shape, and share of the floor.

python benchmarks/plot.py benchmarks/records/h100.json [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import matplotlib
import record as records

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

COLOURS = {"fp32": "#1f77b4", "fp16": "#e6842a", "bf16": "#2a9d4a"}
BASELINES = {"vs_compile": ("torch.compile, the faster form", "-", "o"), "vs_eager": ("eager", ":", "s")}


def curve(
    axis: Axes, places: dict[tuple, int], lines: list[dict], ratio: str, dtype: str, style: str, marker: str
) -> None:
    """One measure of one dtype by shape; shapes without it are left out."""
    points = sorted((places[line["case"][1]], line[ratio]) for line in lines if line[ratio] is not None)
    if points:
        axis.plot(*zip(*points, strict=True), style, marker=marker, markersize=5, linewidth=1.5, color=COLOURS[dtype])
    for x, y in points:
        if ratio != "of_floor" and y < 1:  # a loss is to be seen
            axis.annotate(f"{y:.2f}", (x, y), xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8)


def panels(above: Axes, below: Axes, lines: list[dict], title: str) -> None:
    """Speed-ups over each other in one axis, shares of the floor in the other."""
    shapes = sorted({line["case"][1] for line in lines}, key=math.prod)
    places = {shape: place for place, shape in enumerate(shapes)}
    for dtype in COLOURS:
        own = [line for line in lines if line["case"][2] == dtype]
        for ratio, (_, style, marker) in BASELINES.items():
            curve(above, places, own, ratio, dtype, style, marker)
        curve(below, places, own, "of_floor", dtype, "-", "o")
    above.axhline(1, color="black", linewidth=1)
    above.set_title(title, fontsize=10)
    above.set_yscale("log")  # eager is often tens of times slower, and 1 is the line that matters
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", which="major", linewidth=0.4)
    above.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_minor_formatter("")
    above.margins(y=0.12)
    below.margins(y=0.1)
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    below.set_xticks(range(len(shapes)), ["×".join(map(str, shape)) for shape in shapes], fontsize=8, rotation=20)


def legend(figure: pyplot.Figure, dtypes: list[str]) -> None:
    line = matplotlib.lines.Line2D
    entries = [line([], [], color=COLOURS[dtype], linewidth=3, label=dtype) for dtype in dtypes]
    for name, style, marker in BASELINES.values():
        entries.append(line([], [], color="black", linestyle=style, marker=marker, markersize=5, label=f"vs {name}"))
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=9)


def draw(record: dict, kernel: str, method: str, path: Path) -> None:
    """A column for each beta; dtypes by colour, baselines by line."""
    chosen = [x for x in records.comparisons(record) if (x["case"][0], x["method"]) == (kernel, method)]
    betas = sorted({line["case"][3] for line in chosen}, key=str)
    figure, axes = pyplot.subplots(
        2, len(betas), figsize=(max(7, 5 * len(betas)), 7), layout="constrained", sharex="col", sharey="row",
        squeeze=False, height_ratios=[3, 2],
    )  # fmt: skip
    for column, beta in enumerate(betas):
        lines = [line for line in chosen if line["case"][3] == beta]
        panels(*axes[:, column], lines, "" if beta is None else f"beta {beta:g}")
    axes[0, 0].set_ylabel("times faster")
    axes[1, 0].set_ylabel("share of the rate of a copy")
    versions = f"PyTorch {record['versions']['torch']}, {record['commit'][:10]}"
    figure.suptitle(f"{kernel} on {records.machine(record)}, {method}\n{versions}", fontsize=11)
    legend(figure, [dtype for dtype in COLOURS if any(line["case"][2] == dtype for line in chosen)])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--output", type=Path, help="folder; default: beside the record")
    options = parser.parse_args(arguments)
    record = json.loads(options.record.read_text())
    folder, paths = options.output or options.record.parent, []
    for kernel, method in dict.fromkeys((row["kernel"], row["method"]) for row in record["rows"]):
        paths.append(folder / f"{options.record.stem}-{kernel}-{method}.png")
        draw(record, kernel, method, paths[-1])
    print("\n".join(map(str, paths)))
    return paths


if __name__ == "__main__":
    main()
