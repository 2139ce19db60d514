"""Plans: rewritten graphs run in C++. They give what the graphs give, for any sizes, from any number of threads."""

from __future__ import annotations

import gc
import importlib.util
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import strop
import torch
import torch.nn.functional as F
from strop import _C
from strop.rewrite.capture import Captured, capture, clean
from strop.rewrite.plan import Plan, Stale
from support.cases import generator
from support.models import make, mask, tokens
from support.plans import agree, captured_by
from torch import Tensor, nn

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def planned(module: nn.Module, *tensors: Tensor) -> tuple[Plan, Captured]:
    """A module as it is written, without rewriting, as a plan."""
    names = [f"t{i}" for i in range(len(tensors))]

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, **given: Tensor) -> Any:
            return self.inner(*given.values())

    model = Named().eval()
    captured = capture(model, model.forward, dict(zip(names, tensors, strict=True)), {})
    clean(captured.module.graph)
    captured.module.recompile()
    return Plan(captured.module), captured


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


# ---- Models: all architectures are in test_rewrite_models.py ---------------------------------------------------------


@needs_transformers
def test_threads_share_a_plan() -> None:
    model = strop.optimize_model(make("BERT", "Model", 2))
    g = generator("threads")
    model(**tokens(2, 5, g, mask("right", 2, 5, g)))
    (captured,) = captured_by(model)
    cases = []
    for batch, length in torch.randint(1, 20, (24, 2), generator=g).tolist():
        inputs = list(tokens(batch, length, g, mask("right", batch, length, g)).values())
        with torch.no_grad():
            cases.append((inputs, captured.plan(*inputs)))
    wrong: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for i in range(150):
                inputs, wanted = cases[(start + i * 5) % len(cases)]
                # Not bitwise: a new thread has PyTorch's default number of threads, by which products are cut.
                agree(captured.plan(*inputs), wanted, [tuple(t.shape) for t in inputs])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


@needs_transformers
def test_results_stay_and_nothing_leaks() -> None:
    """What a call returned is not written by the next; memory that is kept does not grow with calls."""
    model = strop.optimize_model(make("BERT", "Model", 2))
    g = generator("leaks")
    inputs = list(tokens(4, 9, g, mask("right", 4, 9, g)).values())
    model(input_ids=inputs[0], attention_mask=inputs[1])
    (captured,) = captured_by(model)
    first = captured.plan(*inputs)
    copies = [t.clone() for t in first]
    captured.plan(*[t.flip(1) for t in inputs])
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))
    kept = captured.plan.kept_bytes()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50):
        captured.plan(*inputs)
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert captured.plan.kept_bytes() == kept > 0


@needs_transformers
def test_parameters_are_live() -> None:
    """Values written in place, other memory in the same parameter, another dtype: each is seen."""
    model, eager = strop.optimize_model(make("BERT", "Model", 1)), make("BERT", "Model", 1)
    g = generator("live")
    inputs = tokens(2, 6, g, mask("right", 2, 6, g))

    def check() -> None:
        with torch.no_grad():
            given, wanted = (m(**inputs)[0][inputs["attention_mask"] != 0] for m in (model, eager))
        bound = 1e-5 if wanted.dtype == torch.float32 else 0.05
        assert float((given - wanted).abs().max() / wanted.abs().max()) < bound

    check()
    name = "encoder.layer.0.intermediate.dense.weight"
    for m in (model, eager):
        with torch.no_grad():
            m.get_parameter(name).mul_(1.5)
    check()
    for m in (model, eager):
        m.get_parameter(name).data = m.get_parameter(name).data * 0.5
        m.load_state_dict({k: v * 1.25 for k, v in m.state_dict().items() if "LayerNorm" in k}, strict=False)
    check()
    plan = captured_by(model)[0].plan
    model.to(torch.bfloat16)
    with pytest.raises(Stale):
        plan(*inputs.values())
    eager.to(torch.bfloat16)
    check()


@needs_transformers
def test_host_time() -> None:
    """Printed, not bound: a call of two layers of BERT at one sequence of 8 tokens, repeated."""
    model = strop.optimize_model(make("BERT", "Model", 2))
    g = generator("time")
    inputs = tokens(1, 8, g, mask("right", 1, 8, g))
    model(**inputs)
    (captured,) = captured_by(model)
    arguments = list(inputs.values())

    def best(call: Callable[[], Any], runs: int) -> float:
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times) * 1e6

    with torch.no_grad():
        graph = best(lambda: captured.module(*arguments), 50)
        plan = best(lambda: captured.plan(*arguments), 200)
    print(f"\nBERT, 2 layers, 1×8: the graph node by node {graph:.0f} us, as a plan {plan:.0f} us")
    assert plan < graph


# ---- Operations -----------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "views": lambda x, i: (x.transpose(0, 1).reshape(-1), x.unsqueeze(1).expand(-1, 3, -1).reshape(x.shape[0], -1)),
    "slices": lambda x, i: (x[1:, ::2], x[:, -1], x[:, :-1].t(), x[..., None].squeeze(-1)),
    "splits": lambda x, i: (
        *x.split(3, 1), *x.chunk(2, 1), *x.split([1, x.shape[1] - 1], 1), *torch.stack([x, x * 2], 1).unbind(1)
    ),
    "sums": lambda x, i: (x + 1, 2 - x, x - x.t().sum(), i + 2, i - i.t()[0, 0], x + i, 3 - i),
    "products": lambda x, i: (x * 0.1, x / 3, i * 2, i / 2, i * 0.5, x**2, x**-0.5, x**1.5),
    "comparisons": lambda x, i: (x > 0, i == 3, i != 2.5, x <= 0.25, (x > 0) & (i > 1)),
    "masks": lambda x, i: (x.masked_fill(i > 2, -1e30), torch.where(i > 2, x, 0.0), torch.where(i > 2, 1.0, 2.0)),
    "clamp": lambda x, i: (x.clamp(-0.5, 0.5), i.clamp(min=1), x.clamp_min(0.1), i.clamp(max=2)),
    "new": lambda x, i: (
        torch.arange(x.shape[0]), torch.arange(2, x.shape[0] * 3, 2), torch.zeros_like(x), torch.full_like(i, 7),
        torch.ones(x.shape[1]) + x, torch.full((x.shape[0], 2), -1.5), x.new_zeros(3),
        torch.zeros((), dtype=torch.int32),
    ),
    "casts": lambda x, i: (i.float(), x.long(), x.double(), (i > 2).int(), i.to(torch.float16), x.bool()),
    "reductions": lambda x, i: (x.sum(1), x.mean(0, keepdim=True), x.softmax(-1), i.cumsum(1), x.amax(1), x.argmax(1)),
    "several": lambda x, i: (*x.topk(2, 1), *torch.var_mean(x, 1), x.norm(dim=1)),
    "sizes": lambda x, i: x.reshape(-1)[: (x.shape[0] * x.shape[1]) // 2 + x.shape[0] % 3].reshape(1, -1),
    "index": lambda x, i: (x.gather(1, i % x.shape[1]), x[i[:, 0] % x.shape[0]], F.embedding(i, torch.randn(9, 4))),
    "layers": lambda x, i: (F.gelu(x), F.layer_norm(x, x.shape[-1:]), F.pad(x, (1, 2)), torch.cat([x, x * 2], 1)),
    "same": lambda x, i: (x, x, i),
}  # fmt: skip


def both(x_size: tuple[int, int], g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(x_size, generator=g).abs() + 0.1, torch.randint(0, 5, x_size, generator=g)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    """Bitwise what the graph gives: the same functions of PyTorch, or arithmetic that rounds once."""
    g = generator("operations", name)
    x, i = both((4, 6), g)
    seeded = OPERATIONS[name]
    fixed = torch.randn(9, 4, generator=g)

    def call(i: Tensor, x: Tensor) -> Any:  # whole numbers first: their second size is a length, that of others is not
        original, torch.randn = torch.randn, lambda *_, **__: fixed
        try:
            return seeded(x, i)
        finally:
            torch.randn = original

    plan, captured = planned(Function(call), i, x)
    sizes = [(4, 7), (2, 7), (9, 7)] if name == "splits" else [(4, 6), (2, 4), (5, 3), (9, 8)]
    for size in sizes:
        arguments = both(size, g)[::-1]
        with torch.no_grad():
            given, wanted = plan(*arguments), captured.module(*arguments)
        for position, (a, b) in enumerate(zip(given, wanted, strict=True)):
            assert a.dtype == b.dtype and a.shape == b.shape, (position, size)
            if name == "products" and position >= 5:  # another function of PyTorch's for the same power
                assert torch.allclose(a, b, rtol=1e-6), (position, size)
            else:
                assert torch.equal(a, b), (position, size, plan.why_python)
    if name not in ("sums", "products", "comparisons", "new", "index", "reductions", "several", "splits"):
        assert plan.why_python == []


def test_what_only_python_can_call_is_listed() -> None:
    plan, captured = planned(Function(lambda x: (torch.add(x, x, alpha=0.3), x.norm(dim=0))), torch.randn(3, 4))
    assert len(plan.why_python) >= 1 and "aten.add.Tensor" in plan.why_python[0] and "alpha" in plan.why_python[0]
    x = torch.randn(5, 4)
    for a, b in zip(plan(x), captured.module(x), strict=True):
        assert torch.equal(a, b)


def test_noncontiguous_and_empty_inputs() -> None:
    plan, captured = planned(Function(lambda x: (x.reshape(-1) + 1, x.t())), torch.arange(12).view(3, 4))
    base = torch.arange(80).view(8, 10)
    none = torch.empty(0, dtype=torch.int64)
    for x in (base.t()[1:7:2, ::3], base[:, :1].expand(-1, 5), none.view(0, 4), none.view(3, 0)):
        for a, b in zip(plan(x), captured.module(x), strict=True):
            assert torch.equal(a, b)


# ---- What is wrong --------------------------------------------------------------------------------------------------


def text(*instructions: dict[str, Any], outputs: tuple[str, ...] = ("%y",)) -> str:
    inputs = [{"name": "x", "dtype": "float32", "device": "cpu", "shape": [-1, 4]}]
    program = {"version": 1, "inputs": inputs, "constants": [], "instructions": instructions, "outputs": outputs}
    return json.dumps(program)


def foreign(name: str, types: list[str], args: list[Any]) -> dict[str, Any]:
    return {
        "op": "call",
        "name": name,
        "overload": "",
        "types": types,
        "results": ["Tensor"],
        "args": args,
        "out": ["y"],
    }


RELU = text(foreign("aten::relu", ["Tensor"], ["%x"]))


def test_bad_inputs() -> None:
    plan = _C.plan_load(RELU, [], ())
    x = torch.randn(3, 4, requires_grad=True)
    (y,) = _C.plan_run(plan, (x,))
    assert torch.equal(y, x.detach().relu()) and not y.requires_grad and torch.is_grad_enabled()
    for wrong, error, message in (
        ((), TypeError, "expected 1 inputs"),
        ((torch.randn(3),), ValueError, "x: expected 2 dimensions, got 1"),
        ((torch.randn(3, 5),), ValueError, "x: expected size 4 in dimension 1, got 5"),
        ((torch.zeros(3, 4, dtype=torch.int64),), TypeError, "x: expected float32, got int64"),
        ((3,), TypeError, "expected a torch.Tensor, got int"),
    ):
        with pytest.raises(error, match=message):
            _C.plan_run(plan, wrong)
    with pytest.raises(TypeError):
        _C.plan_run(plan, [x])
    with pytest.raises((TypeError, ValueError)):
        _C.plan_run(object(), (x,))
    assert _C.plan_run(plan, (torch.empty(3, 4, device="meta"),)) is NotImplemented
    with torch._subclasses.FakeTensorMode():
        assert _C.plan_run(plan, (x,)) is NotImplemented


def test_inputs_may_be_numbers() -> None:
    program = json.loads(text({"op": "slice", "args": ["%x", 0, "%n", "%m", 1], "out": ["y"]}))
    program["inputs"] += [{"name": "n", "dtype": "int"}, {"name": "m", "dtype": "int"}]
    plan, x = _C.plan_load(json.dumps(program), [], ()), torch.randn(5, 4)
    for n, m in ((0, 5), (1, 3), (-2, 2**62), (4, 4)):
        (y,) = _C.plan_run(plan, (x, n, m))
        assert torch.equal(y, x[n:m])
    for wrong in ((x, 1.5, 2), (x, x, 2), (x, 1, None)):
        with pytest.raises(TypeError, match="expected an int"):
            _C.plan_run(plan, wrong)
    with pytest.raises(OverflowError):
        _C.plan_run(plan, (x, 2**70, 1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("{", "the text of the program"),
        (text({"op": "dance", "args": [], "out": []}), "instruction 0, dance"),
        (text(foreign("aten::relu", ["Tensor", "Scalar"], ["%x", 1])), "Scalar"),
        (text(), "%y"),
    ],
)
def test_bad_texts(program: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.plan_load(program, [], ())


def test_errors_of_pytorch_are_told() -> None:
    """And the plan still works afterwards."""
    plan = _C.plan_load(text(foreign("aten::mm", ["Tensor", "Tensor"], ["%x", "%x"])), [], ())
    with pytest.raises(RuntimeError, match=r"aten::mm \(y\): "):
        _C.plan_run(plan, (torch.randn(3, 4),))
    x = torch.randn(4, 4)
    assert torch.equal(_C.plan_run(plan, (x,))[0], x @ x)


def test_errors_of_callables_are_told() -> None:
    program = text({"op": "python", "name": "f", "callable": 0, "args": ["%x", [2, 1.5, True, None]], "out": ["y"]})
    seen: list[Any] = []

    def fail(x: Tensor, others: list[Any]) -> Tensor:
        seen.append(others)
        raise KeyError("no such luck")

    with pytest.raises(RuntimeError, match=r"f \(y\): .*no such luck"):
        _C.plan_run(_C.plan_load(program, [], (fail,)), (torch.randn(3, 4),))
    assert seen == [[2, 1.5, True, None]]
    with pytest.raises(TypeError):
        _C.plan_run(_C.plan_load(program, [], (lambda *_: "no tensor",)), (torch.randn(3, 4),))
    x = torch.randn(3, 4)
    assert torch.equal(_C.plan_run(_C.plan_load(program, [], (lambda x, _: x * 2,)), (x,))[0], x * 2)
    # One that returns what it got: the result is the caller's all the same.
    (y,) = _C.plan_run(_C.plan_load(program, [], (lambda x, _: x,)), (x,))
    assert torch.equal(y, x) and y.data_ptr() != x.data_ptr()


def test_constants_are_checked() -> None:
    program = json.loads(RELU) | {"constants": [{"name": "w", "dtype": "float32", "device": "cpu", "shape": [2, 3]}]}
    with pytest.raises(ValueError, match="w: expected size 2 in dimension 0, got 3"):
        _C.plan_load(json.dumps(program), [torch.randn(3, 3)], ())
    with pytest.raises(TypeError, match="takes exactly 1"):
        _C.plan_load(json.dumps(program), [], ())


# ---- What is reported -----------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.gelu(self.up(x))).norm(dim=-1)


def test_report_says_what_runs_where() -> None:
    model = strop.optimize_model(Layer().eval())
    model(torch.randn(2, 3, 16))
    (graph,) = strop.report(model).graphs
    runs_on = {line.operation: line.runs_on for line in graph.replaced}
    assert runs_on["strop::layer_norm"] == "its kernel for CPU"
    assert runs_on["strop::linear_act"] == "PyTorch's product, in place"
    assert any(note.startswith("calls Python: ") and "norm" in note for note in graph.notes), graph.notes


def test_what_cannot_be_a_plan_runs_as_a_graph() -> None:
    """A size among the results: the graph runs, the report says why."""

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return torch.relu(x) * 2, x.shape[1] * 3

    model, x = strop.optimize_model(Counts().eval()), torch.randn(2, 5, 4)
    y, count = model(x)
    assert torch.equal(y, x.relu() * 2) and count == 15
    (graph,) = strop.report(model).graphs
    assert not graph.why_eager and "a result that is no tensor" in " ".join(graph.notes), str(strop.report(model))
    assert model(torch.randn(3, 2, 4))[1] == 6
