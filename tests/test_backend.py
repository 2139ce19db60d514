"""torch.compile(model, backend="strop"): strop's operators in Dynamo's graphs, with eager's results."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from strop.rewrite import backend
from support import models
from support.cases import generator
from torch import Tensor, fx, nn

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the backend made of each graph that it was given."""
    found: list[Any] = []
    original = backend.compile_graph

    def recorded(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        found.append(original(graph, examples))
        return found[-1]

    monkeypatch.setattr(backend, "compile_graph", recorded)
    return found


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=lambda *args: backend.compile_graph(*args), **options)


def operators(made: Any) -> set[str]:
    assert isinstance(made, backend.Compiled) and made.module is not None
    return {str(node.target) for node in made.module.graph.nodes if "strop" in str(node.target)}


SIZES = ((3, 9), (2, 6), (5, 12), (4, 7))


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("kind", ["right", "holes", "none"])
def test_bert_is_eager_s_with_few_compiles(dynamic: bool | None, kind: str, made: list[Any], device: str) -> None:
    model = models.make("BERT").to(device)
    fast = compiled(model, dynamic=dynamic)
    g = generator("backend", kind)
    for batch, length in (*SIZES, *SIZES):
        real = models.mask(kind, batch, length, g)
        call = {name: t.to(device) for name, t in models.tokens(batch, length, g, real).items()}
        with torch.no_grad():
            assert models.worst(fast(**call), model(**call)) < 1e-5
    assert len(made) <= (1 if dynamic else 2)  # the first with Dynamo's sizes as numbers, where it may
    wanted = {"strop.embed_norm.default", "strop.linear_act.default", "strop.attention.default"}
    for one in made:
        assert one.trusted and wanted <= operators(one)
        assert (one.plan is not None) == (device == "cpu")


def test_training_has_its_gradients(made: list[Any]) -> None:
    model, plain = models.make("BERT", layers=1), models.make("BERT", layers=1)
    g = generator("training")
    call = models.tokens(2, 6, g, models.mask("right", 2, 6, g))
    for m in (compiled(model), plain):
        m(**call).last_hidden_state.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        if a.grad is None or b.grad is None:
            assert a.grad is b.grad, name
        else:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert made and not any(isinstance(one, backend.Compiled) for one in made)
    with torch.no_grad():  # and back
        assert models.worst(compiled(model)(**call), plain(**call)) < 1e-5
    assert isinstance(made[-1], backend.Compiled)


class Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8), function
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.linear(x), x)


def writes_to_its_input(self: Module, y: Tensor, x: Tensor) -> Tensor:
    x.add_(1)
    return y + x


def writes_to_a_buffer(self: Module, y: Tensor, x: Tensor) -> Tensor:
    self.count += 1
    return y * self.count


def views(self: Module, y: Tensor, x: Tensor) -> Any:
    return y, y[:, :1], x[0], x.reshape(-1), 3


def breaks(self: Module, y: Tensor, x: Tensor) -> Tensor:
    return self.linear(y) if float(y.sum()) > 1e9 else self.linear(torch.relu(y))


def draws(self: Module, y: Tensor, x: Tensor) -> Tensor:
    return y + torch.rand_like(y) * 0


@pytest.mark.parametrize(
    "function", [writes_to_its_input, writes_to_a_buffer, views, breaks, draws], ids=lambda f: f.__name__
)
def test_what_else_a_module_does_is_as_it_was(function: Callable[..., Any], made: list[Any]) -> None:
    model, plain = Module(function), Module(function)
    plain.load_state_dict(model.state_dict())
    fast = compiled(model)
    for shape in ((3, 5, 8), (2, 4, 8), (3, 5, 8)):
        given = torch.randn(shape, generator=generator("else", shape))
        a, b = given.clone(), given.clone()
        with torch.no_grad():
            got, wanted = fast(a), plain(b)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(model.count, plain.count)
        if function is views:
            assert got[1].data_ptr() == got[0].data_ptr() and got[2].data_ptr() == a.data_ptr()
    assert made


def test_a_wrong_replacement_is_noticed(made: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    import strop

    rule = strop.replace_pattern(lambda x: torch.sin(x), lambda x: torch.cos(x), name="wrong")
    try:
        model = Module(lambda self, y, x: torch.sin(y)).eval()
        fast = compiled(model, dynamic=True)
        with caplog.at_level(logging.INFO, "strop.backend"), torch.no_grad():
            for shape in ((3, 5, 8), (2, 4, 8), (6, 7, 8)):
                x = torch.randn(shape, generator=generator("wrong", shape))
                torch.testing.assert_close(fast(x), model(x))
    finally:
        rule.remove()
    assert "1 × wrong" in caplog.text and "is not used" in caplog.text
    assert made[0].module is None and len(made) == 1


def test_options_are_refused() -> None:
    with pytest.raises(Exception, match="no option"), torch.no_grad():
        torch.compile(nn.Linear(2, 2), backend=backend.compile_graph, options={"fast": True})(torch.ones(2, 2))


CHILD = """
import sys, torch
if {dynamo_first}:
    import torch._dynamo
import strop
assert {dynamo_first} or "torch._dynamo" not in sys.modules
from torch import nn
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)).eval()
with torch.no_grad():
    x = torch.randn(3, 8)
    given = torch.compile(model, backend="strop")(x)
    assert torch.allclose(given, model(x), atol=1e-5)
assert "strop" in torch._dynamo.list_backends()
"""


@pytest.mark.parametrize("installed", [True, False], ids=["entry point", "not installed"])
@pytest.mark.parametrize("dynamo_first", [True, False])
def test_the_name_is_known(tmp_path: Path, installed: bool, dynamo_first: bool) -> None:
    if not installed and not dynamo_first:
        pytest.skip("then nothing tells Dynamo of it")
    declared = re.search(r'^strop = "(.*backend.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared
    if installed:
        folder = tmp_path / "strop_by_test-0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strop-by-test\nVersion: 0\n")
        (folder / "entry_points.txt").write_text(f"[torch_dynamo_backends]\nstrop = {declared[1]}\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(dynamo_first=dynamo_first)],
        capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
