"""Rewritten graphs and their plans as JSON, and back: what is kept on disk (cache.py).

Operators are named, and looked up when a graph is read; no code is stored. Shapes and dtypes of nodes, which only
rewriting and lowering ask for, are not there any more in a graph that was read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from .lower import Given, Lowered, Position, caller

NONFINITE = ("inf", "-inf", "nan")
# What a graph calls besides operators: on sizes and lists.
_FUNCTIONS = {
    **{f"operator.{name}": getattr(operator, name) for name in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge",
        "and_", "or_", "not_")},
    **{f"torch.{name}": getattr(torch, name) for name in (
        "sym_max", "sym_min", "sym_float", "sym_int", "sym_not", "sym_ite", "sym_sum") if hasattr(torch, name)},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    "max": max, "min": min,
}  # fmt: skip
_NAMES = {function: name for name, function in _FUNCTIONS.items()}


class Unwritable(Exception):
    """What of a graph cannot be written."""


class Unreadable(Exception):
    """What of a graph that was written is not known here."""


# ---- Arguments ------------------------------------------------------------------------------------------------------


def value_out(value: Any) -> Any:
    kind = type(value)
    if kind is float and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.Size):
        return {"tuple": [value_out(v) for v in value]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [value_out(v) for v in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, value_out(v)] for key, v in value.items()]}
    if kind is slice:
        return {"slice": [value_out(v) for v in (value.start, value.stop, value.step)]}
    if kind is torch.device:
        return {"device": str(value)}
    if kind in (torch.dtype, torch.layout, torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    raise Unwritable(f"a value of type {kind.__name__}")


def value_in(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "node":
        return nodes[held]
    if kind in ("list", "tuple"):
        items = [value_in(v, nodes) for v in held]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: value_in(v, nodes) for key, v in held}
    if kind == "slice":
        return slice(*(value_in(v, nodes) for v in held))
    if kind == "float" and held in NONFINITE:
        return float(held)
    if kind == "device":
        return torch.device(held)
    found = getattr(torch, held, None) if kind == "torch" else None
    if isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        return found
    raise Unreadable(f"a value of kind {kind}")


# ---- Graphs ---------------------------------------------------------------------------------------------------------


def _target_out(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target._schema.name}.{node.target._overloadname}"
    name = _NAMES.get(node.target)
    if name is None:
        raise Unwritable(f"a call of {node.target}")
    return name


def _target_in(op: str, name: str) -> Any:
    if op != "call_function":
        return name
    namespace, _, rest = name.partition("::")
    if not rest:
        if name not in _FUNCTIONS:
            raise Unreadable(f"the function {name}")
        return _FUNCTIONS[name]
    packet, _, overload = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except AttributeError:
        raise Unreadable(f"the operator {name}") from None


def graph_out(graph: fx.Graph) -> list[Any]:
    written = []
    for node in graph.nodes:
        if node.op == "call_module":
            raise Unwritable("a call of a module")
        written.append([node.op, node.name, _target_out(node), value_out(node.args), value_out(node.kwargs)])
    return written


def graph_in(written: list[Any], owner: Any, class_name: str) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """A graph, and its nodes by the names that they had."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs in written:
        given = value_in(args, nodes), value_in(kwargs, nodes)
        nodes[name] = graph.create_node(op, _target_in(op, target), *given, name=name)
    return fx.GraphModule(owner, graph, class_name=class_name), nodes


# ---- Plans ----------------------------------------------------------------------------------------------------------


def lowered_out(lowered: Lowered) -> dict[str, Any]:
    results = []
    for result in lowered.results:
        kinds = {Position: "position", Given: "given"}
        results.append({kinds[type(result)]: result.index} if type(result) in kinds else {"value": value_out(result)})
    return {
        "text": lowered.text, "called": lowered.called, "results": results, "native": sorted(lowered.native),
        "why_python": lowered.why_python,
    }  # fmt: skip


def lowered_in(written: Mapping[str, Any], module: fx.GraphModule, nodes: Mapping[str, fx.Node]) -> Lowered:
    kinds = {"position": Position, "given": Given, "value": lambda held: value_in(held, nodes)}
    results = [kinds[kind](held) for result in written["results"] for kind, held in result.items()]
    constants = [operator.attrgetter(str(n.target))(module) for n in module.graph.nodes if n.op == "get_attr"]
    callables = tuple(caller(nodes[name])[0] for name in written["called"])
    return Lowered(
        written["text"], constants, callables, results, frozenset(written["native"]), list(written["why_python"]),
        list(written["called"]),
    )  # fmt: skip
