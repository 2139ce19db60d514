"""Modules that write to their tensors, and what may be a view, are captured as what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import strop
import torch
from strop.rewrite import capture as capturing
from support.cases import generator
from torch import Tensor, nn


class Module(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(8, 8)
        with torch.no_grad():
            g = generator("functional")
            self.linear.weight.copy_(torch.randn(8, 8, generator=g))
            self.linear.bias.copy_(torch.randn(8, generator=g))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def added(y: Tensor) -> Tensor:
    before = y * 2
    y.add_(before)
    return y + before


def returned(y: Tensor) -> Tensor:
    return y.mul_(3) - y  # the result is the tensor itself


def masked(y: Tensor) -> Tensor:
    return y.masked_fill_(y > 0, -1.0).relu()


def seen_by_a_view(y: Tensor) -> Tensor:
    first = y[:, :1]
    y.add_(1)
    return first + y


def through_a_view(y: Tensor) -> Tensor:
    y[:, 0].add_(1)
    return y * 2


def through_a_reshape(y: Tensor) -> Tensor:
    y.reshape(-1, 8).add_(1)
    return y * 2


def through_what_may_be_a_view(y: Tensor) -> Tensor:
    y.contiguous().add_(1)
    y.to(torch.float32).mul_(2)
    return y * 2


def twice(y: Tensor) -> Tensor:
    y.add_(1)
    y.mul_(y)
    return y


def of_another_dtype(y: Tensor) -> Tensor:
    z = (y > 0).long()
    z.add_(torch.ones_like(z))
    return y * z


def in_pieces(y: Tensor) -> Tensor:
    a, b = y.chunk(2, -1)
    return nn.functional.dropout(a, 0.5, False).contiguous().double() * b.to(torch.float64)


KEPT = [added, returned, masked, twice, of_another_dtype, in_pieces]
LEFT = [seen_by_a_view, through_a_view, through_a_reshape, through_what_may_be_a_view]  # to PyTorch's decompositions


@pytest.mark.parametrize("function", KEPT + LEFT, ids=lambda f: f.__name__)
def test_a_module_that_writes_gives_what_it_gives(function, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = []
    original = capturing.make_functional

    def recorded(graph: torch.fx.Graph) -> bool:
        verdicts.append(original(graph))
        return verdicts[-1]

    monkeypatch.setattr(capturing, "make_functional", recorded)
    model = strop.optimize_model(Module(function))
    plain = Module(function)
    for shape in ((3, 5, 8), (1, 1, 8), (2, 9, 8)):
        x = torch.randn(shape, generator=generator("x", shape))
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    graph = strop.report(model).graphs[0]
    assert not graph.why_eager and graph.calls == 3
    assert verdicts == [function in KEPT]
