"""Graphs of models that make tensors on the CPU; the meta device stands in for CUDA, where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strop.rewrite.devices import on_one_device
from strop.rewrite.patterns import value_of
from torch import Tensor, fx, nn


class Positions(nn.Module):
    """As MPNet's and DeBERTa's: made on the CPU, computed with there, copied."""

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        buckets = torch.where(places > 3, torch.full_like(places, 3), places) + torch.tensor([2]).sum()
        return x * buckets.to(x.device) + torch.tensor(7).type_as(x)


class ToTheHost(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1).cpu() + torch.arange(x.shape[0])


def graph_of(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    sizes = tuple({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for _ in inputs)
    program = torch.export.export(model, inputs, dynamic_shapes=sizes, strict=False).run_decompositions({})
    graph, values = fx.Graph(), {}
    attributes: dict[str, Any] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder" and specs[node.name].target is not None:
            attributes[node.name] = program.constants[specs[node.name].target]
            values[node] = graph.get_attr(node.name)
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
        values[node].meta = dict(node.meta)
    return fx.GraphModule(attributes, graph)


def test_what_is_made_on_the_cpu_is_made_where_the_inputs_are() -> None:
    module = graph_of(Positions(), torch.ones(3, 7, device="meta"))
    before = {value_of(n).device.type for n in module.graph.nodes if isinstance(value_of(n), Tensor)}
    assert before == {"cpu", "meta"}
    assert on_one_device(module)
    module.recompile()
    after = {value_of(n).device.type for n in module.graph.nodes if isinstance(value_of(n), Tensor)}
    assert after == {"meta"}
    (result,) = module(torch.ones(2, 9, device="meta"))
    assert result.shape == (2, 9) and result.device.type == "meta"
    for node in module.graph.nodes:
        assert node.kwargs.get("device") in (None, torch.device("meta"))


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_other_graphs_stay(where: str) -> None:
    model = ToTheHost() if where == "meta" else Positions()
    module = graph_of(model, torch.ones(3, 7, device=where))
    code = module.code
    assert not on_one_device(module)
    module.recompile()
    assert module.code == code


def test_own_tensors_stay_where_they_are() -> None:
    module = graph_of(Positions(), torch.ones(3, 7, device="meta"))
    own = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    assert own and not on_one_device(module, own)
