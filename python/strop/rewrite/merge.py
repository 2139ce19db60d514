"""Linear layers of one input as one product: queries, keys and values of attention, mostly.

It needs their weights one behind the other in memory, so it is done with copies of weights alone (dtype=…), whose
parameters become views of what they were merged into: nothing is held twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .ops import ops
from .patterns import aten, is_node, value_of


def merge_linears(module: fx.GraphModule) -> dict[str, list[str]]:
    """Merges what it can: each attribute that it made, with those that it is made of, which are its own to move."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target is ops.linear_act.default and _plain(node):
            weight = value_of(node.args[1])
            has_bias = len(node.args) > 2 and node.args[2] is not None
            groups.setdefault((node.args[0], weight.dtype, has_bias), []).append(node)
    merged: dict[str, list[str]] = {}
    for nodes in groups.values():
        weights = [node.args[1] for node in nodes]
        if len(nodes) > 1 and len(set(weights)) == len(weights):
            merged.update(_merge(module, nodes, f"merged_{len(merged)}"))
    if merged:
        module.graph.eliminate_dead_code()
        module.graph.lint()
    return merged


def join(module: torch.nn.Module, parts: list[str], label: str) -> None:
    """Gives a module a parameter of others, one behind the other, and has these be views of it."""
    tensors = [getattr(module, part) for part in parts]
    whole = torch.cat([t.detach() for t in tensors])
    for tensor, view in zip(tensors, whole.split([len(t) for t in tensors]), strict=True):
        tensor.data = view
    setattr(module, label, torch.nn.Parameter(whole, requires_grad=False))


def _plain(node: fx.Node) -> bool:
    """Without an activation or a residual, of a weight and a bias that are parameters nothing else uses."""
    weight, bias, activation, residual = (*node.args[1:], *(None, "none", None)[len(node.args) - 2 :])
    given = [p for p in (weight, bias) if p is not None]
    return (
        not node.kwargs
        and activation == "none"
        and residual is None
        and all(is_node(p) and p.op == "get_attr" and len(p.users) == 1 for p in given)
    )


def _merge(module: fx.GraphModule, nodes: list[fx.Node], name: str) -> dict[str, list[str]]:
    graph, first = module.graph, nodes[0]
    merged: dict[str, list[str]] = {}
    new: list[fx.Node | None] = []
    for position, what in ((1, "weight"), (2, "bias")):
        parts = [node.args[position] if len(node.args) > position else None for node in nodes]
        if parts[0] is None:
            new.append(None)
            continue
        label = f"{name}_{what}"
        merged[label] = [str(part.target) for part in parts]
        join(module, merged[label], label)
        with graph.inserting_before(parts[0]):
            node = graph.get_attr(label)
        with torch.no_grad():
            node.meta["val"] = aten.cat.default([value_of(part) for part in parts])
        new.append(node)
    columns = [int(value_of(node).shape[-1]) for node in nodes]
    with graph.inserting_before(first):
        product = graph.call_function(ops.linear_act.default, (first.args[0], *new))
    like: Tensor = value_of(first)
    product.meta["val"] = like.new_empty((*like.shape[:-1], sum(columns)))
    begin = 0
    for node, n in zip(nodes, columns, strict=True):
        with graph.inserting_after(product):
            part = graph.call_function(aten.slice.Tensor, (product, -1, begin, begin + n))
        part.meta["val"] = aten.slice.Tensor(product.meta["val"], -1, begin, begin + n)
        node.replace_all_uses_with(part)
        graph.erase_node(node)
        begin += n
    return merged
