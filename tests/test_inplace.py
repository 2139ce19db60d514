"""Contract: reverse KL with inplace=True: the gradient takes the student's memory, autograd sees it, and a leaf that
requires a gradient, or memory that several elements share, is a clear error."""

from __future__ import annotations

import pytest
import strop
import torch
from support.cases import generator, kl_case
from support.compare import Expected
from support.functions import bitwise_equal
from support.layouts import next_token, offset, prefix, swapped_rows, transposed
from support.reference import Result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fused_takes_the_students_memory(dtype: torch.dtype, device: str) -> None:
    case = kl_case((3, 7, 1009), generator("inplace"), dtype=dtype, device=device)
    out_of_place = strop.reverse_kl(*case.args())
    expected = Expected(case)
    student = case.student.clone()
    version = student._version
    loss, grad = strop.reverse_kl(student, case.teacher, case.mask, inplace=True)
    assert grad.data_ptr() == student.data_ptr() and grad.shape == student.shape and grad.stride() == student.stride()
    assert student._version > version
    assert torch.equal(student, grad)
    expected.check(Result(loss, grad))
    assert bitwise_equal(grad, out_of_place[1]) and bitwise_equal(loss, out_of_place[0])


@pytest.mark.parametrize("layout", [prefix, offset, next_token, swapped_rows, transposed], ids=lambda f: f.__name__)
def test_fused_inplace_on_views(layout, device: str) -> None:
    """Only the view is written: what lies between its elements keeps its bits, and the base's version counts."""
    case = kl_case((3, 5, 257), generator("views"), device=device)
    student = layout(case.student)
    base = student._base
    written = torch.zeros_like(base, dtype=torch.bool)
    written.as_strided(student.shape, student.stride(), student.storage_offset()).fill_(True)
    before, version = base.clone(), base._version
    loss, grad = strop.reverse_kl(student, case.teacher, case.mask, inplace=True)
    assert grad.data_ptr() == student.data_ptr()
    Expected(case).check(Result(loss, grad))
    assert bitwise_equal(base[~written], before[~written])
    assert base._version > version


def test_out_of_place_by_default(device: str) -> None:
    case = kl_case((3, 5, 65), generator("default"), device=device)
    before, version = case.student.clone(), case.student._version
    for call in (strop.reverse_kl, strop.reverse_kl_autograd):
        call(*case.args())
        call(*case.args(), inplace=False)
    assert torch.equal(case.student, before) and case.student._version == version


def test_autograd_takes_the_students_memory(device: str) -> None:
    case = kl_case((3, 7, 1009), generator("autograd"), device=device)
    leaf = case.student.clone().requires_grad_()
    student = leaf * 1.0
    pointer, version = student.data_ptr(), student._version
    seen: list[int] = []
    student.register_hook(lambda g: seen.append(g.data_ptr()))
    loss = strop.reverse_kl_autograd(student, case.teacher, case.mask, inplace=True)
    assert student._version > version
    loss.backward()
    assert seen == [pointer], "the gradient is elsewhere"
    Expected(case).check(Result(loss.detach(), leaf.grad))


def test_autograd_inplace_scales_and_repeats(device: str) -> None:
    case = kl_case((3, 5, 65), generator("repeat"), device=device)
    expected = strop.reverse_kl(*case.args())[1]
    leaf = case.student.clone().requires_grad_()
    loss = strop.reverse_kl_autograd(leaf * 1.0, case.teacher, case.mask, inplace=True)
    weight = torch.tensor(0.5, device=device)
    (first,) = torch.autograd.grad(loss, leaf, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, weight, retain_graph=True)
    (third,) = torch.autograd.grad(loss, leaf, weight)
    assert torch.equal(first, expected * 0.5) and torch.equal(second, first) and torch.equal(third, first)


def test_autograd_sees_the_overwriting(device: str) -> None:
    """An operation that saved the logits raises in its backward rather than use the gradient as logits."""
    case = kl_case((3, 5, 65), generator("saved"), device=device)
    for call in (strop.reverse_kl, strop.reverse_kl_autograd):
        leaf = case.student.clone().requires_grad_()
        student = leaf * 1.0
        squares = student.square().sum()  # saves student
        call(student, case.teacher, case.mask, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squares.backward()


def test_overwritten_gradient_is_noticed(device: str) -> None:
    """Writing to the logits between the loss and its backward destroys the gradient: an error, not a wrong one."""
    case = kl_case((3, 5, 65), generator("noticed"), device=device)
    leaf = case.student.clone().requires_grad_()
    student = leaf * 1.0
    loss = strop.reverse_kl_autograd(student, case.teacher, case.mask, inplace=True)
    with torch.no_grad():
        student.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("call", [strop.reverse_kl, strop.reverse_kl_autograd], ids=lambda f: f.__name__)
def test_leaf_that_requires_a_gradient(call, device: str) -> None:
    case = kl_case((3, 5, 65), generator("leaf"), device=device)
    for leaf in (case.student.clone().requires_grad_(), torch.nn.Parameter(case.student.clone())):
        with pytest.raises(ValueError, match=r"student_logits.*leaf"):
            call(leaf, case.teacher, case.mask, inplace=True)
        assert torch.equal(leaf, case.student)


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("call", [strop.reverse_kl, strop.reverse_kl_autograd], ids=lambda f: f.__name__)
def test_memory_that_elements_share(call, grad: bool, device: str) -> None:
    """Expanded tensors and overlapping windows: refused before anything is written."""
    g = generator("shared")
    teacher = torch.randn((3, 5, 65), generator=g).to(device)
    mask = torch.ones(3, 5, dtype=torch.bool, device=device)
    memory = torch.randn(4000, generator=g).to(device)
    shared = {
        "expanded rows": memory[: 5 * 65].view(1, 5, 65).expand(3, 5, 65),
        "expanded row": memory[: 3 * 65].view(3, 1, 65).expand(3, 5, 65),
        "expanded vocabulary": memory[:15].view(3, 5, 1).expand(3, 5, 65),
        "windows": memory.as_strided((3, 5, 65), (5 * 65, 64, 1)),
        "all overlapping": memory.as_strided((3, 5, 65), (1, 1, 1)),
    }
    before = memory.clone()
    for what, student in shared.items():
        if grad:
            student = student.detach().requires_grad_()
            student = student.as_strided(student.shape, student.stride())  # no leaf
        with pytest.raises(ValueError, match="student_logits"):
            call(student, teacher, mask, inplace=True)
        assert torch.equal(memory, before), what


def test_overlap_that_is_none(device: str) -> None:
    """Stride 0 where the size is 1, and rows interleaved without sharing, are fine."""
    memory = torch.randn(4000, generator=generator("none")).to(device)
    teacher = torch.zeros(1, 5, 65, device=device)
    mask = torch.ones(1, 5, dtype=torch.bool, device=device)
    for strides in ((0, 65, 1), (0, 1, 5), (7, 70, 1)):
        student = memory.clone().as_strided((1, 5, 65), strides)
        expected = strop.reverse_kl(student.contiguous(), teacher, mask)
        loss, grad = strop.reverse_kl(student, teacher, mask, inplace=True)
        torch.testing.assert_close(grad, expected[1], rtol=1e-5, atol=1e-7)


def test_masked_rows_are_zeroed_in_place(device: str) -> None:
    case = kl_case((3, 5, 65), generator("masked"), device=device)
    student = torch.where(case.valid.unsqueeze(-1), case.student, torch.nan)
    _, grad = strop.reverse_kl(student, case.teacher, case.mask, inplace=True)
    assert (student[~case.valid] == 0).all() and torch.isfinite(grad).all()


def test_inplace_without_gradients(device: str) -> None:
    """Under no_grad and in inference mode, and on inference tensors."""
    case = kl_case((3, 5, 65), generator("inference"), device=device)
    expected = strop.reverse_kl(*case.args())[1]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for call in (strop.reverse_kl, strop.reverse_kl_autograd):
                student = case.student.clone()
                call(student, case.teacher, case.mask, inplace=True)
                assert torch.equal(student, expected)


def test_inplace_with_another_teacher_dtype(device: str) -> None:
    case = kl_case((2, 3, 129), generator("teacher"), dtype=torch.bfloat16, teacher_dtype=torch.float32, device=device)
    expected = Expected(case)
    student = case.student.clone()
    expected.check(Result(*strop.reverse_kl(student, case.teacher, case.mask, inplace=True)))


def test_teacher_that_is_the_student(device: str) -> None:
    """The two may be one tensor out of place; in place it is right or refused."""
    case = kl_case((2, 3, 129), generator("self"), mask="all", device=device)
    loss, grad = strop.reverse_kl(case.student, case.student, case.mask)
    assert loss.abs() < 1e-5 and grad.abs().max() < 1e-5
    both = case.student.clone()
    try:
        loss, grad = strop.reverse_kl(both, both, case.mask, inplace=True)
    except ValueError:
        assert torch.equal(both, case.student)
    else:
        assert loss.abs() < 1e-5 and grad.abs().max() < 1e-5
