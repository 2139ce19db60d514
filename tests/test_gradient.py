"""Contract: the gradient is what PyTorch's autograd gives for the formula, its ties and clip borders included."""

from __future__ import annotations

import math

import pytest
import torch
from support.cases import PolicyCase, any_case, generator, policy_case
from support.functions import WITH_GRADIENT, Function
from support.reference import evaluate

POLICY = [f for f in WITH_GRADIENT if f.is_policy]
KL = [f for f in WITH_GRADIENT if not f.is_policy]


def crafted(fn: Function, x: torch.Tensor, advantages: torch.Tensor, device: str, **options: float) -> PolicyCase:
    """One sequence with policy - old = x exactly (old is 0), all valid, beta 0 unless given."""
    x = x.view(1, -1).to(device)
    valid = torch.ones_like(x, dtype=torch.bool)
    zeros = torch.zeros_like(x)
    options = {"beta": 0.0, **options}
    ref = zeros if options["beta"] else None
    return PolicyCase(fn.family, x, zeros, ref, advantages.view(1, -1).to(device), valid, valid, **options)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_ratio_of_one(fn: Function, beta: float, device: str) -> None:
    """The first step on a batch: policy == old, so clip(r) A ties with r A, and the gradient is -A whole."""
    case = policy_case(fn.family, 4, 33, generator("one"), mask="all", beta=beta, advantages_rank=2, device=device)
    case = case.replace(old=case.policy.clone(), ref=None if beta == 0 else case.policy.clone())
    grad = fn(case).grad
    expected = -case.advantages / case.policy.numel()
    torch.testing.assert_close(grad, expected, rtol=4 * 2.0**-24, atol=0)
    torch.testing.assert_close(grad, evaluate(case, torch.float32).grad, rtol=8 * 2.0**-24, atol=0)


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_ratio_on_the_clip_border(fn: Function, device: str) -> None:
    """eps 0 puts r = 1 on both borders at once; autograd's clamp lets the gradient through on its borders."""
    advantages = torch.tensor([1.0, -1.0, 3.0, -0.25, 0.0])
    both = crafted(fn, torch.zeros(5), advantages, device, eps=0.0, eps_high=0.0)
    high = crafted(fn, torch.zeros(5), advantages, device, eps=0.5, eps_high=0.0)
    low = crafted(fn, torch.zeros(5), advantages, device, eps=0.0, eps_high=0.5)
    for case in (both, high, low):
        grad = fn(case).grad
        torch.testing.assert_close(grad, evaluate(case, torch.float32).grad, rtol=4 * 2.0**-24, atol=0)
        torch.testing.assert_close(grad, (-advantages / 5).view(1, -1).to(device), rtol=4 * 2.0**-24, atol=0)


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_outside_the_clip_range(fn: Function, device: str) -> None:
    """r outside: no gradient where clipping lowers the objective, the whole where it does not. All four cases."""
    x = torch.tensor([1.0, 1.0, -1.0, -1.0])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0])
    grad = fn(crafted(fn, x, advantages, device)).grad.cpu()
    whole = -torch.exp(x) * advantages / 4
    expected = torch.tensor([[0.0, whole[1], whole[2], 0.0]])
    torch.testing.assert_close(grad, expected, rtol=8 * 2.0**-24, atol=0)


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_advantage_of_zero(fn: Function, device: str) -> None:
    """A = 0: both sides of the minimum are 0 wherever r is; only the KL penalty has a gradient."""
    x = torch.tensor([0.0, 2.0, -2.0, 0.1])
    grad = fn(crafted(fn, x, torch.zeros(4), device)).grad
    assert (grad == 0).all()
    case = crafted(fn, x, torch.zeros(4), device, beta=0.5)
    expected = evaluate(case, torch.float64).grad
    torch.testing.assert_close(fn(case).grad.double(), expected, rtol=2e-6, atol=1e-8)
    assert expected.abs().max() > 0.1


def _shares(x: float, advantage: float, bound: float, upper: bool, ratio: torch.Tensor) -> float:
    """The share of -r A that autograd passes for this float32 ratio: 0, 1/2 (a tie outside the range) or 1."""
    limit = torch.tensor(bound, dtype=torch.float32)
    a = torch.tensor(advantage, dtype=torch.float32)
    clipped = torch.minimum(ratio, limit) if upper else torch.maximum(ratio, limit)
    unclipped_value, clipped_value = ratio * a, clipped * a
    inside = ratio <= limit if upper else ratio >= limit
    if unclipped_value < clipped_value:
        return 1.0
    if unclipped_value > clipped_value:
        return 0.0
    return 1.0 if inside else 0.5


@pytest.mark.parametrize("upper", [True, False], ids=["upper", "lower"])
@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_ties_by_rounding_next_to_the_border(fn: Function, upper: bool, device: str) -> None:
    """r outside the range by an ulp or two, where r A and clip(r) A may round to the same: autograd's minimum splits
    the gradient of a tie, and the clamp swallows its half.

    The last bits of exp are the implementation's own. So borders are laid at every ulp around exp(x), and there must
    be one float32 ratio within 4 ulp of exp(x) for which every share is what autograd gives.
    """
    halves = 0
    for x in (0.4054, 0.31, 0.2231, 0.01, 0.51) if upper else (-0.4054, -0.31, -0.2231, -0.01, -0.51):
        nearest = torch.tensor(math.exp(x32 := float(torch.tensor(x, dtype=torch.float32))), dtype=torch.float32)
        bits = nearest.view(torch.int32)
        sign = 1.0 if upper else -1.0
        advantages = [sign * a for a in (1.0, 1.25, 1.4999, 1.5, 1.7, 1.9999)]
        borders = [float((bits + k).view(torch.float32)) for k in range(-6, 7)]
        seen: dict[tuple[float, float], float] = {}
        for border in borders:
            # 1 + eps_high and 1 - eps are exact in double, and so are the borders once rounded to float32.
            options = {"eps": 10.0, "eps_high": border - 1} if upper else {"eps": 1 - border, "eps_high": 10.0}
            case = crafted(fn, torch.full((len(advantages),), x32), torch.tensor(advantages), device, **options)
            grad = fn(case).grad.view(-1).cpu().double()
            for advantage, value in zip(advantages, grad.tolist(), strict=True):
                seen[border, advantage] = value / (-math.exp(x32) * advantage / len(advantages))
        assert all(min(abs(s), abs(s - 0.5), abs(s - 1)) < 1e-5 for s in seen.values()), seen
        candidates = [(bits + k).view(torch.float32) for k in range(-4, 5)]
        fitting = [
            r for r in candidates if all(abs(s - _shares(x32, a, b, upper, r)) < 1e-5 for (b, a), s in seen.items())
        ]
        assert fitting, f"x = {x}: no ratio explains {seen}"
        halves += sum(abs(s - 0.5) < 1e-5 for s in seen.values())
    assert halves > 0, "no tie was met: the test shows nothing"


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_reference_penalty(fn: Function, device: str) -> None:
    """beta (1 - exp(ref - policy)), alone."""
    g = generator("penalty")
    case = policy_case(fn.family, 3, 65, g, mask="all", beta=0.3, advantages_rank=2, device=device)
    case = case.replace(advantages=torch.zeros_like(case.advantages))
    expected = 0.3 * (1 - torch.exp(case.ref.double() - case.policy.double())) / case.policy.numel()
    torch.testing.assert_close(fn(case).grad.double(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_beta_zero_reads_no_reference(fn: Function, device: str) -> None:
    """With beta == 0, ref_logprobs is not read: None and NaN give the same bits."""
    case = policy_case(fn.family, 5, 65, generator("no ref"), beta=0.0, device=device)
    without = fn(case)
    poisoned = fn(case.replace(ref=torch.full_like(case.policy, torch.nan)))
    assert torch.equal(without.loss, poisoned.loss) and torch.equal(without.grad, poisoned.grad)


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_weights(fn: Function, device: str) -> None:
    """GRPO weighs a token by 1 / (B valid tokens of its sequence), BNPO by 1 / valid tokens of the batch."""
    valid = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool, device=device)
    zeros = torch.zeros(3, 4, device=device)
    case = PolicyCase(fn.family, zeros, zeros, None, torch.ones(3, device=device), valid, valid, beta=0.0)
    result = fn(case)
    if fn.family == "grpo":
        weights = torch.tensor([[1 / 4] * 4, [1, 0, 0, 0], [0] * 4]) / 3
    else:
        weights = valid.cpu() / 5
    torch.testing.assert_close(result.grad.cpu(), -weights, rtol=2.0**-23, atol=0)
    torch.testing.assert_close(result.loss.cpu(), -weights.sum(), rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("fn", KL, ids=str)
def test_kl_gradient_by_hand(fn: Function, device: str) -> None:
    """m/n p (log p - log q - kl), on two classes where everything has a closed form; each row's gradients sum to 0."""
    from support.cases import KlCase

    student = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]], device=device)  # p = 1/4, 3/4
    teacher = torch.tensor([[math.log(3.0), 0.0], [2.0, 2.0]], device=device)  # q = 3/4, 1/4
    valid = torch.ones(2, dtype=torch.bool, device=device)
    result = fn(KlCase(student, teacher, valid, valid))
    kl = 0.5 * math.log(3)  # 1/4 log(1/3) + 3/4 log 3
    expected = [0.25 * (-math.log(3) - kl) / 2, 0.75 * (math.log(3) - kl) / 2]
    assert result.loss.item() == pytest.approx(kl / 2, rel=1e-6)
    torch.testing.assert_close(result.grad[0].cpu(), torch.tensor(expected), rtol=2e-6, atol=0)
    assert result.grad[1].abs().max() <= 1e-7


@pytest.mark.parametrize("fn", WITH_GRADIENT, ids=str)
def test_gradient_follows_the_loss(fn: Function, device: str) -> None:
    """A central difference of the forward function along a random direction, without any reference formula.

    Far from clip borders (eps 0.9), so that the loss is smooth. h balances truncation (h^2) and rounding (u / h).
    """
    from support.functions import FORWARD

    forward = next(f for f in FORWARD if f.family == fn.family)
    g = generator("difference", fn.name)
    case = any_case(fn.family, g, mask="random", device=device)
    if fn.is_policy:
        case = case.replace(eps=0.9, eps_high=10.0, old=case.policy + 0.1, ref=case.policy - 0.2)
    direction = torch.randn(case.leaf.shape, generator=g).to(device)
    direction = direction * case.valid.unsqueeze(-1) if not fn.is_policy else direction * case.valid
    h = 1e-2
    losses = [
        forward(case.replace(**{case.LEAF: case.leaf + sign * h * direction})).loss.double() for sign in (1.0, -1.0)
    ]
    slope = ((losses[0] - losses[1]) / (2 * h)).item()
    dot = (fn(case).grad.double() * direction.double()).sum().item()
    scale = fn(case).grad.double().norm().item() + 0.05 * abs(losses[0].item())
    assert abs(slope - dot) <= 2e-2 * scale, (slope, dot, scale)
