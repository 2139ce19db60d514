"""Contract, all of it at once: shapes, dtypes, masks, layouts and options drawn from the printed seed.

`STROP_TEST_SEED=n pytest tests/test_fuzz.py` repeats a run; STROP_TEST_FUZZ says how many draws a function gets.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from support.cases import FLOATS, MASK_DTYPES, MASK_KINDS, SEED, Case, generator, kl_case, map_tensors, policy_case
from support.compare import Expected
from support.functions import FAMILIES, NINE, same
from support.layouts import ANY_STRIDE

DRAWS = int(os.environ.get("STROP_TEST_FUZZ", "40"))


def draw_size(rng: random.Random, largest: int) -> int:
    """Small sizes often, powers of two and their neighbours often, the rest log-uniformly."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randint(1, min(9, largest))
    if kind == 1:
        return max(1, min(largest, 2 ** rng.randrange(largest.bit_length()) + rng.randint(-1, 1)))
    return int(largest ** rng.random())


def draw(family: str, rng: random.Random, key: object, device: str) -> Case:
    g = generator("fuzz", key)
    mask, mask_dtype = rng.choice(MASK_KINDS), rng.choice(MASK_DTYPES)
    if family == "reverse_kl":
        vocab = draw_size(rng, 20_000)
        rows = draw_size(rng, max(1, 60_000 // vocab))
        inner = draw_size(rng, rows)
        shape = (rows, vocab) if rng.random() < 0.3 else (max(1, rows // inner), inner, vocab)
        case: Case = kl_case(
            shape,
            g,
            dtype=rng.choice(FLOATS),
            teacher_dtype=rng.choice(FLOATS),
            mask=mask,
            mask_dtype=mask_dtype,
            device=device,
        )
    else:
        tokens = draw_size(rng, 20_000)
        case = policy_case(
            family,
            draw_size(rng, max(1, 60_000 // tokens)),
            tokens,
            g,
            dtype=rng.choice(FLOATS),
            old_dtype=rng.choice(FLOATS),
            ref_dtype=rng.choice(FLOATS),
            advantages_dtype=rng.choice(FLOATS),
            mask=mask,
            mask_dtype=mask_dtype,
            advantages_rank=rng.choice((1, 2)),
            beta=rng.choice((0.0, 0.04, 0.1, 1.0)),
            eps=rng.choice((0.1, 0.2, 0.5)),
            eps_high=rng.choice((None, 0.28, 1.0)),
            device=device,
        )
    for name in case.TENSORS:
        if rng.random() < 0.4:
            case = map_tensors(case, rng.choice(ANY_STRIDE), (name,))
    return case


def describe(case: Case) -> str:
    tensors = {n: getattr(case, n) for n in case.TENSORS}
    parts = [
        f"{n}: {t.dtype} {tuple(t.shape)} strides {t.stride()} offset {t.storage_offset()}"
        for n, t in tensors.items()
        if t is not None
    ]
    return "; ".join([*parts, str(case.kwargs())])


@pytest.mark.parametrize("family", FAMILIES)
def test_fuzz(family: str, device: str) -> None:
    rng = random.Random(f"{SEED}:{family}")
    for i in range(DRAWS):
        case = draw(family, rng, (family, i), device)
        try:
            expected = Expected(case)
            for fn in NINE:
                if fn.family == family:
                    result = fn(case)
                    expected.check(result)
                    assert same(result, fn(case)), "not the same when run again"
        except Exception as error:
            raise AssertionError(f"STROP_TEST_SEED={SEED}, draw {i}: {fn}: {error}\n{describe(case)}") from error


def test_draws_differ_in_everything() -> None:
    rng = random.Random(f"{SEED}:variety")
    cases = [draw("grpo", rng, i, "cpu") for i in range(60)]
    assert len({tuple(c.policy.shape) for c in cases}) > 20
    assert len({c.mask.dtype for c in cases}) > 6 and {c.policy.dtype for c in cases} == set(FLOATS)
    assert any(not c.policy.is_contiguous() for c in cases)
    assert any(torch.numel(c.policy) == 1 or min(c.policy.shape) == 1 for c in cases)
