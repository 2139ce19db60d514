"""Contract: bad input: TypeError or ValueError naming the argument, what was expected and what came; nothing written,
nothing leaked, the process goes on."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.cases import Case, any_case, generator
from support.functions import NINE, Function, same

ARGUMENT = {
    "policy": "policy_logprobs",
    "old": "old_policy_logprobs",
    "ref": "ref_logprobs",
    "advantages": "advantages",
    "mask": "completions_mask",
    "student": "student_logits",
    "teacher": "teacher_logits",
}


@dataclass(frozen=True)
class Bad:
    """One wrong argument: what replaces it, the error, and words of the message beside the argument's name."""

    label: str
    changes: dict[str, Any]
    errors: tuple[type[Exception], ...]
    name: str
    words: tuple[str, ...] = ()
    keywords: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.label


def shape_words(t: torch.Tensor) -> tuple[str, ...]:
    return tuple(str(n) for n in t.shape)


def bad_calls(case: Case, device: str) -> Iterator[Bad]:
    types = (TypeError,)
    values = (ValueError,)
    either = (TypeError, ValueError)
    for name in case.TENSORS:
        argument, tensor = ARGUMENT[name], getattr(case, name)
        for label, value, word in (
            ("list", [[1.0]], "list"),
            ("number", 3.0, "float"),
            ("string", "logprobs", "str"),
            ("numpy array", tensor.cpu().numpy(), "ndarray"),
            ("None", None, "None"),
        ):
            if name == "ref" and label == "None":
                continue
            yield Bad(f"{name}: {label}", {name: value}, types, argument, (word,))
        dtypes = [torch.float64, torch.int64, torch.bool, torch.complex64] if name != "mask" else [torch.complex64]
        for dtype in dtypes:
            # NumPy's names for what C++ knows; a complex number is "something else" there
            word = () if dtype == torch.complex64 else (str(dtype).removeprefix("torch."),)
            words = word if name == "mask" else ("float32", *word)
            yield Bad(f"{name}: {dtype}", {name: tensor.to(dtype)}, types, argument, words)
        fewer = tensor.reshape(-1)[: tensor.numel() - 1]
        more = tensor.new_zeros((2, 2, 2, 2, 2))
        scalar = tensor.new_zeros(())
        for label, value in (("scalar", scalar), ("five dimensions", more), ("flat", fewer)):
            yield Bad(f"{name}: {label}", {name: value}, values, argument)
        longer = torch.cat([tensor, tensor[:1]], 0)
        if name != case.LEAF:
            yield Bad(f"{name}: one row more", {name: longer}, values, argument, shape_words(longer))
            if tensor.dim() > 1:
                wider = torch.cat([tensor, tensor[..., :1]], -1)
                yield Bad(f"{name}: one column more", {name: wider}, values, argument, shape_words(wider))
                yield Bad(f"{name}: one column", {name: tensor[..., :1]}, values, argument)
                yield Bad(f"{name}: transposed", {name: tensor.transpose(0, 1)}, values, argument)
        else:
            yield Bad(f"{name}: one row more", {name: longer}, values, "")
        yield Bad(f"{name}: meta device", {name: tensor.to("meta")}, (TypeError, ValueError, RuntimeError), "")
        if tensor.dim() == 2 and tensor.dtype == torch.float32:
            yield Bad(f"{name}: sparse", {name: tensor.to_sparse()}, (TypeError, ValueError, RuntimeError), "")
        if device == "cuda":
            label = f"{name}: on the CPU"
            yield Bad(label, {name: tensor.cpu()}, values, "" if name == case.LEAF else argument, ("cpu", "cuda"))
    if hasattr(case, "beta"):
        yield Bad("no ref", {"ref": None}, either, "ref_logprobs", ("beta",))
        for option in ("beta", "eps", "eps_high"):
            for value in ("0.1", [0.1], 1j):
                yield Bad(f"{option}: {value!r}", {option: value}, types, option)
        for option in ("beta", "eps"):
            yield Bad(f"{option}: None", {option: None}, types, option)


def each_bad_call(device: str) -> list[tuple[Function, Case, Bad]]:
    out = []
    for fn in NINE:
        case = any_case(fn.family, generator("bad"), small=True, device=device)
        out += [(fn, case, bad) for bad in bad_calls(case, device)]
    return out


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_errors_name_the_argument(fn: Function, device: str) -> None:
    case = any_case(fn.family, generator("bad"), small=True, device=device)
    good = fn(case)
    wrong: list[str] = []
    for bad in bad_calls(case, device):
        try:
            fn.raw(case.replace(**bad.changes))
        except bad.errors as error:
            message = str(error)
            missing = [w for w in (bad.name, *bad.words) if w not in message]
            if missing:
                wrong.append(f"{bad.label}: {message!r} lacks {missing}")
        except Exception as error:  # noqa: BLE001
            wrong.append(f"{bad.label}: {type(error).__name__} instead: {error}")
        else:
            wrong.append(f"{bad.label}: accepted")
    assert not wrong, "\n".join(wrong)
    assert same(fn(case), good)  # the process goes on


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_wrong_numbers_of_arguments(fn: Function) -> None:
    case = any_case(fn.family, generator("count"), small=True)
    for args in ((), case.args()[:1], case.args()[:-1], (*case.args(), *range(10))):
        with pytest.raises(TypeError):
            fn.function(*args)
    with pytest.raises(TypeError):
        fn.function(*case.args(), no_such_argument=1)


@pytest.mark.parametrize("fn", [f for f in NINE if f.is_policy], ids=str)
def test_advantages_of_shape_b_by_1(fn: Function, device: str) -> None:
    """(B, 1) is neither (B,) nor (B, T): refused rather than guessed, unless T is 1."""
    case = any_case(fn.family, generator("b1"), small=True, device=device)
    with pytest.raises(ValueError, match="advantages"):
        fn.raw(case.replace(advantages=case.advantages.unsqueeze(1)))


@pytest.mark.parametrize("dimensions", (5, 9, 40))
def test_operators_refuse_more_dimensions_than_a_view_has(dimensions: int, device: str) -> None:
    import strop  # noqa: F401

    x = torch.zeros((1,) * dimensions, device=device)
    ops = torch.ops.strop
    for op in (ops.grpo_loss_fwd, ops.grpo_loss, ops.bnpo_loss_fwd, ops.bnpo_loss):
        with pytest.raises(RuntimeError, match=f"policy_logprobs: expected at most 4 dimensions, got {dimensions}"):
            op(x, x, x, x, x)
    for op in (ops.reverse_kl_fwd, ops.reverse_kl, ops.reverse_kl_):
        with pytest.raises(RuntimeError, match=f"student_logits: expected at most 4 dimensions, got {dimensions}"):
            op(x, x, x)


def test_inplace_errors_write_nothing(device: str) -> None:
    import strop

    case = any_case("reverse_kl", generator("nothing written"), small=True, device=device)
    student = case.student.clone()
    version = student._version
    for bad in bad_calls(case, device):
        if "student" in bad.changes:
            continue
        arguments = case.replace(student=student, **bad.changes).args()
        for call in (strop.reverse_kl, strop.reverse_kl_autograd):
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                call(*arguments, inplace=True)
            assert torch.equal(student, case.student) and student._version == version, bad.label


def uses(case: Case) -> list[tuple[int, int]]:
    """For each tensor: Python references and owners of its storage."""
    tensors = [t for t in case.args() if t is not None]
    return [(sys.getrefcount(t), torch._C._storage_Use_Count(t.untyped_storage()._cdata)) for t in tensors]


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def assert_no_growth(f: Callable[[], None], device: str, limit: int) -> None:
    """f, which has run before, leaves neither memory nor Python objects behind."""
    f()
    gc.collect()
    on_device = torch.cuda.memory_allocated() if device == "cuda" else 0
    blocks, resident = sys.getallocatedblocks(), resident_bytes()
    f()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 200
    assert resident_bytes() - resident < limit
    if device == "cuda":
        assert torch.cuda.memory_allocated() == on_device


def test_bad_calls_leak_nothing(device: str) -> None:
    """A thousand bad calls and more: references, owners of storages, memory of the process and of the device."""
    calls = each_bad_call(device)
    assert len(calls) > 500
    prepared = [(fn, case.replace(**bad.changes)) for fn, case, bad in calls if "sparse" not in bad.label]
    goods = [case for _, case, _ in calls]
    before = [uses(c) for c in goods]

    def run() -> None:
        for _ in range(2):
            for fn, case in prepared:
                try:
                    fn.raw(case)
                except (TypeError, ValueError, RuntimeError):
                    pass

    assert_no_growth(run, device, 8 * 2**20)
    gc.collect()
    assert [uses(c) for c in goods] == before


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_good_calls_leak_nothing(fn: Function, device: str) -> None:
    case = any_case(fn.family, generator("leak"), dtype=torch.float16, device=device)
    before = uses(case)

    def run() -> None:
        for _ in range(300):
            fn(case)

    # Out of 300 calls, leaked gradients alone would be 0.8 MB (policy) or 12 MB (reverse KL).
    assert_no_growth(run, device, 600 * 2**10)
    assert uses(case) == before
    result = fn(case)
    for t in (result.loss, result.grad):
        if t is not None:
            assert torch._C._storage_Use_Count(t.untyped_storage()._cdata) <= 2


def test_results_outlive_their_inputs(device: str) -> None:
    """Nothing returned points into a temporary."""
    for fn in NINE:
        case = any_case(fn.family, generator("outlive"), device=device)
        kept = fn(case)
        again = fn(any_case(fn.family, generator("outlive"), device=device))
        del case
        gc.collect()
        noise = [torch.full((5, 257), 7.0, device=device) for _ in range(20)]
        assert same(kept, again)
        del noise
