"""Contract: `*_autograd` goes through torch.library ops with fake and autograd registrations: opcheck passes,
torch.compile(fullgraph=True) with dynamic shapes does not recompile, a grad_output other than 1 scales, double
backward is a clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import strop
import torch
from support.cases import Case, any_case, generator, kl_case, policy_case
from support.compare import Expected
from support.functions import AUTOGRAD, FUSED, NINE, Function, same
from support.reference import Result

NAMES = {
    "policy_logprobs": "policy",
    "old_policy_logprobs": "old",
    "ref_logprobs": "ref",
    "advantages": "advantages",
    "completions_mask": "mask",
    "student_logits": "student",
    "teacher_logits": "teacher",
}


def operators() -> list[str]:
    """All operators of the losses, as registered; tests/test_inference_ops.py has those of rewritten models."""
    names = {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("strop::")}
    return sorted(n for n in names if n.startswith(("grpo_", "bnpo_", "reverse_kl", "scale_grad")))


def operator_arguments(op: torch._ops.OpOverload, device: str, **options: Any) -> tuple[Any, ...]:
    """Arguments for an operator, by the names in its schema."""
    family = "reverse_kl" if "kl" in op._schema.name else op._schema.name.split("::")[1][:4]
    if op._schema.name == "strop::scale_grad":
        g = generator("scale")
        return torch.randn(3, 5, generator=g).to(device), torch.tensor(2.0, device=device)
    case = any_case(family, generator("op", op._schema.name), small=True, device=device, **options)
    values: list[Any] = []
    for argument in op._schema.arguments:
        if argument.name in NAMES:
            values.append(getattr(case, NAMES[argument.name]))
        else:
            values.append({"beta": 0.1, "eps": 0.2, "eps_high": 0.3}[argument.name])
    return tuple(values)


def test_operators_are_registered() -> None:
    base = ["grpo_loss", "bnpo_loss", "reverse_kl"]
    assert {*base, *(f"{n}_fwd" for n in base)} <= set(operators())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", operators())
def test_opcheck(name: str, dtype: torch.dtype, device: str) -> None:
    """Schema, autograd registration, fake tensors and AOT dispatch with dynamic shapes."""
    op = getattr(torch.ops.strop, name).default
    args = operator_arguments(op, device, dtype=dtype)
    torch.library.opcheck(op, args)
    returns_grad = len(op._schema.returns) == 2
    if returns_grad:  # once more with a gradient wanted, in eager and traced
        args = (args[0].detach().clone().requires_grad_(), *args[1:])
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("name", operators())
def test_operator_schemas(name: str) -> None:
    """Only what ends in an underscore writes to its inputs, and every function's operator knows its argument names."""
    schema = getattr(torch.ops.strop, name).default._schema
    assert schema.is_mutable == name.endswith("_")
    if name != "scale_grad":
        assert {a.name for a in schema.arguments} <= {*NAMES, "beta", "eps", "eps_high"}


def compiled(fn: Function, backend: str, **extra: Any) -> Callable[[Case], Result]:
    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def call(*args: Any) -> torch.Tensor:
        return fn.function(*args, **extra) * 2.0

    def run(case: Case) -> Result:
        leaf = case.leaf.detach().clone().requires_grad_()
        loss = call(leaf, *case.args()[1:])
        loss.backward()
        return Result(loss.detach() / 2, leaf.grad / 2)

    return run


def shapes_for(fn: Function, device: str, dtype: torch.dtype = torch.float32) -> list[Case]:
    if fn.is_policy:
        shapes = [(4, 33), (7, 129), (3, 65), (11, 1000)]
        options = {"mask": "all", "dtype": dtype, "device": device}
        return [policy_case(fn.family, b, t, generator("c", b), **options) for b, t in shapes]
    shapes3 = [(2, 3, 65), (5, 4, 129), (3, 7, 1001)]
    return [kl_case(s, generator("c", s), mask="all", dtype=dtype, device=device) for s in shapes3]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_compile_without_recompiling(fn: Function, backend: str, device: str) -> None:
    """One graph, forward and backward, for every shape."""
    if backend == "inductor" and fn.family == "bnpo":
        return  # the code is GRPO's; inductor takes seconds
    torch._dynamo.reset()
    run = compiled(fn, backend)
    cases = shapes_for(fn, device)
    Expected(cases[0]).check(run(cases[0]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for case in cases[1:]:
            Expected(case).check(run(case))


@pytest.mark.parametrize("fn", [f for f in NINE if f.variant != "autograd"], ids=str)
def test_compile_of_the_other_variants(fn: Function, device: str) -> None:
    torch._dynamo.reset()
    call = torch.compile(fn.function, fullgraph=True, dynamic=True, backend="aot_eager")
    cases = shapes_for(fn, device, torch.bfloat16)
    for i, case in enumerate(cases):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            out = call(*case.args())
        assert same(Result(*out) if isinstance(out, tuple) else Result(out, None), fn(case))


def test_compile_with_inplace(device: str) -> None:
    """Where the compiler plans memory, inplace changes neither the loss nor the gradient."""
    torch._dynamo.reset()
    case = kl_case((2, 3, 65), generator("compiled in place"), device=device)
    expected = Expected(case)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def autograd(x: torch.Tensor) -> torch.Tensor:
        return strop.reverse_kl_autograd(x * 1.0, case.teacher, case.mask, inplace=True)

    leaf = case.student.clone().requires_grad_()
    loss = autograd(leaf)
    loss.backward()
    expected.check(Result(loss.detach(), leaf.grad))

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def fused(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return strop.reverse_kl(x, case.teacher, case.mask, inplace=True)

    student = case.student.clone()
    loss, grad = fused(student)
    expected.check(Result(loss, grad))
    assert torch.equal(student, grad)


@pytest.mark.parametrize("scale", [2.0, -0.5, 0.0])
@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_grad_output_scales(fn: Function, scale: float, device: str) -> None:
    """Powers of two, so that the scaled gradient is exact."""
    for dtype in (torch.float32, torch.bfloat16):
        case = any_case(fn.family, generator("scale"), dtype=dtype, device=device)
        leaf = case.leaf.detach().clone().requires_grad_()
        loss = fn.raw(case.replace(**{case.LEAF: leaf}))
        loss.backward(torch.tensor(scale, device=device))
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(leaf.grad, fn(case).grad * scale, rtol=0, atol=0)


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_loss_in_a_larger_graph(fn: Function, device: str) -> None:
    """Operations before and after, and another loss on the same tensor: gradients add up."""
    case = any_case(fn.family, generator("graph"), device=device)
    alone = fn(case).grad
    x = case.leaf.detach().clone().requires_grad_()
    y = x * 1.0
    ((fn.raw(case.replace(**{case.LEAF: y})) * 3 + y.sum() * 0.25) / 2).backward()
    torch.testing.assert_close(x.grad, alone * 1.5 + 0.125, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_two_backwards(fn: Function, device: str) -> None:
    """retain_graph: the second backward gives the same; without it PyTorch's own error."""
    case = any_case(fn.family, generator("twice"), device=device)
    leaf = case.leaf.detach().clone().requires_grad_()
    loss = fn.raw(case.replace(**{case.LEAF: leaf}))
    weight = torch.tensor(0.5, device=device)
    (first,) = torch.autograd.grad(loss, leaf, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, weight, retain_graph=True)
    (third,) = torch.autograd.grad(loss, leaf, weight)
    assert torch.equal(first, second) and torch.equal(first, third)
    torch.testing.assert_close(first, fn(case).grad * 0.5, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_gradients_do_not_change_later(fn: Function, device: str) -> None:
    """What backward returned is nobody else's memory."""
    case = any_case(fn.family, generator("later"), device=device)
    leaf = case.leaf.detach().clone().requires_grad_()
    loss = fn.raw(case.replace(**{case.LEAF: leaf}))
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    copy = first.clone()
    first.mul_(7)
    (second,) = torch.autograd.grad(loss, leaf, torch.tensor(1.0, device=device), retain_graph=True)
    assert torch.equal(second, copy)
    second.zero_()
    loss.backward()
    assert torch.equal(leaf.grad, copy)
    loss2 = fn.raw(case.replace(**{case.LEAF: leaf}))
    loss2.backward()  # accumulates
    assert torch.equal(leaf.grad, copy * 2)


@pytest.mark.parametrize("how", ["eager", "operator", "compiled"])
@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_double_backward_is_a_clear_error(fn: Function, how: str, device: str) -> None:
    case = any_case(fn.family, generator("double"), small=True, device=device)
    leaf = case.leaf.detach().clone().requires_grad_()
    args = (leaf, *case.args()[1:])
    if how == "eager":
        loss = fn.function(*args)
    elif how == "operator":
        base = fn.name.removesuffix("_autograd")
        loss = getattr(torch.ops.strop, base)(*args)[0]
    else:
        torch._dynamo.reset()
        loss = torch.compile(fn.function, fullgraph=True, backend="aot_eager")(*args)
    with pytest.raises(RuntimeError, match=r"(?i)double backward|differentiat\w* twice|second derivative|create_graph"):
        (grad,) = torch.autograd.grad(loss * loss, leaf, create_graph=True)
        grad.square().sum().backward()


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_only_the_first_argument_has_a_gradient(fn: Function, device: str) -> None:
    """The others may require gradients: they get none, and no error; alone they make no graph."""
    case = any_case(fn.family, generator("others"), advantages_rank=2, device=device)
    others = [n for n in case.TENSORS if n not in ("mask", case.LEAF)]
    requiring = case.replace(**{n: getattr(case, n).clone().requires_grad_() for n in others})
    leaf = case.leaf.detach().clone().requires_grad_()
    fn.raw(requiring.replace(**{case.LEAF: leaf})).backward()
    assert torch.equal(leaf.grad, fn(case).grad)
    assert all(getattr(requiring, n).grad is None for n in others)
    assert not fn.raw(requiring).requires_grad


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_loss_is_that_of_the_other_variants(fn: Function, device: str) -> None:
    """The three variants of a family agree on the loss to rounding, and fused and autograd on the gradient exactly."""
    case = any_case(fn.family, generator("variants"), device=device)
    fused = next(f for f in FUSED if f.family == fn.family)(case)
    result = fn(case)
    assert torch.equal(result.grad, fused.grad)
    torch.testing.assert_close(result.loss, fused.loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("fn", NINE, ids=str)
def test_without_gradients(fn: Function, mode: Callable[[], Any], device: str) -> None:
    case = any_case(fn.family, generator("none"), device=device)
    expected = fn(case)
    leaf = case.leaf.detach().clone().requires_grad_()
    with mode():
        out = fn.raw(case.replace(**{case.LEAF: leaf}))
        inside = any_case(fn.family, generator("none"), device=device)  # inference tensors, in inference mode
        again = fn.raw(inside)
    for result in (out, again):
        loss, grad = result if isinstance(result, tuple) else (result, None)
        assert not loss.requires_grad
        torch.testing.assert_close(loss.clone(), expected.loss, rtol=1e-6, atol=1e-6)
        if grad is not None:
            assert torch.equal(grad.clone(), expected.grad)


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_autocast_changes_nothing(fn: Function, device: str) -> None:
    case = any_case(fn.family, generator("autocast"), device=device)
    with torch.autocast(device, torch.bfloat16):
        assert same(fn(case), fn(case))
        inside = fn(case)
    assert same(inside, fn(case))


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_fake_tensors(fn: Function, device: str) -> None:
    """Shapes, dtypes and devices without any data, unknown sizes included."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    case = any_case(fn.family, generator("fake"), small=True, dtype=torch.bfloat16, device=device)
    for shape_env in (None, ShapeEnv()):
        with FakeTensorMode(shape_env=shape_env) as mode:
            fake = case.replace(**{n: mode.from_tensor(getattr(case, n)) for n in (*case.TENSORS, "valid")})
            leaf = fake.leaf.detach().requires_grad_()
            out = fn.raw(fake.replace(**{case.LEAF: leaf}))
            loss, grad = out if isinstance(out, tuple) else (out, None)
            if fn.variant == "autograd":
                loss.backward()
                grad = leaf.grad
        assert loss.shape == () and loss.dtype == torch.float32 and loss.device.type == device
        assert type(loss).__name__ == "FakeTensor"
        if grad is not None:
            assert tuple(grad.shape) == tuple(case.leaf.shape) and grad.dtype == torch.bfloat16
            assert grad.device.type == device


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_make_fx(fn: Function, device: str) -> None:
    """Tracing sees one operator of the library and the trace computes the same."""
    from torch.fx.experimental.proxy_tensor import make_fx

    case = any_case(fn.family, generator("fx"), small=True, device=device)
    if fn.variant == "autograd":

        def traced(leaf: torch.Tensor, *args: Any) -> Any:
            leaf = leaf.detach().requires_grad_()
            return torch.autograd.grad(fn.function(leaf, *args), leaf)[0]

        expected: Any = fn(case).grad
    else:

        def traced(*args: Any) -> Any:
            return fn.function(*args)

        expected = fn.raw(case)
    graph = make_fx(traced, tracing_mode="symbolic")(*case.args())
    calls = [str(n.target) for n in graph.graph.nodes if n.op == "call_function" and "strop" in str(n.target)]
    assert calls and calls[0].startswith(f"strop.{fn.name.removesuffix('_autograd')}"), calls
    got = graph(*case.args())
    for a, b in zip(*((x if isinstance(x, (tuple, list)) else (x,)) for x in (got, expected)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_export(fn: Function, device: str) -> None:
    """torch.export with dynamic sizes: the program runs another shape."""
    cases = shapes_for(fn, device)

    class Loss(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> Any:
            return fn.function(*args)

    rows, columns, vocab = (torch.export.Dim(n, min=2, max=4096) for n in ("rows", "columns", "vocab"))
    sizes = [rows, columns, vocab]
    shapes = [{i: sizes[i] for i in range(t.dim())} for t in cases[0].args()]
    program = torch.export.export(Loss(), cases[0].args(), dynamic_shapes=(tuple(shapes),))
    for case in cases[:2]:
        got = program.module()(*case.args())
        expected = fn.function(*case.args())
        for a, b in zip(*((x if isinstance(x, (tuple, list)) else (x,)) for x in (got, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


class Tagged(torch.Tensor):
    """A subclass with the default __torch_function__."""


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_tensor_subclasses(fn: Function, device: str) -> None:
    """nn.Parameter on the fast path; a subclass through the dispatcher; both with the same results."""
    case = any_case(fn.family, generator("subclass"), device=device)
    expected = fn(case)
    parameter = torch.nn.Parameter(case.leaf.clone())
    tagged = case.leaf.clone().as_subclass(Tagged).requires_grad_()
    other_tagged = {n: getattr(case, n).as_subclass(Tagged) for n in case.TENSORS}
    for changed in (
        case.replace(**{case.LEAF: parameter}),
        case.replace(**{case.LEAF: tagged}),
        case.replace(**other_tagged),
    ):
        out = fn.raw(changed)
        loss, grad = out if isinstance(out, tuple) else (out, None)
        if fn.variant == "autograd" and changed.leaf.requires_grad:
            loss.backward()
            grad = changed.leaf.grad
        torch.testing.assert_close(torch.Tensor(loss.detach().cpu()), expected.loss.cpu(), rtol=1e-6, atol=1e-6)
        if grad is not None:
            assert torch.equal(torch.Tensor(grad.cpu()), torch.Tensor(expected.grad.cpu()))


def test_modes_see_the_calls(device: str) -> None:
    """A dispatch mode (profilers of operators, tracers) sees each call as an operator."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for fn in NINE:
        case = any_case(fn.family, generator("modes"), small=True, device=device)
        with Log() as log:
            fn(case)
        assert any(name.startswith("strop.") for name in log.seen), (fn.name, log.seen)


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_backward_on_another_thread(fn: Function, device: str) -> None:
    import threading

    case = any_case(fn.family, generator("thread"), device=device)
    leaf = case.leaf.detach().clone().requires_grad_()
    loss = fn.raw(case.replace(**{case.LEAF: leaf}))
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert torch.equal(leaf.grad, fn(case).grad)


@pytest.mark.parametrize("fn", AUTOGRAD, ids=str)
def test_checkpointing(fn: Function, device: str) -> None:
    """Activation checkpointing runs the loss again in backward."""
    from torch.utils.checkpoint import checkpoint

    case = any_case(fn.family, generator("checkpoint"), device=device)
    leaf = case.leaf.detach().clone().requires_grad_()
    loss = checkpoint(lambda x: fn.raw(case.replace(**{case.LEAF: x * 1.0})), leaf, use_reentrant=False)
    loss.backward()
    assert torch.equal(leaf.grad, fn(case).grad)
