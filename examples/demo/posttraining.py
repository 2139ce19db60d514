"""Post-training in miniature, on the CPU: imitation, GRPO, distillation, each of them real training.

1. A small transformer learns to add by imitating right answers, and is stopped half-way.
2. GRPO (Shao et al. 2024, arXiv:2402.03300) takes it from there with strop.grpo_loss_autograd: it samples answers, is
   rewarded for the right ones, and is held close to where it started.
3. A student a quarter its size learns from it with strop.reverse_kl_autograd (Gu et al. 2023, arXiv:2306.08543): first
   on answers that the teacher wrote, then on its own.

Steps 2 and 3 are then repeated from the same seeds with the same losses in plain PyTorch (plain_losses.py), and the
two must agree. `make demo` runs it; `python examples/demo/posttraining.py --help` lists the options.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Training a model this small is thousands of short parallel loops: threads that spin between them would only take
# the cores from whatever else runs. PyTorch's OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))  # so that tests can load this file from anywhere

import plain_losses  # noqa: E402
import strop  # noqa: E402
import torch  # noqa: E402
from addition import Problems, Transformer, accuracy, completions_mask, reward, token_logprobs  # noqa: E402
from curves import Curve, draw, progress  # noqa: E402
from report import agreement, print_report  # noqa: E402
from torch import Tensor  # noqa: E402

BETA, EPS = 0.02, 0.2
ROUNDOFF = 2.0**-24  # of float32


@dataclass
class Losses:
    name: str
    grpo: Callable[..., Tensor]
    reverse_kl: Callable[..., Tensor]


STROP = Losses("strop", strop.grpo_loss_autograd, strop.reverse_kl_autograd)
PLAIN = Losses("plain PyTorch", plain_losses.grpo_loss, plain_losses.reverse_kl)


@dataclass
class Settings:
    seed: int = 0
    layers: int = 2
    width: int = 64
    stop_at: float = 0.45  # held-out accuracy at which imitation ends
    prompts: int = 64  # a round of GRPO; each is answered `group` times
    group: int = 8
    rounds: int = 100
    inner: int = 3  # updates a round: from the second on, the policy is no longer the one that answered
    grpo_rate: float = 5e-4
    batch: int = 256  # of the student
    teacher_written: int = 500  # updates of the student on the teacher's answers
    student_written: int = 100  # and, after those, on its own
    student_rate: float = 4e-3
    evaluations: int = 10  # of each stretch of training


QUICK = {"stop_at": 0.1, "prompts": 16, "rounds": 8, "teacher_written": 40, "student_written": 10}


def differentiate(function: Callable[..., Tensor], argument: Tensor, *rest, **options) -> tuple[Tensor, Tensor]:
    """The loss and, through autograd, its gradient with respect to the first argument."""
    loss = function(argument, *rest, **options)
    (gradient,) = torch.autograd.grad(loss, argument)
    return loss.detach(), gradient


class Trainer:
    """AdamW with a short warm-up and clipped gradients."""

    def __init__(self, model: Transformer, rate: float):
        self.parameters = list(model.parameters())
        # eps far above its default: where a gradient is mere rounding noise, Adam would otherwise make a full step of
        # it, and two runs that differ in the last bit would part at once.
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), eps=1e-5, weight_decay=0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: min(1.0, (done + 1) / 20))

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def update(
    curve: Curve, trainer: Trainer, function: Callable[..., Tensor], *inputs, **options
) -> tuple[Tensor, Tensor]:
    """One update; the loss, forward and backward, is timed apart from the model's own backward pass."""
    start = time.perf_counter()
    loss, gradient = differentiate(function, *inputs, **options)
    curve.loss_seconds.append(time.perf_counter() - start)
    curve.losses.append(loss.item())
    inputs[0].backward(gradient)
    trainer.step()
    return loss, gradient


def share_of_bound(ours, theirs, magnitude: float, weight: float) -> float:
    """How far two (loss, gradient) of the same inputs are apart, as a share of what float32 may cost.

    magnitude: the largest value that one token's loss, or its gradient, is computed from; weight: of a token in the
    mean. Both sides round some eight times a token (two units for an exponential) and once more for each level of the
    sums, which for a few thousand terms are another dozen: 16 roundings a side, 32 in all.
    """
    bound = 32 * ROUNDOFF * magnitude
    loss, gradient = (ours[0] - theirs[0]).abs() / bound, (ours[1] - theirs[1]).abs().max() / (bound * weight)
    return torch.maximum(loss, gradient).item()  # NaN where one of them is


def imitate(problems: Problems, settings: Settings) -> tuple[Transformer, Curve]:
    """Maximum likelihood of right answers until the model solves settings.stop_at of the held-out sums."""
    model = Transformer(settings.layers, settings.width, heads=4, seed=settings.seed)
    curve, generator = Curve(), torch.Generator().manual_seed(settings.seed + 1)
    trainer = Trainer(model, 2e-3)
    curve.evaluate(accuracy(model, problems))
    with progress("1 imitation", total=round(100 * settings.stop_at)) as bar:
        while curve.accuracy < settings.stop_at and len(curve.losses) < 2000:
            start = time.perf_counter()
            for _ in range(10):
                prompts, answers = problems.draw(256, generator)
                mask = completions_mask(answers)
                logprobs = token_logprobs(model.completion_logits(prompts, answers), answers)
                loss = -(logprobs * mask).sum() / mask.sum()
                loss.backward()
                trainer.step()
                curve.losses.append(loss.item())
                curve.tokens += int(mask.sum())
            curve.seconds += time.perf_counter() - start
            curve.evaluate(accuracy(model, problems))
            bar.set_postfix_str(f"{curve.accuracy:.0%} right", refresh=False)
            bar.update(round(100 * min(curve.accuracy, settings.stop_at)) - bar.n)
    return model, curve


def group_advantages(rewards: Tensor, group: int) -> Tensor:
    """(B,) rewards to (B,) advantages: within each group of answers to one prompt, mean 0 and deviation 1."""
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    return (centred / (grouped.std(dim=1, keepdim=True) + 1e-4)).view(-1)


def improve(
    start_model: Transformer, problems: Problems, settings: Settings, losses: Losses, check: Losses | None
) -> tuple[Transformer, Curve]:
    """GRPO from start_model, which is also the reference policy."""
    model, curve = copy.deepcopy(start_model), Curve()
    generator = torch.Generator().manual_seed(settings.seed + 2)
    trainer = Trainer(model, settings.grpo_rate)
    curve.evaluate(accuracy(model, problems))
    with progress(f"2 GRPO, {losses.name}", total=settings.rounds) as bar:
        for done in range(1, settings.rounds + 1):
            start, aside = time.perf_counter(), 0.0
            prompts, answers = problems.draw(settings.prompts, generator)
            prompts, answers = (x.repeat_interleave(settings.group, dim=0) for x in (prompts, answers))
            completions = model.complete(prompts, generator)
            mask = completions_mask(completions)
            rewards = reward(completions, answers)
            advantages = group_advantages(rewards, settings.group)
            with torch.no_grad():
                ref = token_logprobs(start_model.completion_logits(prompts, completions), completions)
            old = None
            for _ in range(settings.inner):
                policy = token_logprobs(model.completion_logits(prompts, completions), completions)
                old = policy.detach() if old is None else old
                inputs = (old, ref, advantages, mask)
                ours = update(curve, trainer, losses.grpo, policy, *inputs, beta=BETA, eps=EPS)
                if check is not None:
                    began = time.perf_counter()
                    policy = policy.detach().requires_grad_()
                    theirs = differentiate(check.grpo, policy, *inputs, beta=BETA, eps=EPS)
                    ratio, penalty = ((policy - old).exp() * mask).max(), BETA * ((ref - policy).exp() * mask).max()
                    curve.largest_ratio = max(curve.largest_ratio, ratio.item())
                    magnitude = (ratio * advantages.abs().max() + penalty).clamp(min=BETA).item()
                    weight = 1 / (len(mask) * mask.sum(dim=1).min().item())
                    curve.same_state.append(share_of_bound(ours, theirs, magnitude, weight))
                    aside += time.perf_counter() - began
                curve.samples.append(completions)
                curve.tokens += int(mask.sum())
            curve.rewards.append(rewards.mean().item())
            curve.seconds += time.perf_counter() - start - aside
            if done % max(1, settings.rounds // settings.evaluations) == 0 or done == settings.rounds:
                curve.evaluate(accuracy(model, problems))
            bar.set_postfix_str(f"samples {curve.rewards[-1]:.0%} right, held-out {curve.accuracy:.0%}", refresh=False)
            bar.update()
    return model, curve


def distill(
    teacher: Transformer, problems: Problems, settings: Settings, losses: Losses, check: Losses | None
) -> tuple[Transformer, Curve]:
    """A smaller student from the teacher's distribution: no right answer is ever shown to it."""
    model = Transformer(settings.layers, settings.width // 2, heads=4, seed=settings.seed + 3)
    curve, generator = Curve(), torch.Generator().manual_seed(settings.seed + 4)
    trainer = Trainer(model, settings.student_rate)
    updates = settings.teacher_written + settings.student_written
    train_prompts = problems.prompts[: problems.train_size]
    written = teacher.complete(train_prompts, generator)
    with torch.no_grad():
        written_logits = teacher.completion_logits(train_prompts, written)
    curve.evaluate(accuracy(model, problems))
    with progress(f"3 distillation, {losses.name}", total=updates) as bar:
        for done in range(1, updates + 1):
            start, aside = time.perf_counter(), 0.0
            index = torch.randint(problems.train_size, (settings.batch,), generator=generator)
            prompts = train_prompts[index]
            if done <= settings.teacher_written:
                completions, teacher_logits = written[index], written_logits[index]
            else:
                completions = model.complete(prompts, generator)
                with torch.no_grad():
                    teacher_logits = teacher.completion_logits(prompts, completions)
            mask = completions_mask(completions)
            student_logits = model.completion_logits(prompts, completions)
            ours = update(curve, trainer, losses.reverse_kl, student_logits, teacher_logits, mask)
            if check is not None:
                began = time.perf_counter()
                student_logits = student_logits.detach().requires_grad_()
                theirs = differentiate(check.reverse_kl, student_logits, teacher_logits, mask)
                magnitude = (student_logits.abs().max() + teacher_logits.abs().max()).item()
                curve.same_state.append(share_of_bound(ours, theirs, magnitude, 1 / mask.sum().item()))
                aside = time.perf_counter() - began
            curve.samples.append(completions)
            curve.tokens += int(mask.sum())
            curve.seconds += time.perf_counter() - start - aside
            if done % max(1, updates // settings.evaluations) == 0 or done == updates:
                curve.evaluate(accuracy(model, problems))
            bar.set_postfix_str(f"KL {curve.losses[-1]:.3f}, held-out {curve.accuracy:.0%} right", refresh=False)
            bar.update()
    return model, curve


def main(arguments: list[str] | None = None) -> dict:
    """Runs it all; returns what was seen. `exit_code` is 1 where strop and plain PyTorch part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few seconds of the same, too short to learn much")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder of the plot")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if options.quick else min(2, threads))  # more do not help models of this size
    settings = Settings(seed=options.seed, **(QUICK if options.quick else {}))
    problems = Problems(settings.seed)

    base, imitation = imitate(problems, settings)
    improved, grpo = improve(base, problems, settings, STROP, check=PLAIN)
    _, plain_grpo = improve(base, problems, settings, PLAIN, check=None)
    student, distillation = distill(improved, problems, settings, STROP, check=PLAIN)
    _, plain_distillation = distill(improved, problems, settings, PLAIN, check=None)

    pairs = {"GRPO": (grpo, plain_grpo), "distillation": (distillation, plain_distillation)}
    checks = [line for name, pair in pairs.items() for line in agreement(name, *pair)]
    plot = draw(options.output, imitation, pairs)
    models = {"imitation": base, "GRPO": improved, "student": student}
    print_report(problems, models, imitation, pairs, checks)
    torch.set_num_threads(threads)
    print(f"\nLearning curves: {plot}\nAll of it took {time.perf_counter() - began:.0f} s.")
    return {
        "exit_code": 0 if all(check.holds for check in checks) else 1,
        "checks": checks,
        "imitation": imitation,
        "grpo": grpo,
        "plain_grpo": plain_grpo,
        "distillation": distillation,
        "plain_distillation": plain_distillation,
        "plot": plot,
    }


if __name__ == "__main__":
    sys.exit(main()["exit_code"])
