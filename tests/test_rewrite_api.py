"""optimize_model, restore and report as functions: the object stays what it was, and can have its own forward back."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import strop
import torch
from support.cases import generator
from torch import Tensor, nn


class Layer(nn.Module):
    def __init__(self, columns: int = 8) -> None:
        super().__init__()
        g = generator("layer", columns)
        self.linear, self.norm = nn.Linear(columns, columns), nn.LayerNorm(columns)
        self.register_buffer("shift", torch.randn(columns, generator=g))
        self.eval()

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        y = self.norm(x + torch.nn.functional.gelu(self.linear(x))) * scale + self.shift
        return y if mask is None else y * mask.unsqueeze(-1)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("x", shape))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_same_object_and_back() -> None:
    model = Layer()
    plain, names = copy.deepcopy(model), set(model.state_dict())
    assert strop.optimize_model(model) is model
    assert set(model.state_dict()) == names and inspect.signature(model.forward) == inspect.signature(plain.forward)
    for shape in ((3, 5, 8), (1, 1, 8), (2, 31, 8)):
        same(model(draw(*shape)), plain(draw(*shape)))
        same(model(x=draw(*shape), scale=2.0), plain(draw(*shape), 2.0))
    assert len(strop.report(model).graphs) == 2
    assert strop.restore(model) is model and "forward" not in model.__dict__
    same(model(draw(3, 5, 8)), plain(draw(3, 5, 8)))
    assert str(strop.report(model)) == "Layer: not optimized"
    assert strop.restore(model) is model


def test_twice_is_once() -> None:
    model = strop.optimize_model(Layer())
    first = model.forward
    wanted = model(draw(2, 4, 8))
    assert strop.optimize_model(model).forward is first
    strop.optimize_model(model, dtype=torch.bfloat16)
    assert model.forward is not first and model(draw(2, 4, 8)).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    strop.optimize_model(model)
    same(model(draw(2, 4, 8)), wanted)
    strop.restore(model)
    assert "forward" not in model.__dict__


def test_two_models_and_a_copy_are_independent() -> None:
    a, b = strop.optimize_model(Layer(8)), strop.optimize_model(Layer(4))
    a(draw(2, 4, 8)), b(draw(2, 4, 4))
    c = copy.deepcopy(a)
    with torch.no_grad():
        c.shift += 1
    same(c(draw(2, 4, 8)), a(draw(2, 4, 8)) + 1)
    assert strop.report(c).graphs[0].calls == 1 and strop.report(a).graphs[0].calls == 2
    strop.restore(a)
    assert strop.report(b).optimized and strop.report(c).optimized
    d = pickle.loads(pickle.dumps(c))
    same(d(draw(2, 4, 8)), c(draw(2, 4, 8)))


def test_weights_are_shared_and_replaced_ones_noticed() -> None:
    model, plain = strop.optimize_model(Layer()), Layer()
    model(draw(2, 4, 8))
    assert strop.report(model).graphs[0].calls == 1
    other = {name: torch.randn(t.shape, generator=generator(name)) for name, t in plain.state_dict().items()}
    for m in (model, plain):
        m.load_state_dict(other)
    same(model(draw(2, 4, 8)), plain(draw(2, 4, 8)))
    assert strop.report(model).graphs[0].calls == 2  # the same graph
    for m in (model, plain):
        m.linear.weight = nn.Parameter(torch.eye(8))
        m.shift = torch.ones(8)
    same(model(draw(2, 4, 8)), plain(draw(2, 4, 8)))
    assert strop.report(model).graphs[0].calls == 1  # a new one


def test_a_module_that_cannot_be_captured_runs_as_before() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if bool((x > 0).all()) else x - 1

    model = strop.optimize_model(Decides().eval())
    same(model(torch.ones(2, 3)), torch.ones(2, 3) + 1)
    same(model(-torch.ones(2, 3)), -torch.ones(2, 3) - 1)
    text = str(strop.report(model))
    assert "not captured" in text and "torch.export" in text
    assert list(strop.report(model).eager.values()) == [2]


def test_a_size_baked_into_the_module_is_noticed() -> None:
    """What a capture gets wrong is found by running it on other sizes."""

    class Bakes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.full((1,), float(int(str(x.shape[1])) if str(x.shape[1]).isdigit() else 7))

    model = strop.optimize_model(Bakes().eval())
    for length in (4, 6):
        same(model(torch.ones(2, length, 3)), torch.ones(2, length, 3) * length)
    assert "not captured" in str(strop.report(model))


def test_other_arguments_run_as_before() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, more: list[Tensor] | None = None) -> Tensor:
            return x if more is None else x + more[0]

    model = strop.optimize_model(Two().eval())
    same(model(draw(2, 3), [draw(2, 3)]), 2 * draw(2, 3))
    assert list(strop.report(model).eager) == ["more is a list"]


def test_an_empty_batch_and_no_gradient() -> None:
    model = strop.optimize_model(Layer())
    assert not model(draw(2, 4, 8)).requires_grad
    assert model(draw(0, 4, 8)).shape == (0, 4, 8)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="Module"):
        strop.optimize_model(lambda x: x)
    with pytest.raises(ValueError, match="dtype"):
        strop.optimize_model(Layer(), dtype=torch.int8)
    with pytest.raises(ValueError, match="graphs"):
        strop.optimize_model(Layer(), graphs="always")


def test_report_as_text_and_as_a_table() -> None:
    model = strop.optimize_model(Layer())
    assert "0 captured" in str(strop.report(model))
    model(draw(2, 4, 8), mask=torch.ones(2, 4))
    report = strop.report(model)
    assert (
        "strop::linear_act" in str(report)
        and "aten::mul" in str(report)
        and "padding is computed as well" in str(report)
    )
    assert "batch×length×8" in str(report)
    table = report._repr_html_()
    assert table.count("<tr>") == 1 + len(report.graphs[0].replaced) + len(report.graphs[0].left)
    assert "<script" not in table and "strop::linear_act" in table


def test_what_differs_at_padding_alone_is_no_difference() -> None:
    from strop.rewrite.capture import _close_but_for_padding

    a = torch.randn(2, 5, 3, generator=generator("padding"))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    b = torch.where(mask.bool()[..., None], a, a + 1.8)
    assert _close_but_for_padding(a, b, mask)
    b[1, 2, 0] += 0.1
    assert not _close_but_for_padding(a, b, mask)
    assert not _close_but_for_padding(a, a + 1, None) and not _close_but_for_padding(a[..., 0], b[..., 0], mask)
