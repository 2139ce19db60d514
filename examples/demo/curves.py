"""What training leaves behind, how it is shown while it runs, and its plot."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from torch import Tensor
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


@dataclass
class Curve:
    """A stretch of training."""

    losses: list[float] = field(default_factory=list)  # one an update
    samples: list[Tensor] = field(default_factory=list)  # the completions behind each update
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (updates so far, accuracy on held-out sums)
    rewards: list[float] = field(default_factory=list)  # GRPO: mean over the answers of each round
    loss_seconds: list[float] = field(default_factory=list)  # the loss, forward and backward to its argument
    tokens: int = 0  # valid tokens that the losses took
    seconds: float = 0.0  # all of the training, without evaluations and comparisons
    same_state: list[float] = field(default_factory=list)  # both losses on the same inputs: share of the bound
    largest_ratio: float = 1.0  # GRPO: exp(policy - old) at its largest

    def evaluate(self, accuracy: float) -> None:
        self.evaluations.append((len(self.losses), accuracy))

    @property
    def accuracy(self) -> float:
        return self.evaluations[-1][1]


def progress(what: str, total: int) -> tqdm:
    """A bar on a terminal; elsewhere a line every few seconds."""
    terminal = sys.stderr.isatty()
    layout = "{desc:<30}{percentage:3.0f}% |{bar:20}| {elapsed}  {postfix}" + ("" if terminal else "\n")
    return tqdm(total=total, desc=what, bar_format=layout, mininterval=0.1 if terminal else 10, ascii=not terminal)


OURS = {"color": "#1f77b4", "linewidth": 3, "alpha": 0.55}
PLAIN = {"color": "black", "linewidth": 1, "linestyle": (0, (4, 2))}


def draw(folder: Path, imitation: Curve, pairs: dict[str, tuple[Curve, Curve]]) -> Path:
    """Accuracies above, losses and their differences below; one column a step of the training."""
    (grpo, plain_grpo), (distilled, plain_distilled) = pairs["GRPO"], pairs["distillation"]
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")

    axes[0, 0].set_title("1  Imitation, stopped early")
    axes[0, 0].plot(*zip(*imitation.evaluations, strict=True), color="#2ca02c", linewidth=2)
    axes[1, 0].plot(imitation.losses, color="#2ca02c", linewidth=1)
    axes[1, 0].set_ylabel("cross-entropy")

    axes[0, 1].set_title("2  GRPO from there")
    inner = len(grpo.losses) // len(grpo.rewards)
    for curve, style in ((grpo, OURS), (plain_grpo, PLAIN)):
        rounds = [inner * number for number in range(len(curve.rewards))]
        axes[0, 1].plot(rounds, smooth(curve.rewards), **{**style, "color": "#ff7f0e"} if style is OURS else style)
        axes[0, 1].plot(*zip(*curve.evaluations, strict=True), **style, marker="o", markersize=4)
    axes[0, 1].plot([], [], **{**OURS, "color": "#ff7f0e"}, label="strop, sampled answers (5 rounds' mean)")
    axes[0, 1].plot([], [], **OURS, marker="o", markersize=4, label="strop, held-out sums, greedy")
    axes[0, 1].plot([], [], **PLAIN, label="plain PyTorch, same seed")
    axes[0, 1].legend(loc="lower right")
    differences(axes[1, 1], grpo, plain_grpo)

    axes[0, 2].set_title("3  Distillation into a smaller student")
    for curve, style, name in ((distilled, OURS, "strop"), (plain_distilled, PLAIN, "plain PyTorch, same seed")):
        axes[0, 2].plot(*zip(*curve.evaluations, strict=True), **style, marker="o", markersize=4, label=name)
        axes[1, 2].plot(curve.losses, **style, label=f"reverse KL, {name}")
    axes[0, 2].axhline(grpo.accuracy, color="gray", linewidth=1)
    axes[0, 2].annotate("its teacher", (0, grpo.accuracy), xytext=(2, 4), textcoords="offset points", color="gray")
    axes[0, 2].legend(loc="lower right")
    differences(axes[1, 2], distilled, plain_distilled)

    for axis in axes[0]:
        axis.set_ylim(0, 1.02)
        axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel("right answers")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.set_xlabel("updates")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "learning-curves.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def differences(axis, ours: Curve, plain: Curve) -> None:
    """How far the losses of the two runs are apart after each update, and where their samples part."""
    apart = [max(abs(a - b), 1e-10) for a, b in zip(ours.losses, plain.losses, strict=True)]
    axis.set_ylabel("loss")
    axis.semilogy(apart, color="#d62728", linewidth=1, label="difference of the two losses (≥ 1e-10)")
    same = same_samples(ours, plain)
    if same < len(apart):
        axis.axvline(same, color="gray", linewidth=1, linestyle=":", label="first sample that differs")
    axis.legend(loc="best")


def same_samples(ours: Curve, plain: Curve) -> int:
    """Updates through which both runs sampled the very same completions."""
    for number, (a, b) in enumerate(zip(ours.samples, plain.samples, strict=True)):
        if not a.equal(b):
            return number
    return len(ours.samples)


def smooth(values: list[float], over: int = 5) -> list[float]:
    return [sum(part) / len(part) for part in (values[max(0, i - over + 1) : i + 1] for i in range(len(values)))]
