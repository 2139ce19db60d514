"""Inputs of one call, and how they are drawn.

Values are zero-mean with outliers: a token in fifty is far from the rest, which is where an accumulation in a narrow
type or a forgotten maximum shows. Masks put non-zero values that a careless cast would lose (256 in int16, 2^32 in
int64, the smallest subnormals) and zeros that a careless test would keep (-0.0).
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# One seed for everything that is drawn. Printed by conftest.py; set STROP_TEST_SEED to repeat a run.
SEED = int(os.environ.get("STROP_TEST_SEED") or random.SystemRandom().randrange(2**31))

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MASK_DTYPES = (
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
MASK_KINDS = ("all", "random", "right_padding", "left_padding", "holes", "none")


def generator(*key: object) -> torch.Generator:
    """A CPU generator that depends on the seed and on `key` alone, so that a test repeats whatever ran before it."""
    g = torch.Generator()
    g.manual_seed(random.Random(f"{SEED}:{key}").randrange(2**62))
    return g


def randn(shape: tuple[int, ...], g: torch.Generator, scale: float = 1.0, outlier: float = 1.0) -> torch.Tensor:
    """Normal values of deviation `scale`; about one in fifty is `outlier` times larger."""
    x = torch.randn(shape, generator=g) * scale
    far = torch.rand(shape, generator=g) < 0.02
    return torch.where(far, x * outlier, x)


def make_valid(kind: str, rows: int, columns: int, g: torch.Generator) -> torch.Tensor:
    """A bool mask (rows, columns)."""
    position = torch.arange(columns).expand(rows, columns)
    lengths = torch.randint(0, columns + 1, (rows, 1), generator=g)
    if kind == "all":
        return torch.ones(rows, columns, dtype=torch.bool)
    if kind == "none":
        return torch.zeros(rows, columns, dtype=torch.bool)
    if kind == "random":
        return torch.rand(rows, columns, generator=g) < 0.7
    if kind == "right_padding":
        return position < lengths
    if kind == "left_padding":
        return position >= lengths
    if kind == "holes":  # a prompt, a completion, a tool's answer, a completion
        return (position >= columns // 8) & ((position < columns // 3) | (position >= columns // 2))
    raise ValueError(kind)


def awkward_mask(valid: torch.Tensor, dtype: torch.dtype, g: torch.Generator) -> torch.Tensor:
    """`valid` as a mask of `dtype` whose non-zero values are not 1 and whose zeros include -0.0."""
    if dtype == torch.bool:
        return valid.clone()
    if dtype.is_floating_point:
        nonzero = [1.0, -3.0, 0.5, torch.finfo(dtype).smallest_normal, torch.inf, torch.nan]
        if dtype == torch.float64:
            nonzero += [5e-324, 2.0**-140]  # 0 once rounded to float32
        else:
            nonzero.append({torch.float32: 1e-45, torch.float16: 6e-8, torch.bfloat16: 9.2e-41}[dtype])
        zeros = [0.0, -0.0]
    else:
        bits = torch.iinfo(dtype).bits
        nonzero = [1, 2, 1 << (bits - 2)] + ([-1] if torch.iinfo(dtype).min < 0 else [])
        nonzero += [1 << shift for shift in (8, 16, 32) if shift < bits - 1]
        zeros = [0]
    # Chosen through a table in a type that every value fits, because torch cannot index all unsigned types.
    wide = torch.float64 if dtype.is_floating_point else torch.int64
    a, b = torch.tensor(nonzero, dtype=wide), torch.tensor(zeros, dtype=wide)
    chosen = torch.where(
        valid,
        a[torch.randint(len(a), valid.shape, generator=g)],
        b[torch.randint(len(b), valid.shape, generator=g)],
    )
    return chosen.to(dtype)


@dataclass(frozen=True)
class PolicyCase:
    """Arguments of a GRPO or BNPO call; `valid` is the mask's meaning, for the references."""

    family: str
    policy: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor | None
    advantages: torch.Tensor
    mask: torch.Tensor
    valid: torch.Tensor
    beta: float = 0.1
    eps: float = 0.2
    eps_high: float | None = None

    LEAF = "policy"
    TENSORS = ("policy", "old", "ref", "advantages", "mask")

    @property
    def leaf(self) -> torch.Tensor:
        return self.policy

    def args(self) -> tuple[Any, ...]:
        return self.policy, self.old, self.ref, self.advantages, self.mask

    def kwargs(self) -> dict[str, Any]:
        return {"beta": self.beta, "eps": self.eps, "eps_high": self.eps_high}

    def replace(self, **changes: Any) -> PolicyCase:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class KlCase:
    """Arguments of a reverse KL call."""

    student: torch.Tensor
    teacher: torch.Tensor
    mask: torch.Tensor
    valid: torch.Tensor
    family: str = "reverse_kl"

    LEAF = "student"
    TENSORS = ("student", "teacher", "mask")

    @property
    def leaf(self) -> torch.Tensor:
        return self.student

    def args(self) -> tuple[Any, ...]:
        return self.student, self.teacher, self.mask

    def kwargs(self) -> dict[str, Any]:
        return {}

    def replace(self, **changes: Any) -> KlCase:
        return dataclasses.replace(self, **changes)


Case = PolicyCase | KlCase


def map_tensors(case: Case, f: Callable[[torch.Tensor], torch.Tensor], names: tuple[str, ...] | None = None) -> Case:
    """The case with f applied to its tensors (all of them, `valid` included, unless `names` says which)."""
    chosen = names or (*case.TENSORS, "valid")
    return case.replace(**{n: f(getattr(case, n)) for n in chosen if getattr(case, n) is not None})


def to_device(case: Case, device: str) -> Case:
    return map_tensors(case, lambda t: t.to(device))


def clone(case: Case) -> Case:
    return map_tensors(case, torch.clone)


def policy_case(
    family: str,
    batch: int,
    tokens: int,
    g: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    old_dtype: torch.dtype | None = None,
    ref_dtype: torch.dtype | None = None,
    advantages_dtype: torch.dtype | None = None,
    mask_dtype: torch.dtype = torch.bool,
    mask: str = "random",
    advantages_rank: int = 1,
    beta: float = 0.1,
    eps: float = 0.2,
    eps_high: float | None = None,
    device: str = "cpu",
) -> PolicyCase:
    shape = (batch, tokens)
    policy = -randn(shape, g, 1.5, 4).abs()
    old = policy + randn(shape, g, 0.2, 8)
    ref = policy + randn(shape, g, 0.3, 8)
    advantages = randn((batch,) if advantages_rank == 1 else shape, g, 1.0, 20)
    valid = make_valid(mask, batch, tokens, g)
    case = PolicyCase(
        family,
        policy.to(dtype),
        old.to(old_dtype or dtype),
        None if beta == 0 else ref.to(ref_dtype or dtype),
        advantages.to(advantages_dtype or dtype),
        awkward_mask(valid, mask_dtype, g),
        valid,
        beta,
        eps,
        eps_high,
    )
    return to_device(case, device)


def kl_case(
    shape: tuple[int, ...],
    g: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    mask_dtype: torch.dtype = torch.bool,
    mask: str = "random",
    device: str = "cpu",
) -> KlCase:
    """`shape` is (N, C, V) or (R, V)."""
    student = randn(shape, g, 2.0, 8)
    teacher = 0.7 * student + randn(shape, g, 1.5, 8)
    rows, columns = (1, shape[0]) if len(shape) == 2 else shape[:2]
    valid = make_valid(mask, rows, columns, g).reshape(shape[:-1])
    case = KlCase(student.to(dtype), teacher.to(teacher_dtype or dtype), awkward_mask(valid, mask_dtype, g), valid)
    return to_device(case, device)


MIXED = {
    "float32": {"dtype": torch.float32},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "mixed_narrow": {
        "dtype": torch.bfloat16,
        "old_dtype": torch.float32,
        "ref_dtype": torch.float16,
        "advantages_dtype": torch.float32,
        "teacher_dtype": torch.float32,
    },
    "mixed_wide": {
        "dtype": torch.float32,
        "old_dtype": torch.bfloat16,
        "ref_dtype": torch.float16,
        "advantages_dtype": torch.float16,
        "teacher_dtype": torch.bfloat16,
    },
}


def any_case(family: str, g: torch.Generator, *, small: bool = False, device: str = "cpu", **options: Any) -> Case:
    """A case of either kind with odd lengths, for tests that run over all nine functions.

    Options that the family does not have (teacher_dtype for a policy loss, beta for reverse KL) are dropped.
    """
    if family == "reverse_kl":
        shape = (2, 3, 17) if small else (3, 7, 1009)
        names = ("dtype", "teacher_dtype", "mask_dtype", "mask")
        return kl_case(shape, g, device=device, **{k: v for k, v in options.items() if k in names})
    batch, tokens = (3, 5) if small else (5, 257)
    return policy_case(
        family, batch, tokens, g, device=device, **{k: v for k, v in options.items() if k != "teacher_dtype"}
    )
