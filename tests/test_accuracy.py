"""Contract: arithmetic and accumulation in fp32 whatever the input dtype; the same results within rounding on every
device. Every function, dtype and device against the float64 oracle and against eager PyTorch (support/compare.py)."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.cases import (
    FLOATS,
    MASK_DTYPES,
    MASK_KINDS,
    MIXED,
    any_case,
    generator,
    kl_case,
    policy_case,
    randn,
    to_device,
)
from support.compare import U, bounds, check
from support.functions import FUSED, NINE, Function
from support.reference import evaluate

POLICY = [f for f in NINE if f.is_policy]
KL = [f for f in NINE if not f.is_policy]


@pytest.mark.parametrize("mask", MASK_KINDS)
@pytest.mark.parametrize("dtypes", MIXED)
@pytest.mark.parametrize("fn", NINE, ids=str)
def test_dtypes_and_masks(fn: Function, dtypes: str, mask: str, device: str) -> None:
    g = generator("dtypes", fn.name, dtypes, mask)
    case = any_case(fn.family, g, mask=mask, device=device, **MIXED[dtypes])
    check(case, fn(case))


@pytest.mark.parametrize("advantages_rank", [1, 2])
@pytest.mark.parametrize("eps_high", [None, 0.28, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_policy_options(fn: Function, beta: float, eps_high: float | None, advantages_rank: int, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        g = generator("options", fn.name, beta, eps_high, advantages_rank, dtype)
        case = policy_case(
            fn.family,
            7,
            131,
            g,
            dtype=dtype,
            beta=beta,
            eps=0.15,
            eps_high=eps_high,
            advantages_rank=advantages_rank,
            device=device,
        )
        check(case, fn(case))


@pytest.mark.parametrize("fn", POLICY, ids=str)
def test_policy_defaults(fn: Function, device: str) -> None:
    """beta 0.1, eps 0.2 and eps_high equal to eps where nothing is said, in this order where positional."""
    case = policy_case(fn.family, 5, 33, generator("defaults"), device=device)
    written = policy_case(fn.family, 5, 33, generator("defaults"), beta=0.1, eps=0.2, eps_high=0.2, device=device)
    expected = evaluate(written, torch.float64).loss

    def loss(*options: float) -> torch.Tensor:
        out = fn.function(*case.args(), *options)
        return out[0] if isinstance(out, tuple) else out

    for options in ((), (0.1,), (0.1, 0.2), (0.1, 0.2, None), (0.1, 0.2, 0.2)):
        torch.testing.assert_close(loss(*options).double(), expected, rtol=1e-5, atol=1e-6)
    other = policy_case(fn.family, 5, 33, generator("defaults"), beta=0.7, eps=0.05, eps_high=0.5, device=device)
    torch.testing.assert_close(loss(0.7, 0.05, 0.5).double(), evaluate(other, torch.float64).loss, rtol=1e-5, atol=1e-6)


def test_argument_names() -> None:
    """People call by these names."""
    import inspect

    import strop

    policy = ["policy_logprobs", "old_policy_logprobs", "ref_logprobs", "advantages", "completions_mask"]
    kl = ["student_logits", "teacher_logits", "completions_mask"]
    for fn in NINE:
        parameters = inspect.signature(getattr(strop, fn.name)).parameters
        expected = [*policy, "beta", "eps", "eps_high"] if fn.is_policy else list(kl)
        if not fn.is_policy and fn.variant != "fwd":
            expected.append("inplace")
        assert list(parameters) == expected, fn.name
        case = any_case(fn.family, generator("names"), small=True)
        by_name = fn.function(**dict(zip(expected, case.args(), strict=False)))
        by_position = fn.raw(case)
        for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (by_name, by_position)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mask_dtype", MASK_DTYPES, ids=str)
@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_mask_dtypes(fn: Function, mask_dtype: torch.dtype, device: str) -> None:
    """Non-zero means valid, whatever the value: 256 in int16, -1, NaN, the smallest subnormal; -0.0 is zero."""
    for dtype in (torch.float32, torch.bfloat16):
        g = generator("mask", fn.name, mask_dtype)
        case = any_case(fn.family, g, dtype=dtype, mask_dtype=mask_dtype, device=device)
        check(case, fn(case))


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
@pytest.mark.parametrize("fn", KL, ids=str)
def test_kl_dtype_pairs(fn: Function, dtypes: tuple[torch.dtype, torch.dtype], device: str) -> None:
    case = kl_case((2, 5, 333), generator("pairs", dtypes), dtype=dtypes[0], teacher_dtype=dtypes[1], device=device)
    check(case, fn(case))


@pytest.mark.parametrize("fn", [f for f in FUSED if f.is_policy], ids=str)
def test_policy_dtype_quadruples(fn: Function, device: str) -> None:
    """All 81 combinations of the four float arguments."""
    for p, o, r, a in itertools.product(FLOATS, repeat=4):
        g = generator("quadruples", p, o, r, a)
        case = policy_case(fn.family, 3, 37, g, dtype=p, old_dtype=o, ref_dtype=r, advantages_dtype=a, device=device)
        check(case, fn(case))


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_accumulation_is_wide(fn: Function, device: str) -> None:
    """Sums of many bf16 values that a bf16 (or fp16) accumulator would stop adding to."""
    g = generator("wide", fn.name)
    if fn.is_policy:
        case = policy_case(fn.family, 2, 50_021, g, dtype=torch.bfloat16, mask="all", device=device)
    else:
        case = kl_case((3, 50_021), g, dtype=torch.bfloat16, mask="all", device=device)
    check(case, fn(case))


@pytest.mark.parametrize("fn", KL, ids=str)
def test_kl_of_far_logits(fn: Function, device: str) -> None:
    """Logits whose exponentials overflow without the shift by the maximum, and rows far from 0."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        case = kl_case((4, 1, 1021), generator("far", dtype), dtype=dtype, mask="all", device=device)
        shift = torch.tensor([-3000.0, 500.0, 3000.0, 0.0], device=device).view(4, 1, 1)
        spread = torch.tensor([1.0, 30.0, 1.0, 100.0], device=device).view(4, 1, 1)
        student = (case.student.float() * spread + shift).to(dtype)
        teacher = (case.teacher.float() * spread - shift).to(dtype)
        case = case.replace(student=student, teacher=teacher)
        check(case, fn(case))


@pytest.mark.parametrize("fn", KL, ids=str)
def test_kl_of_equal_logits_is_zero(fn: Function, device: str) -> None:
    """KL(p || p) is 0; with a shifted teacher too, within rounding. The gradient is 0 as well."""
    case = kl_case((3, 5, 777), generator("equal"), mask="all", device=device)
    result = fn(case.replace(teacher=case.student.clone()))
    assert result.loss.abs() <= 64 * U
    if result.grad is not None:
        assert result.grad.abs().max() <= 64 * U / 15


@pytest.mark.parametrize("dtypes", MIXED)
@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_cpu_and_cuda_agree(fn: Function, dtypes: str, cuda: str) -> None:
    case = any_case(fn.family, generator("devices", fn.name, dtypes), **MIXED[dtypes])
    here, there = fn(case), fn(to_device(case, cuda))
    bound = bounds(case)
    assert (here.loss - there.loss.cpu()).abs() <= 2 * bound.loss
    roundoff = torch.finfo(here.grad.dtype).eps  # one rounding of each, apart by one unit in the last place
    tiny = 2.0**-24 if here.grad.dtype == torch.float16 else 2.0**-125
    limit = 2 * bound.grad + roundoff * here.grad.double().abs() + tiny
    assert ((here.grad.double() - there.grad.cpu().double()).abs() <= limit).all()


def test_outliers_are_drawn() -> None:
    """The inputs of this suite are zero-mean with outliers (what the bars are meant for)."""
    x = randn((100_000,), generator("outliers"), 1.0, 20.0)
    assert x.mean().abs() < 0.1 and x.abs().max() > 30
