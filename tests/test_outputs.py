"""Contract: the loss is a 0-dim fp32 tensor; the gradient has the dtype of the argument that it belongs to."""

from __future__ import annotations

import os
import subprocess
import sys

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


@pytest.mark.parametrize("fn", FORWARD + FUSED, ids=str)
def test_outputs_are_the_allocators_own(fn: Function, device: str) -> None:
    """Not another library's memory in a tensor: `record_stream` and `resize_` hold for them."""
    result = fn(any_case(fn.family, generator("own"), small=True, device=device))
    for output in (result.loss, result.grad):
        assert output is None or output.untyped_storage().resizable()


def test_outputs_by_dlpack_are_the_same(device: str) -> None:
    """The way that is left where PyTorch does not offer the quick one."""
    script = """
import sys, torch, strop
torch.manual_seed(0)
x = [torch.randn(3, 5, dtype=torch.bfloat16, device=sys.argv[1]) for _ in range(3)]
mask = torch.ones(3, 5, dtype=torch.bool, device=sys.argv[1])
loss, grad = strop.bnpo_loss(*x, x[0][:, 0], mask)
kl = strop.reverse_kl_fwd(x[0][None], x[1][None], mask[None][:, :, 0])
empty = strop.grpo_loss(*(t[:0] for t in x), x[0][:0, 0], mask[:0])[1]
print(grad.untyped_storage().resizable(), loss.item(), grad.tolist(), grad.dtype, kl.item(), empty.shape)
"""
    seen = []
    for value in ("0", "1"):
        environment = {**os.environ, "STROP_DLPACK_OUTPUTS": value}
        done = subprocess.run(
            [sys.executable, "-c", script, device], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split(maxsplit=1))
    assert [own for own, _ in seen] == ["True", "False"]
    assert seen[0][1] == seen[1][1]
