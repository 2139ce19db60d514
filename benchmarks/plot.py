"""Draws a plot for each kernel of a record: speed-up by shape, and share of the floor.

python benchmarks/plot.py benchmarks/records/h100.json [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import record as records

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

COLOURS = {"vs_eager": "#9ecae1", "vs_compile": "#3182bd", "of_floor": "#31a354"}


def label(line: dict, several: dict[str, bool]) -> str:
    _, shape, dtype, beta = line["case"]
    parts = ["×".join(map(str, shape)), dtype]
    parts += [f"β {beta:g}"] if beta is not None and several["beta"] else []
    parts += [line["method"]] if several["method"] else []
    return "\n".join(parts)


def bars(axis, lines: list[dict], measures: dict[str, str]) -> None:
    width = 0.8 / len(measures)
    for number, (measure, name) in enumerate(measures.items()):
        places = [i + (number - (len(measures) - 1) / 2) * width for i in range(len(lines))]
        heights = [line[measure] or 0 for line in lines]
        drawn = axis.bar(places, heights, width, color=COLOURS[measure], label=name)
        percent = measure == "of_floor"
        texts = ["" if not h else f"{h:.0%}" if percent else f"{h:.1f}" if h < 10 else f"{h:.0f}" for h in heights]
        axis.bar_label(drawn, texts, fontsize=8, padding=2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.15)


def draw(record: dict, kernel: str, folder: Path, stem: str) -> Path:
    lines = [line for line in records.comparisons(record) if line["case"][0] == kernel]
    several = {
        "beta": len({line["case"][3] for line in lines}) > 1,
        "method": len({line["method"] for line in lines}) > 1,
    }
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(max(7, 0.95 * len(lines)), 7), layout="constrained", sharex=True, height_ratios=[3, 2]
    )
    threads = "" if "gpu" in record else f", {record['limits']['threads']} threads"
    machine = record.get("gpu") or record.get("cpu")
    figure.suptitle(f"{kernel} on {machine}{threads}, PyTorch {record['versions']['torch']}, {record['commit'][:10]}")
    bars(above, lines, {"vs_eager": "eager", "vs_compile": "torch.compile, the faster form"})
    above.axhline(1, color="black", linewidth=1)
    above.set_yscale("log")  # eager is often tens of times slower, and 1 is the line that matters
    above.yaxis.set_major_formatter("{x:g}")
    above.set_ylabel("times faster than")
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    bars(below, lines, {"of_floor": "floor"})
    below.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    below.set_ylabel("share of the rate of a copy")
    below.set_xticks(range(len(lines)), [label(line, several) for line in lines], fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{kernel}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def main(arguments: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--output", type=Path, help="folder; default: beside the record")
    options = parser.parse_args(arguments)
    record = json.loads(options.record.read_text())
    kernels = list(dict.fromkeys(row["kernel"] for row in record["rows"]))
    folder = options.output or options.record.parent
    paths = [draw(record, kernel, folder, options.record.stem) for kernel in kernels]
    print("\n".join(map(str, paths)))
    return paths


if __name__ == "__main__":
    main()
