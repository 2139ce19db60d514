"""Contract: inputs whose last dimension has stride 1 are read in place; any other strides, expanded tensors and
misaligned storage offsets are also right, never silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.cases import Case, any_case, generator, map_tensors
from support.compare import Expected, check
from support.functions import FAMILIES, FUSED, NINE, Function
from support.layouts import ANY_STRIDE, UNIT_STRIDE, contiguous, every_other_row, next_token, prefix, step, transposed

Layout = Callable[[torch.Tensor], torch.Tensor]


def laid_out(case: Case, layout: Layout, names: tuple[str, ...] | None = None) -> Case:
    return map_tensors(case, layout, names or case.TENSORS)


@pytest.mark.parametrize("layout", ANY_STRIDE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_in_every_layout(family: str, dtype: torch.dtype, layout: Layout, device: str) -> None:
    """All inputs in one layout, and each input alone; the poison around the values must not be read."""
    case = any_case(
        family, generator("layout", family, dtype), dtype=dtype, advantages_rank=2, mask="random", device=device
    )
    expected = Expected(case)
    for fn in NINE:
        if fn.family == family:
            expected.check(fn(laid_out(case, layout)))
    fused = next(f for f in FUSED if f.family == family)
    for name in case.TENSORS:
        expected.check(fused(laid_out(case, layout, (name,))))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16], ids=str)
@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_masks_and_advantages_in_every_layout(fn: Function, dtype: torch.dtype, device: str) -> None:
    case = any_case(fn.family, generator("mask layout", dtype), mask_dtype=dtype, device=device)
    expected = Expected(case)
    for layout in ANY_STRIDE:
        expected.check(fn(laid_out(case, layout, ("mask",))))
        if fn.is_policy:  # advantages of shape (B,)
            expected.check(fn(laid_out(case, layout, ("advantages",))))


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_expanded_inputs(fn: Function, device: str) -> None:
    """One row shown as many, one element shown as a row: stride 0 anywhere."""
    case = any_case(fn.family, generator("expand", fn.name), advantages_rank=2, mask="all", device=device)
    for name in case.TENSORS:
        tensor = getattr(case, name)
        for index in ((slice(0, 1),), (slice(None), slice(0, 1)), (..., slice(0, 1)), (slice(0, 1),) * tensor.dim()):
            expanded = tensor[index].expand(tensor.shape)
            changed = case.replace(**{name: expanded})
            check(changed, fn(changed), repeated=True)
    mask = torch.ones((1,) * case.mask.dim(), dtype=torch.bool, device=device).expand(case.mask.shape)
    everything = case.replace(mask=mask)
    check(everything, fn(everything))


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_every_misalignment(fn: Function, device: str) -> None:
    """Storage offsets of 1 to 17 elements, in every input at once and in the first alone."""
    case = any_case(fn.family, generator("misaligned"), dtype=torch.bfloat16, device=device)
    expected = Expected(case)
    for shift in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17):

        def shifted(t: torch.Tensor, shift: int = shift) -> torch.Tensor:
            room = torch.full((t.numel() + shift + 16,), 1, dtype=t.dtype, device=t.device)
            if t.dtype.is_floating_point:
                room.fill_(torch.nan)
            return room[shift : shift + t.numel()].view(t.shape).copy_(t)

        expected.check(fn(laid_out(case, shifted)))
        expected.check(fn(laid_out(case, shifted, (case.LEAF,))))


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_rows_of_every_misalignment(fn: Function, device: str) -> None:
    """Row lengths that put each row at another alignment: vector loads must not assume the first row's."""
    for extra in range(1, 9):
        case = any_case(fn.family, generator("rows", extra), dtype=torch.float16, device=device)

        def padded(t: torch.Tensor, extra: int = extra) -> torch.Tensor:
            room = torch.full([*t.shape[:-1], t.shape[-1] + extra], 1, dtype=t.dtype, device=t.device)
            if t.dtype.is_floating_point:
                room.fill_(torch.nan)
            return room[..., : t.shape[-1]].copy_(t)

        check(case, fn(laid_out(case, padded)))


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_negative_views(fn: Function, device: str) -> None:
    """A view with PyTorch's lazy negative bit holds the negated values in memory: right or refused, never misread."""
    case = any_case(fn.family, generator("negative"), device=device)
    for name in case.TENSORS:
        tensor = getattr(case, name)
        if not tensor.dtype.is_floating_point:
            continue
        negative = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
        assert negative.is_neg() and torch.equal(negative, tensor)
        try:
            result = fn(case.replace(**{name: negative}))
        except (TypeError, ValueError):
            continue
        check(case, result)


def allocated_on_cpu(f: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator hands out during f, whatever is freed again."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        f()
    events = profile.profiler.kineto_results.events()
    return sum(max(0, e.nbytes()) for e in events if e.name() == "[memory]")


def test_allocations_are_seen() -> None:
    """The measure of the next test notices a copy that is freed at once."""
    x = torch.zeros(1000, 999)
    assert allocated_on_cpu(lambda: x.t().contiguous().sum()) >= x.numel() * 4


@pytest.mark.parametrize("layout", UNIT_STRIDE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("fn", [f for f in NINE if f.variant != "autograd"], ids=str)
def test_unit_stride_is_read_in_place(fn: Function, layout: Layout, device: str) -> None:
    """The only memory that a call takes is that of its outputs and a small workspace."""
    if fn.is_policy:
        from support.cases import policy_case

        # Less than 1 MiB an output: of more, PyTorch's allocator on CUDA may hand out twice as much.
        case: Case = policy_case(fn.family, 48, 4099, generator("in place"), advantages_rank=2, device=device)
    else:
        from support.cases import kl_case

        case = kl_case((2, 3, 20_011), generator("in place"), device=device)
    moved = laid_out(case, layout)
    outputs = 4 + (case.leaf.numel() * case.leaf.element_size() if fn.variant == "fused" else 0)
    smallest = case.mask.numel() if fn.is_policy else case.leaf.numel() * 4  # what a copy would take at least
    slack = 96 * 1024 + 4096  # the workspace, and rounding by the allocator
    assert smallest > slack
    fn.raw(moved)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        keep = fn.raw(moved)
        used = torch.cuda.max_memory_allocated() - before
        del keep
    else:
        used = allocated_on_cpu(lambda: fn.raw(moved))
    assert used <= outputs + slack, f"{used} bytes for outputs of {outputs}"


@pytest.mark.parametrize("fn", [f for f in NINE if f.variant == "autograd"], ids=str)
def test_gradients_reach_what_was_sliced(fn: Function, device: str) -> None:
    """loss(logits[:, :-1]).backward(): the base tensor's gradient is that of the slice, and 0 elsewhere."""
    case = any_case(fn.family, generator("base"), device=device)
    for layout in (next_token, prefix, step, every_other_row, transposed):
        view = layout(case.leaf)
        base = view._base.detach()
        base = torch.where(torch.isnan(base), torch.zeros_like(base), base).requires_grad_()
        leaf_view = base.as_strided(view.shape, view.stride(), view.storage_offset())
        fn.raw(case.replace(**{case.LEAF: leaf_view})).backward()
        expected = fn(laid_out(case, contiguous)).grad
        grad = base.grad.as_strided(view.shape, view.stride(), view.storage_offset())
        # Sums may take another order where rows are aligned otherwise: roundings of logits up to about 50, times p.
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)
        assert base.grad.abs().sum().item() == pytest.approx(grad.abs().sum().item(), rel=1e-4)
