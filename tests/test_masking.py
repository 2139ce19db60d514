"""Contract: masked tokens are not read into anything; NaN in a valid token reaches the loss; all masked and empty
inputs give a loss of 0 and a gradient of 0."""

from __future__ import annotations

import pytest
import torch
from support.cases import Case, KlCase, PolicyCase, any_case, generator, kl_case, policy_case
from support.functions import FAMILIES, NINE, Function, bitwise_equal

POISONS = (torch.nan, torch.inf, -torch.inf)


def poison_masked(case: Case, value: float) -> Case:
    """The case with `value` in every input of every masked token."""
    changes = {}
    for name in case.TENSORS:
        tensor = getattr(case, name)
        if name == "mask" or tensor is None:
            continue
        if isinstance(case, PolicyCase) and name == "advantages" and tensor.dim() == 1:
            # An advantage belongs to its whole sequence: only that of a sequence without valid tokens is unread.
            masked = ~case.valid.any(1)
        else:
            masked = ~case.valid if isinstance(case, PolicyCase) else (~case.valid).unsqueeze(-1)
        changes[name] = torch.where(masked, torch.full((), value, dtype=tensor.dtype, device=tensor.device), tensor)
    return case.replace(**changes)


@pytest.mark.parametrize("advantages_rank", [1, 2])
@pytest.mark.parametrize("mask", ["random", "right_padding", "left_padding", "holes", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", NINE, ids=str)
def test_masked_tokens_reach_nothing(
    fn: Function, dtype: torch.dtype, mask: str, advantages_rank: int, device: str
) -> None:
    """NaN or inf in masked tokens: the loss keeps its bits, their gradient is exactly 0, the others keep theirs."""
    if advantages_rank == 2 and not fn.is_policy:
        return
    g = generator("poison", fn.name, mask, dtype)
    case = any_case(fn.family, g, dtype=dtype, mask=mask, advantages_rank=advantages_rank, device=device)
    if fn.is_policy and mask != "none":  # and one sequence that is masked whole
        valid = case.valid.clone()
        valid[2] = False
        case = case.replace(valid=valid, mask=valid.clone())
    clean = fn(case)
    assert torch.isfinite(clean.loss)
    for value in POISONS:
        result = fn(poison_masked(case, value))
        assert bitwise_equal(result.loss, clean.loss), f"masked {value} changed the loss"
        if result.grad is not None:
            assert (result.grad[~case.valid] == 0).all(), f"masked {value} has a gradient"
            assert bitwise_equal(result.grad, clean.grad), f"masked {value} changed a gradient"


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_one_valid_token(fn: Function, device: str) -> None:
    """Wherever the one valid token is, at the ends as in the middle of a vector."""
    case = any_case(fn.family, generator("one token"), mask="none", device=device)
    if fn.is_policy:
        positions = [(0, 0), (4, 256), (2, 15), (3, 16), (1, 128)]
    else:
        positions = [(0, 0), (2, 6), (1, 3)]
    for position in positions:
        valid = torch.zeros_like(case.valid)
        valid[position] = True
        single = poison_masked(case.replace(valid=valid, mask=valid.clone()), torch.nan)
        result = fn(single)
        assert torch.isfinite(result.loss)
        if result.grad is not None:
            assert torch.isfinite(result.grad).all()
            assert (result.grad[~valid] == 0).all() and (result.grad[position] != 0).any()


@pytest.mark.parametrize("name", ["policy", "old", "ref", "advantages", "student", "teacher"])
@pytest.mark.parametrize("fn", NINE, ids=str)
def test_nan_in_a_valid_token_reaches_the_loss(fn: Function, name: str, device: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = any_case(
            fn.family, generator("nan", fn.name, name), mask="random", advantages_rank=2, dtype=dtype, device=device
        )
        if name not in case.TENSORS:
            return
        spots = case.valid.nonzero()
        for spot in (spots[0], spots[len(spots) // 2], spots[-1]):
            tensor = getattr(case, name).clone()
            index = tuple(spot.tolist())
            tensor[index if fn.is_policy else (*index, -1)] = torch.nan
            assert torch.isnan(fn(case.replace(**{name: tensor})).loss), f"NaN at {index} was lost"


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_all_masked(fn: Function, device: str) -> None:
    """Loss 0 and gradient 0, whatever the tokens hold."""
    for dtype in (torch.float32, torch.float16):
        case = any_case(fn.family, generator("all masked"), mask="none", dtype=dtype, device=device)
        for value in (0.0, *POISONS):
            result = fn(poison_masked(case, value))
            assert result.loss.item() == 0
            if result.grad is not None:
                assert result.grad.shape == case.leaf.shape and (result.grad == 0).all()


def empty_cases(family: str, device: str) -> list[Case]:
    g = generator("empty")
    if family == "reverse_kl":
        shapes = [(0, 3, 5), (3, 0, 5), (0, 0, 5), (0, 5)]
        cases: list[Case] = []
        for shape in shapes:
            logits = torch.empty(shape, device=device)
            mask = torch.empty(shape[:-1], dtype=torch.bool, device=device)
            cases.append(KlCase(logits, logits.clone(), mask, mask))
        return cases
    return [
        policy_case(family, b, t, g, advantages_rank=rank, mask="all", device=device)
        for b, t in ((0, 5), (5, 0), (0, 0))
        for rank in (1, 2)
    ]


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_empty_inputs(fn: Function, device: str) -> None:
    """B, T, N or C of 0: loss 0, empty gradient."""
    for case in empty_cases(fn.family, device):
        result = fn(case)
        assert result.loss.shape == () and result.loss.dtype == torch.float32 and result.loss.item() == 0
        if result.grad is not None:
            assert result.grad.shape == case.leaf.shape and result.grad.dtype == case.leaf.dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_cases_are_empty(family: str) -> None:
    assert all(case.leaf.numel() == 0 for case in empty_cases(family, "cpu"))


def test_masked_kl_rows_may_hold_anything_for_rank_two(device: str) -> None:
    """(R, V) logits and an (R,) mask."""
    for fn in NINE:
        if fn.is_policy:
            continue
        case = kl_case((11, 97), generator("rank two"), device=device)
        clean, poisoned = fn(case), fn(poison_masked(case, torch.nan))
        assert bitwise_equal(clean.loss, poisoned.loss)
        if clean.grad is not None:
            assert bitwise_equal(clean.grad, poisoned.grad) and (poisoned.grad[~case.valid] == 0).all()
