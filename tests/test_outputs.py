"""Contract: the loss is a 0-dim fp32 tensor; the gradient has the dtype of the argument that it belongs to."""

from __future__ import annotations

import pytest
import torch
from support.cases import any_case, clone, generator
from support.functions import FORWARD, FUSED, NINE, WITH_GRADIENT, Function
from support.layouts import swapped_rows, transposed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", NINE, ids=str)
def test_loss_is_a_scalar_float32(fn: Function, dtype: torch.dtype, device: str) -> None:
    case = any_case(fn.family, generator("scalar"), small=True, dtype=dtype, device=device)
    loss = fn(case).loss
    assert type(loss) is torch.Tensor
    assert loss.shape == () and loss.dtype == torch.float32 and loss.device == case.leaf.device


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", WITH_GRADIENT, ids=str)
def test_gradient_has_its_arguments_dtype(fn: Function, dtype: torch.dtype, device: str) -> None:
    other = torch.float32 if dtype != torch.float32 else torch.bfloat16
    options = {"old_dtype": other, "ref_dtype": other, "advantages_dtype": other, "teacher_dtype": other}
    case = any_case(fn.family, generator("dtype"), small=True, dtype=dtype, device=device, **options)
    grad = fn(case).grad
    assert grad.dtype == dtype and grad.shape == case.leaf.shape and grad.device == case.leaf.device
    assert grad.is_contiguous()


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_gradient_is_dense_whatever_the_input(fn: Function, device: str) -> None:
    """No two of its elements share memory, and no memory lies between them."""
    for layout in (transposed, swapped_rows):
        case = any_case(fn.family, generator("dense"), small=True, device=device)
        grad = fn(case.replace(**{case.LEAF: layout(case.leaf)})).grad
        assert torch._debug_has_internal_overlap(grad) == 0
        assert grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()


@pytest.mark.parametrize("fn", FORWARD + FUSED, ids=str)
def test_inputs_that_require_gradients(fn: Function, device: str) -> None:
    """The variants without autograd take a parameter as it is, and what they return is detached from it."""
    case = any_case(fn.family, generator("leaf"), small=True, device=device)
    expected = fn(case)
    result = fn(case.replace(**{case.LEAF: case.leaf.clone().requires_grad_()}))
    assert torch.equal(result.loss, expected.loss)
    assert not result.loss.requires_grad
    if result.grad is not None:
        assert torch.equal(result.grad, expected.grad) and not result.grad.requires_grad


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_inputs_are_left_alone(fn: Function, device: str) -> None:
    case = any_case(fn.family, generator("unchanged"), device=device)
    before = clone(case)
    fn(case)
    for name in case.TENSORS:
        assert torch.equal(getattr(case, name).cpu(), getattr(before, name).cpu()), name


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_each_call_returns_memory_of_its_own(fn: Function, device: str) -> None:
    case = any_case(fn.family, generator("own"), small=True, device=device)
    first, second = fn(case), fn(case)
    tensors = [*case.args(), first.loss, first.grad, second.loss, second.grad]
    pointers = [t.untyped_storage().data_ptr() for t in tensors]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_float64_is_a_clear_error(fn: Function, device: str) -> None:
    case = any_case(fn.family, generator("double"), small=True, device=device)
    names = {
        "policy": "policy_logprobs",
        "old": "old_policy_logprobs",
        "ref": "ref_logprobs",
        "advantages": "advantages",
        "student": "student_logits",
        "teacher": "teacher_logits",
    }
    for name in case.TENSORS:
        if name == "mask":
            continue
        with pytest.raises(TypeError, match=names[name]) as error:
            fn.raw(case.replace(**{name: getattr(case, name).double()}))
        assert "float64" in str(error.value) and "float32" in str(error.value)
