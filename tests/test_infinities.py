"""Contract, reverse KL: -inf in both student and teacher, or in the student alone, contributes 0 with gradient 0;
-inf in the teacher where the student has mass makes the loss +inf. Policy losses: what the formula gives."""

from __future__ import annotations

import pytest
import torch
from support.cases import KlCase, PolicyCase, generator, kl_case
from support.compare import check
from support.functions import NINE, Function

POLICY = [f for f in NINE if f.is_policy]
KL = [f for f in NINE if not f.is_policy]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def banned(shape: tuple[int, ...], device: str, share: float = 0.3) -> torch.Tensor:
    """Positions to ban: never a whole row."""
    out = torch.rand(shape, generator=generator("banned", shape)) < share
    out[..., 1] = False
    return out.to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", KL, ids=str)
def test_banned_in_both(fn: Function, dtype: torch.dtype, device: str) -> None:
    """The result is that of the vocabulary without the banned tokens, and their gradient is exactly 0."""
    case = kl_case((3, 7, 211), generator("both"), dtype=dtype, device=device)
    ban = banned((211,), device)
    result = fn(
        case.replace(
            student=case.student.masked_fill(ban, -torch.inf), teacher=case.teacher.masked_fill(ban, -torch.inf)
        )
    )
    without = case.replace(student=case.student[..., ~ban], teacher=case.teacher[..., ~ban])
    if result.grad is None:
        check(without, result)
    else:
        assert (result.grad[..., ban] == 0).all()
        check(without, type(result)(result.loss, result.grad[..., ~ban]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", KL, ids=str)
def test_banned_in_the_student_alone(fn: Function, dtype: torch.dtype, device: str) -> None:
    """p is 0 there: no contribution and no gradient, though q has mass. Different tokens in every row."""
    case = kl_case((3, 7, 211), generator("student"), dtype=dtype, device=device)
    ban = banned((3, 7, 211), device)
    case = case.replace(student=case.student.masked_fill(ban, -torch.inf))
    result = fn(case)
    if result.grad is not None:
        assert (result.grad[ban] == 0).all()
    check(case, result)


@pytest.mark.parametrize("fn", KL, ids=str)
def test_padded_vocabulary(fn: Function, device: str) -> None:
    """A tail of -inf in the student, as models whose vocabulary is padded to a multiple have: longer than any vector
    or thread's share, and a head of it too."""
    for lo, hi in ((0, 37), (37, 4099), (4000, 4099), (0, 4098)):
        for both in (False, True):
            case = kl_case((2, 3, 4099), generator("tail"), dtype=torch.bfloat16, device=device)
            ban = torch.zeros(4099, dtype=torch.bool, device=device)
            ban[lo:hi] = True
            case = case.replace(student=case.student.masked_fill(ban, -torch.inf))
            if both:
                case = case.replace(teacher=case.teacher.masked_fill(ban, -torch.inf))
            result = fn(case)
            assert torch.isfinite(result.loss)
            if result.grad is not None:
                assert torch.isfinite(result.grad).all() and (result.grad[..., ban] == 0).all()
            kept = case.replace(student=case.student[..., ~ban])
            kept = kept.replace(teacher=case.teacher[..., ~ban]) if both else None
            if kept is not None:
                grad = None if result.grad is None else result.grad[..., ~ban]
                check(kept, type(result)(result.loss, grad))
            else:
                check(case, result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", KL, ids=str)
def test_teacher_forbids_what_the_student_may_say(fn: Function, dtype: torch.dtype, device: str) -> None:
    """Loss +inf; the gradients of the other rows are what they would be anyway."""
    case = kl_case((3, 5, 101), generator("forbid"), mask="all", dtype=dtype, device=device)
    for position in (0, 50, 100):
        teacher = case.teacher.clone()
        teacher[1, 2, position] = -torch.inf
        result = fn(case.replace(teacher=teacher))
        assert result.loss.item() == torch.inf
        if result.grad is not None:
            others = torch.ones(3, 5, dtype=torch.bool, device=device)
            others[1, 2] = False
            assert torch.equal(result.grad[others], fn(case).grad[others])


@pytest.mark.parametrize("fn", KL, ids=str)
def test_teacher_forbids_what_is_masked(fn: Function, device: str) -> None:
    case = kl_case((3, 5, 101), generator("forbid masked"), mask="random", device=device)
    teacher = torch.where(case.valid.unsqueeze(-1), case.teacher, -torch.inf)
    check(case, fn(case.replace(teacher=teacher)))


@pytest.mark.parametrize("fn", KL, ids=str)
def test_underflow_is_not_nan(fn: Function, device: str) -> None:
    """p underflows fp32 beside one dominant logit: 0 log 0 must not become NaN, nor 0 times a teacher of -inf."""
    student = torch.full((2, 130), -200.0, device=device)
    student[:, 7] = 50.0
    teacher = torch.zeros((2, 130), device=device)
    valid = torch.ones(2, dtype=torch.bool, device=device)
    result = fn(KlCase(student, teacher, valid, valid))
    check(KlCase(student, teacher, valid, valid), result)
    teacher[0, 100] = -torch.inf  # where p underflows to 0
    result = fn(KlCase(student, teacher, valid, valid))
    assert torch.isfinite(result.loss)
    if result.grad is not None:
        assert torch.isfinite(result.grad).all()


@pytest.mark.parametrize("fn", KL, ids=str)
def test_one_class_left(fn: Function, device: str) -> None:
    """All but one banned: p is 1 there, and the loss is the teacher's surprise."""
    student = torch.full((2, 33), -torch.inf, device=device)
    student[0, 0] = 3.0
    student[1, 32] = -4.0
    teacher = torch.zeros((2, 33), device=device)
    valid = torch.ones(2, dtype=torch.bool, device=device)
    result = fn(KlCase(student, teacher, valid, valid))
    assert result.loss.item() == pytest.approx(torch.log(torch.tensor(33.0)).item(), rel=1e-6)
    if result.grad is not None:
        assert result.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_policy_at_minus_infinity(fn: Function, device: str) -> None:
    """policy -inf: r = 0. With A > 0 the objective is 0; with A < 0 it is clipped at 1 - eps. Gradient 0."""
    policy = torch.tensor([[-torch.inf, -torch.inf]], device=device)
    zeros = torch.zeros(1, 2, device=device)
    valid = torch.ones(1, 2, dtype=torch.bool, device=device)
    advantages = torch.tensor([[2.0, -1.0]], device=device)
    result = fn(PolicyCase(fn.family, policy, zeros, None, advantages, valid, valid, beta=0.0))
    assert result.loss.item() == pytest.approx(0.8 / 2, rel=1e-6)
    if result.grad is not None:
        assert (result.grad == 0).all()


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_ratio_overflow(fn: Function, device: str) -> None:
    """r = inf: clipped where A > 0, +inf loss where A < 0, as the formula says."""
    policy = torch.tensor([[0.0]], device=device)
    old = torch.tensor([[-200.0]], device=device)
    valid = torch.ones(1, 1, dtype=torch.bool, device=device)
    case = PolicyCase(fn.family, policy, old, None, torch.ones(1, device=device), valid, valid, beta=0.0)
    assert fn(case).loss.item() == pytest.approx(-1.2, rel=1e-6)
    assert fn(case.replace(advantages=-case.advantages)).loss.item() == torch.inf
