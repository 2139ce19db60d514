"""What the demo says at its end: whether strop and plain PyTorch agree, who learned what, and what the losses cost."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from addition import ANSWER_LENGTH, Problems, Transformer, decode, reward
from curves import Curve, same_samples


@dataclass
class Check:
    what: str
    seen: str
    holds: bool


# Two runs that differ by rounding, 1e-7 of a gradient, drift apart: here about tenfold every 30 updates. Twenty times
# what that leaves over the first 20 is still far below what a wrong loss would do. Later on, a sampled character
# flips, and the runs part like runs of different seeds: only where they end up can be compared.
FIRST, TOLERANCE = 20, 1e-5
OUTCOME = 0.12  # in accuracy: some three standard deviations of what seeds do to the end of these short runs


def agreement(name: str, ours: Curve, plain: Curve) -> list[Check]:
    worst = max(ours.same_state)
    same, updates = same_samples(ours, plain), len(ours.losses)
    pairs = list(zip(ours.losses, plain.losses, strict=True))
    early = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs[:FIRST])
    largest = max(abs(a - b) for a, b in pairs)
    apart = abs(ours.accuracy - plain.accuracy)
    return [
        Check(
            f"{name}: loss and gradient of the same inputs, {updates} updates",
            f"differ by at most {worst:.0%} of what float32 rounding may cost",
            all(share <= 1 for share in ours.same_state),  # no for a NaN too, unlike max()
        ),
        Check(
            f"{name}: losses of the two runs, first {FIRST} updates",
            f"differ by at most {early:.1e}; tolerance {TOLERANCE:.0e}",
            early <= TOLERANCE,
        ),
        Check(
            f"{name}: the runs as a whole",
            f"same samples for {same} of {updates} updates, largest difference {largest:.1e}; "
            f"accuracies {apart:.1%} apart, tolerance {OUTCOME:.0%}",
            apart <= OUTCOME,
        ),
    ]


def print_table(rows: list[list[str]]) -> None:
    """Columns under their heads, the first row; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "   ".join(cells))
        if number == 0:
            print("  " + "   ".join("─" * width for width in widths))


def answer(tokens: torch.Tensor) -> str:
    """The number that a completion says, which is written units first."""
    return decode(tokens).split("$")[0][::-1] or "nothing"


def print_answers(problems: Problems, models: dict[str, Transformer], count: int = 6) -> None:
    prompts, answers = problems.held_out
    completions = {name: model.complete(prompts) for name, model in models.items()}
    wrong_at_first = (reward(completions["imitation"], answers) == 0).nonzero().flatten()[:count].tolist()
    rows = [["", "right", *completions]]
    for index in wrong_at_first:
        rows.append([decode(prompts[index]), answer(answers[index]), *(answer(c[index]) for c in completions.values())])
    print("\nHeld-out sums that imitation got wrong")
    print_table(rows)


def print_report(
    problems: Problems,
    models: dict[str, Transformer],
    imitation: Curve,
    pairs: dict[str, tuple[Curve, Curve]],
    checks: list[Check],
) -> None:
    print_answers(problems, models)
    threads = torch.get_num_threads()
    print(f"\nWhat was learned, and what the losses cost (float32, {threads} thread{'s' * (threads != 1)})")
    rows = [["", "strop", "plain PyTorch"]]

    def add(what: str, show, name: str) -> None:
        rows.append([f"{name}: {what}", *(show(curve) for curve in pairs[name])])

    for name in pairs:
        first = pairs[name][0]
        add("held-out sums right, before", lambda c: f"{c.evaluations[0][1]:.1%}", name)
        add("held-out sums right, after", lambda c: f"{c.accuracy:.1%}", name)
        if first.rewards:
            add("sampled answers right, first 5 rounds", lambda c: f"{statistics.fmean(c.rewards[:5]):.1%}", name)
            add("sampled answers right, last 5 rounds", lambda c: f"{statistics.fmean(c.rewards[-5:]):.1%}", name)
        add("loss, forward and backward, median", lambda c: f"{1e6 * statistics.median(c.loss_seconds):.0f} µs", name)
        add("loss, all updates", lambda c: f"{sum(c.loss_seconds):.2f} s", name)
        add("training, all of it", lambda c: f"{c.seconds:.1f} s", name)
        add("tokens a second", lambda c: f"{c.tokens / c.seconds:,.0f}", name)
    print_table(rows)
    grpo = pairs["GRPO"][0]
    print(
        f"\nImitation: {len(imitation.losses)} updates in {imitation.seconds:.1f} s, "
        f"{imitation.tokens / imitation.seconds:,.0f} tokens a second. "
        f"GRPO's largest ratio of policies: {grpo.largest_ratio:.2f}. "
        f"Answers are masked behind their end mark, at most {ANSWER_LENGTH} characters."
    )
    print("\nDo strop and plain PyTorch agree?")
    for check in checks:
        print(f"  {'yes' if check.holds else 'NO '}  {check.what}\n       {check.seen}")
