"""What is measured: kernels, shapes, inputs, the bytes a call must move, and when a result is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import baselines
import record as records
import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KERNELS = [family + variant for variant in ("", "_fwd", "_autograd") for family in records.FAMILIES]
IMPLS = ["strop", "eager", "compile_traced", "compile_written", "fused_backward", "liger"]
OURS = ("strop", "fused_backward")  # these may not fail
VOCABULARY = 248_320
POLICY_SHAPES = [(16, 1024), (32, 2048), (64, 4096), (128, 2781), (128, 8192)]
SHAPES = {
    "grpo_loss": POLICY_SHAPES,
    "bnpo_loss": [(16, 1024), (16, 2781), *POLICY_SHAPES[1:]],
    "reverse_kl_cuda": [(*rows, VOCABULARY) for rows in [(1, 64), (2, 128), (4, 256), (8, 512), (8, 981), (8, 1024)]],
    "reverse_kl_cpu": [(1, 64, VOCABULARY), (8, 64, 32000)],
}
INPUTS = {
    "policy_loss": "old = -2 |N(0, 1)|, policy and ref = old + 0.2 N(0, 1), advantages (B,) = N(0, 1)",
    "reverse_kl": "student = 2 N(0, 1), teacher = student + N(0, 1)",
}
MASKS = {
    "full": records.FULL_MASK,
    "ragged": "bool, each row valid up to a length drawn from [T/2, T]",
    "quarter": "bool, a random quarter of the tokens masked",
}


def described(mask: str) -> dict[str, str]:
    """How inputs are drawn, as the record says it."""
    return {**INPUTS, "mask": MASKS[mask]}


def is_reverse_kl(kernel: str) -> bool:
    return baselines.split(kernel)[0] == "reverse_kl"


def shapes_of(kernel: str, device: str) -> list[tuple[int, ...]]:
    return SHAPES[f"reverse_kl_{device}" if is_reverse_kl(kernel) else baselines.split(kernel)[0]]


def impls_of(kernel: str, impls: list[str]) -> list[str]:
    return [impl for impl in impls if baselines.applicable(kernel, impl)]


def make_mask(rows: tuple[int, int], kind: str, device: str) -> Tensor:
    mask = torch.ones(rows, dtype=torch.bool, device=device)
    if kind == "ragged":
        lengths = torch.randint(math.ceil(rows[1] / 2), rows[1] + 1, (rows[0], 1), device=device)
        mask = torch.arange(rows[1], device=device) < lengths
    if kind == "quarter":
        mask.view(-1)[torch.randperm(mask.numel(), device=device)[: mask.numel() // 4]] = False
    return mask


def make_inputs(kernel: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, mask_kind: str) -> list[Tensor]:
    """The tensors of one call, in the order of the public function; distributions: INPUTS and MASKS."""

    def normal(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, device=device)

    mask = make_mask(shape[:2], mask_kind, device)
    if is_reverse_kl(kernel):
        student = normal(shape).mul_(2)
        teacher = normal(shape).add_(student)
        return [student.to(dtype), teacher.to(dtype), mask]
    old = normal(shape).abs_().mul_(-2)
    policy, ref = (old + 0.2 * normal(shape) for _ in range(2))
    return [policy.to(dtype), old.to(dtype), ref.to(dtype), normal((shape[0],)).to(dtype), mask]


def bytes_moved(kernel: str, inputs: list[Tensor], beta: float | None) -> int:
    """What a call must move: every valid input once, a gradient once. Masked logits need no read."""
    grads = 0 if baselines.split(kernel)[1] == "fwd" else inputs[0].nbytes
    if is_reverse_kl(kernel):
        valid = inputs[2].float().mean().item()
        return round(valid * (inputs[0].nbytes + inputs[1].nbytes)) + inputs[2].nbytes + grads
    read = sum(x.nbytes for i, x in enumerate(inputs) if i != 2 or beta)
    return read + grads


def build(kernel: str, impl: str, beta: float | None) -> Callable:
    """An implementation as a function of the case's tensors, the first of them a leaf where `takes_leaf` says so."""
    if impl not in OURS:
        return baselines.build(kernel, impl, beta)
    import strop  # here: whoever only lists cases needs no built package

    options = {} if beta is None else {"beta": beta, "eps": baselines.EPS}
    function = getattr(strop, kernel.removesuffix("_autograd") if impl == "fused_backward" else kernel)

    def call(*inputs: Tensor):
        return function(*inputs, **options)

    if impl == "fused_backward":
        return baselines.with_gradient_fed(call)
    return baselines.with_backward(call) if kernel.endswith("_autograd") else call


def leaf_of(inputs: list[Tensor]) -> Tensor:
    """The first input as a leaf that requires grad. One for all implementations, so that one gradient stays at most."""
    return inputs[0].detach().requires_grad_()


def ready(kernel: str, impl: str, beta: float | None, inputs: list[Tensor], leaf: Tensor) -> Callable[[], object]:
    """The call that is timed, its tensors bound. The first call of a compiled form compiles."""
    function = build(kernel, impl, beta)
    first = leaf if baselines.takes_leaf(kernel, impl) else inputs[0]
    return lambda: function(first, *inputs[1:])


def check(result: Tensor | tuple, expected: Tensor | tuple, dtype: torch.dtype) -> None:
    """Nothing wrong is timed. A gate only: the tests hold the library to its real tolerances.

    Of many elements one in 100,000 may be off, 100 at the most: where a ratio is next to a clip border, the last bit
    of an exponential decides which side it is on.
    """
    result, expected = (x if isinstance(x, tuple) else (x,) for x in (result, expected))
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    for ours, reference in zip(result, expected, strict=True):
        ours, reference = ours.detach(), reference.detach()
        pieces = list(zip(ours, reference, strict=True)) if ours.ndim else [(ours, reference)]  # memory: row by row
        scale = torch.stack([b.abs().max() for _, b in pieces]).max().item()
        allowed = rounding * scale + 1e-6
        off = sum(int((~((a.float() - b.float()).abs() <= allowed)).sum()) for a, b in pieces)  # NaN is off as well
        if off > min(100, ours.numel() // 100_000):
            raise AssertionError(f"{off} of {ours.numel()} elements are wrong by more than {allowed:.3g}")
