"""Finds subgraphs of an ATen graph and puts others in their place.

A pattern is a function of plain PyTorch. It is traced once, and the trace is compared with the graph node by node from
the result towards the inputs. Its parameters stand for whatever the graph has in their place: tensors, and values such
as a scale or an eps, which a pattern never spells out. The replacement is a function of the same parameters, called
with what they stand for: values as Python numbers, tensors as proxies of the graph's nodes.

What counts as equal:

- operations by their ATen name, whatever the overload and the spelling (`x * y`, `torch.mul`, `x.mul`); one given as an
  overload (`torch.ops.aten.pow.Tensor_Scalar`) by that overload;
- arguments by the operator's schema: one that the pattern leaves out must have its default value in the graph, so
  that `F.gelu(x)` does not match `approximate="tanh"`;
- the arguments of `+` and `*` in either order;
- dimensions counted from either end;
- a parameter that occurs twice must stand for the same thing twice. One annotated as Tensor stands for a tensor alone,
  `Tensor | None` for one or None, `float` and `int` for numbers; without an annotation, for anything.

What lies inside a match must not be used outside of it, as it will not be computed any more. What the pattern returns
is: a pattern may return several of its tensors, of which the first is where the comparison starts.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Values = dict[str, Any]
Where = Callable[["Match"], "bool | str"]

# Names of PyTorch's functions and methods that ATen has under another one.
_ALIASES = {
    "truediv": "div",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "true_divide": "div",
    "multiply": "mul",
    "float": "_to_copy",
    "to": "_to_copy",
    "pos": "positive",
}
_COMMUTATIVE = {"add", "mul", "logical_and", "__and__", "logical_or", "__or__", "maximum", "minimum"}
_DIMENSIONS = {"dim", "dim0", "dim1", "dims"}
_IGNORED = {"_stacklevel", "inplace"}  # arguments that Python's functions have and ATen's operators do not


class PatternError(ValueError):
    """A pattern or a replacement that cannot be used."""


def is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def value_of(argument: Any) -> Any:
    """What a node computes, as export recorded it: a fake tensor or a symbolic number; other arguments themselves."""
    return argument.meta.get("val") if is_node(argument) else argument


@functools.lru_cache(maxsize=4096)
def operation(target: Any) -> str | None:
    """ATen's name of what a node calls; None where that is not an operator."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
    elif isinstance(target, torch._ops.OpOverloadPacket):
        namespace, _, name = target._qualified_op_name.partition("::")
    elif isinstance(target, str):
        namespace, name = "aten", target
    else:
        namespace, name = "aten", getattr(target, "__name__", "")
    name = _ALIASES.get(name, name) if namespace == "aten" else f"{namespace}::{name}"
    return name or None


def arguments(node: fx.Node, schema: torch.FunctionSchema) -> dict[str, Any]:
    """A node's arguments by their names in a schema, those that it leaves out excepted."""
    named = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            named[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
    return named


# ---- Patterns -------------------------------------------------------------------------------------------------------


def _allowed(annotation: Any) -> Callable[[Any], bool]:
    """What a parameter with this annotation may stand for."""
    if annotation in (inspect.Parameter.empty, Any):
        return lambda value: True
    choices = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else None
    if choices is None and typing.get_origin(annotation) is typing.Union:
        choices = typing.get_args(annotation)
    if choices is not None:
        tests = [_allowed(choice) for choice in choices]
        return lambda value: any(test(value) for test in tests)
    if annotation in (None, type(None)):
        return lambda value: value is None
    if annotation is Tensor:
        return lambda value: is_node(value) and isinstance(value_of(value), Tensor)
    if annotation is float:
        return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return lambda value: (
            (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value_of(value), torch.SymInt)
        )
    if isinstance(annotation, type):
        return lambda value: isinstance(value, annotation)
    raise PatternError(f"a pattern's parameter cannot be annotated with {annotation!r}")


@dataclass
class Pattern:
    """A function, traced."""

    function: Callable[..., Any]
    name: str = ""
    graph: fx.Graph = field(init=False)
    outputs: tuple[fx.Node, ...] = field(init=False)
    _allowed: Mapping[str, Callable[[Any], bool]] = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.name or self.function.__name__
        parameters = inspect.signature(self.function).parameters
        try:
            hints = typing.get_type_hints(self.function)
        except NameError as error:
            raise PatternError(f"pattern {self.name}: an annotation cannot be read: {error}") from None
        self._allowed = {name: _allowed(hints.get(name, inspect.Parameter.empty)) for name in parameters}
        self.graph = fx.Graph()
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        proxies = [fx.Proxy(self.graph.placeholder(name), tracer) for name in parameters]
        result = self.function(*proxies)
        results = result if isinstance(result, tuple) else (result,)
        if not results or not all(isinstance(r, fx.Proxy) for r in results):
            raise PatternError(f"pattern {self.name} must return one or more tensors that it computes")
        self.outputs = tuple(r.node for r in results)
        if self.outputs[0].op == "placeholder":
            raise PatternError(f"pattern {self.name} computes nothing: it returns its parameter {self.outputs[0].name}")

    @functools.cached_property
    def anchor(self) -> str | None:
        return operation(self.outputs[0].target)

    def matches(self, node: fx.Node) -> Iterator[dict[fx.Node, Any]]:
        """Ways in which the node computes the pattern's first output: what each node of the pattern stands for."""
        yield from self._unify(self.outputs[0], node, {})

    def _unify(self, pattern: Any, value: Any, bound: dict[fx.Node, Any]) -> Iterator[dict[fx.Node, Any]]:
        if not is_node(pattern):
            if isinstance(pattern, (list, tuple)):
                if isinstance(value, (list, tuple)) and len(pattern) == len(value):
                    yield from self._all(list(zip(pattern, value, strict=True)), bound)
            elif not is_node(value) and type(pattern) is bool and type(value) is bool and pattern == value:
                yield bound
            elif not is_node(value) and type(pattern) is not bool and type(value) is not bool and pattern == value:
                yield bound
            return
        if pattern in bound:
            known = bound[pattern]
            if known is value or (not is_node(known) and not is_node(value) and known == value):
                yield bound
            return
        if pattern.op == "placeholder":
            if self._allowed[pattern.target](value):
                yield {**bound, pattern: value}
            return
        if not is_node(value) or value.op != "call_function" or operation(value.target) != operation(pattern.target):
            return
        if isinstance(pattern.target, torch._ops.OpOverload) and pattern.target is not value.target:
            return
        bound = {**bound, pattern: value}
        if not isinstance(value.target, torch._ops.OpOverload):  # getitem
            yield from self._all(list(zip(pattern.args, value.args, strict=False)), bound)
            return
        for pairs in self._argument_pairs(pattern, value):
            yield from self._all(pairs, bound)

    def _all(self, pairs: list[tuple[Any, Any]], bound: dict[fx.Node, Any]) -> Iterator[dict[fx.Node, Any]]:
        if not pairs:
            yield bound
            return
        for found in self._unify(*pairs[0], bound):
            yield from self._all(pairs[1:], found)

    def _argument_pairs(self, pattern: fx.Node, value: fx.Node) -> Iterator[list[tuple[Any, Any]]]:
        """What must be equal for two calls of an operator to be: once, or twice where arguments may change places."""
        schema = value.target._schema
        ours, theirs = arguments(pattern, schema), arguments(value, schema)
        names = {argument.name for argument in schema.arguments}
        if len(pattern.args) > len(schema.arguments) or not set(pattern.kwargs) <= names | _IGNORED:
            return
        pairs = {}
        for argument in schema.arguments:
            default = argument.default_value if argument.has_default_value() else None
            mine, its = ours.get(argument.name, default), theirs.get(argument.name, default)
            if argument.name in _DIMENSIONS:
                rank = next((value_of(a).dim() for a in value.all_input_nodes if isinstance(value_of(a), Tensor)), 0)
                rank += operation(value.target) in ("unsqueeze", "stack")  # which count the new one too
                mine, its = (_from_the_front(dims, rank) for dims in (mine, its))
            pairs[argument.name] = (mine, its)
        yield list(pairs.values())
        if operation(value.target) in _COMMUTATIVE:
            (a, x), (b, y), *rest = pairs.values()
            yield [(a, y), (b, x), *rest]


def _from_the_front(dims: Any, rank: int) -> Any:
    if isinstance(dims, int) and not isinstance(dims, bool):
        return dims + rank if dims < 0 else dims
    if isinstance(dims, (list, tuple)):
        return [_from_the_front(dim, rank) for dim in dims]
    return dims


# ---- Matches and their replacement ----------------------------------------------------------------------------------


@dataclass
class Match:
    """A place in the graph where a pattern was found."""

    node: fx.Node  # computes the pattern's first output
    nodes: dict[fx.Node, Any]  # what each node of the pattern stands for
    pattern: Pattern

    def __getitem__(self, parameter: str) -> Any:
        """What a parameter of the pattern stands for: a node, or a value."""
        return self.values()[parameter]

    def values(self) -> Values:
        return {p.target: self.nodes[p] for p in self.pattern.graph.nodes if p.op == "placeholder" and p in self.nodes}

    def val(self, parameter: str) -> Any:
        """What a parameter stands for, as the fake tensor of its shape and dtype, or the value."""
        return value_of(self[parameter])

    @property
    def outputs(self) -> list[fx.Node]:
        return [self.nodes[output] for output in self.pattern.outputs]

    def inner(self) -> set[fx.Node]:
        """The nodes that the pattern's own operations stand for."""
        return {value for p, value in self.nodes.items() if p.op != "placeholder"}

    def used_outside(self) -> fx.Node | None:
        """A node inside the match that something outside uses, and that the pattern does not return."""
        inner = self.inner()
        for node in inner - set(self.outputs):
            if not set(node.users) <= inner:
                return node
        return None


def find(pattern: Pattern, node: fx.Node, where: Where | None = None, shared: bool = False) -> tuple[Match | None, str]:
    """The match that ends in a node, or why what looks like one is none.

    Where `shared` is set, what is inside may be used elsewhere too: it stays there for the others.
    """
    reason = ""
    for nodes in pattern.matches(node):
        match = Match(node, nodes, pattern)
        outside = None if shared else match.used_outside()
        if outside is not None:
            reason = reason or f"{outside.name} inside it is used elsewhere too"
            continue
        verdict = where(match) if where else True
        if verdict is True:
            return match, ""
        reason = verdict if isinstance(verdict, str) else reason
    return None, reason


def _last(nodes: list[fx.Node], order: Mapping[fx.Node, int]) -> fx.Node:
    return max(nodes, key=lambda n: order[n])


def replace(match: Match, replacement: Callable[..., Any]) -> list[fx.Node]:
    """Puts what a replacement computes in the place of a match; the nodes that it added."""
    graph = match.node.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    outputs = match.outputs
    inputs = [n for value in match.values().values() for n in _nodes_in(value)]
    # The new nodes go where all inputs are there and no user has come yet.
    first = min(outputs, key=lambda n: order[n])
    at = first
    if inputs and order[_last(inputs, order)] > order[first]:
        at = _last(inputs, order).next
        for user in (user for output in outputs for user in output.users):
            if user not in match.inner() and order[user] < order.get(at, len(order)):
                raise PatternError(f"{user.name} uses {first.name} before all inputs of the replacement are there")
    tracer = fx.proxy.GraphAppendingTracer(graph)
    wanted = inspect.signature(replacement).parameters
    values = match.values()
    missing = [name for name, p in wanted.items() if name not in values and p.default is inspect.Parameter.empty]
    if missing:
        raise PatternError(
            f"the replacement of {match.pattern.name} has a parameter {missing[0]} that the pattern lacks"
        )
    given = {
        name: fx.node.map_aggregate(value, lambda a: fx.Proxy(a, tracer) if is_node(a) else a)
        for name, value in values.items()
        if name in wanted
    }
    before = set(graph.nodes)
    with graph.inserting_before(at):
        result = replacement(**given)
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(outputs):
        raise PatternError(f"{match.pattern.name} returns {len(outputs)} tensors, its replacement {len(results)}")
    added = [node for node in graph.nodes if node not in before]
    for node in added:
        complete(node)
    for old, new in zip(outputs, results, strict=True):
        new = new.node if isinstance(new, fx.Proxy) else new
        _check_alike(match.pattern.name, old, new)
        old.replace_all_uses_with(new)
    for node in sorted(match.inner(), key=lambda n: -order[n]):
        if not node.users:
            graph.erase_node(node)
    return added


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal whatever the input's: no guard comes of asking."""
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        both = isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt)
        return both and a.node.expr == b.node.expr
    return a == b


def same_shape(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() and all(map(same_size, a.shape, b.shape))


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def complete(node: fx.Node) -> None:
    """Makes an added node one as export makes them: an overload as its target, and what it computes beside it."""
    if isinstance(node.target, torch._ops.OpOverloadPacket) and len(node.target.overloads()) == 1:
        node.target = getattr(node.target, node.target.overloads()[0])
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    fakes = [v for v in map(value_of, node.all_input_nodes) if isinstance(v, torch._subclasses.FakeTensor)]
    with fakes[0].fake_mode if fakes else contextlib.nullcontext(), torch.no_grad():
        call = getattr(args[0], node.target) if node.op == "call_method" else node.target
        node.meta["val"] = call(*args[1:] if node.op == "call_method" else args, **kwargs)


def _check_alike(name: str, old: fx.Node, new: fx.Node) -> None:
    a, b = value_of(old), value_of(new)
    if isinstance(a, Tensor) and isinstance(b, Tensor) and (a.dtype != b.dtype or a.dim() != b.dim()):
        kinds = [f"{v.dtype} with {v.dim()} dimensions" for v in (b, a)]
        raise PatternError(f"the replacement of {name} gives {kinds[0]} in the place of {kinds[1]}")
