"""Computes on real tokens alone: one graph that works on padded batches becomes three.

`before` computes what the tokens are looked up by (ids, positions, rotary tables), in the padded layout; `body` has
everything in which tokens are rows of their own, (tokens, …), the sequences one behind the other; `after` has the
outputs in the padded layout again, with 0 where padding is. Attention is what keeps the sequences apart: it gets where
each begins. The body knows neither batch nor length, only the number of tokens and of sequences, so that one CUDA graph
of it serves every batch with as many.

A tensor of the padded graph with a batch dimension b and a length dimension l has in the body one dimension of tokens,
the first, and behind it what else it has, in the same order. What only has a batch dimension, such as the first tokens,
is a row a sequence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from .ops import ops
from .patterns import aten, is_node, operation, value_of


class Padded(Exception):
    """Why a graph needs the padded layout."""


@dataclass(frozen=True)
class Layout:
    """Where batch and length are among a tensor's padded dimensions; length None: one row a sequence."""

    b: int
    l: int | None  # noqa: E741

    @property
    def outer(self) -> tuple[int, ...]:
        return (self.b,) if self.l is None else (self.b, self.l)

    def inner(self, rank: int) -> list[int]:
        """The padded dimensions that are the body's dimensions 1, 2, …"""
        return [d for d in range(rank) if d not in self.outer]


TOKENS = Layout(0, 1)
SEQUENCES = Layout(0, None)


@dataclass
class Pack:
    """How an input of the body comes from an output of `before`."""

    layout: Layout | None  # None: as it is
    batched: bool = True  # False: one row a position, for all sequences


@dataclass
class Ragged:
    """The three graphs, and what connects them."""

    mask: str | None  # the input that says which tokens are real
    before: fx.GraphModule  # the model's inputs → what is packed
    sized: fx.GraphModule  # the same inputs → what is packed and depends on their sizes alone
    packs: list[Pack]  # of the body's inputs
    by_size: list[bool]  # which of these come from `sized`, the others from `before`, in this order
    body: fx.GraphModule  # what was packed, cu, first, longest → rows
    rows: list[Layout]  # of the body's results
    ranks: list[int]  # of the same in the padded layout
    after: fx.GraphModule  # the model's inputs, the body's results in the padded layout → the outputs
    padded: list[Layout | None]  # the outputs whose padding is 0
    wants_first: bool = False  # a sequence whose first position is padding needs the padded graph
    wants_whole: bool = False  # one with a hole does


# What computes each row of the last dimension by itself.
_ROWWISE = {
    "strop::linear_act", "strop::linear_gated", "strop::linear_gated_pair", "strop::layer_norm",
    "strop::add_layer_norm", "strop::rms_norm", "strop::add_rms_norm", "linear", "layer_norm", "rms_norm",
}  # fmt: skip
# What computes each element by itself, of inputs that are broadcast to one another.
_POINTWISE = {
    "add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "pow", "square", "reciprocal", "sign",
    "relu", "gelu", "silu", "tanh", "sigmoid", "erf", "elu", "leaky_relu", "hardswish", "softplus", "clamp",
    "clamp_min", "clamp_max", "maximum", "minimum", "where", "_to_copy", "type_as", "clone", "sin", "cos",
    "eq", "ne", "lt", "le", "gt", "ge",
    "logical_and", "logical_or", "logical_not", "bitwise_not", "masked_fill", "isnan", "nan_to_num",
}  # fmt: skip
# What may happen to outputs in the padded layout: nothing that would let one token's padding reach another's result.
_AFTER = {"reshape", "transpose", "permute", "unsqueeze", "squeeze", "split", "chunk", "split_with_sizes", "unbind",
          "getitem", "t", "movedim", "contiguous", "clone"}  # fmt: skip


class _Splitter:
    def __init__(self, graph: fx.Graph, owner: fx.GraphModule, role: Mapping[str, Sequence[str | int]]) -> None:
        self.graph, self.owner = graph, owner
        self.symbols: dict[Any, str] = {}  # expression of a size: B or L
        for node in graph.nodes:
            if node.op == "placeholder":
                for size, what in zip(value_of(node).shape, role[node.target], strict=True):
                    if isinstance(what, str):
                        self.symbols[_expression(size)] = what
        self.mask: str | None = None
        self.body, self.before, self.after = fx.Graph(), fx.Graph(), fx.Graph()
        self.layout: dict[fx.Node, Any] = {}  # of what the body computes; for several results, a list
        self.in_body: dict[fx.Node, fx.Node] = {}
        self.inputs: dict[tuple[fx.Node, str], fx.Node] = {}  # what is packed: its placeholder in the body
        self.packed: list[tuple[fx.Node, Pack]] = []
        self.later: set[fx.Node] = set()  # computed from results of the body, in the padded layout
        self.wants_first = self.wants_whole = False
        self.attentions = 0
        # Placeholders come first in a graph; those for what is packed are made as it is met.
        self.cu, self.first, self.longest = (self.body.placeholder(name) for name in ("cu", "first", "longest"))

    # ---- Sizes and masks --------------------------------------------------------------------------------------------

    def what(self, size: Any) -> str | int | None:
        """B, L, BL for their product, a number, or None for any other size."""
        if isinstance(size, int):
            return size
        expression = _expression(size)
        if expression in self.symbols:
            return self.symbols[expression]
        factors = expression.as_ordered_factors()
        if len(factors) == 2 and {self.symbols.get(f) for f in factors} == {"B", "L"}:
            return "BL"
        return None

    def tokens_of(self, tensor: Tensor) -> Layout | None:
        """The layout of a padded tensor, where its shape tells: batch and length beside one another, in front."""
        sizes = [self.what(s) for s in tensor.shape]
        return TOKENS if sizes[:2] == ["B", "L"] else None

    def source(self, node: Any) -> str | None:
        """The input of which a mask says the same: real where it is not 0."""
        while is_node(node) and node.op == "call_function":
            name = operation(node.target)
            if name in ("_to_copy", "unsqueeze", "expand", "reshape", "type_as", "clone", "contiguous"):
                node = node.args[0]
            elif name == "ne" and node.args[1] == 0:
                node = node.args[0]
            else:
                return None
        return node.target if is_node(node) and node.op == "placeholder" else None

    def is_mask(self, node: Any) -> bool:
        name = self.source(node)
        if name is None or self.mask not in (None, name):
            return False
        placeholder = next(n for n in self.graph.nodes if n.op == "placeholder" and n.target == name)
        if [self.what(s) for s in value_of(placeholder).shape] != ["B", "L"]:
            return False
        self.mask = name
        return True

    # ---- Arguments of the body --------------------------------------------------------------------------------------

    def pack(self, node: fx.Node, layout: Layout, rank: int) -> fx.Node:
        """A tensor of `before`, whose dimensions are the last of `rank`, as an input of the body."""
        value = value_of(node)
        missing = rank - value.dim()
        sizes = [1] * missing + [self.what(s) for s in value.shape]
        if any(s is None for s in sizes):
            raise Padded(f"{node.name} has a size that is neither batch nor length")
        length = 1 if layout.l is None else sizes[layout.l]
        batch = sizes[layout.b]
        if any(isinstance(s, str) for d, s in enumerate(sizes) if d not in layout.outer):
            raise Padded(f"{node.name} has batch or length where others have something else")
        if batch == 1 and length == 1:
            how = Pack(None)
        elif batch in ("B", 1) and (length == "L" or layout.l is None):
            how = Pack(Layout(layout.b - missing, None if layout.l is None else layout.l - missing), batch == "B")
            if missing:
                if layout.b < missing and batch == 1 and layout.l is not None and layout.l >= missing:
                    how = Pack(Layout(-1, layout.l - missing), False)
                else:
                    raise Padded(f"{node.name} lacks a dimension")
        else:
            raise Padded(f"{node.name} has sizes that the body does not know")
        key = (node, repr(how))
        if key not in self.inputs:
            with self.body.inserting_before(self.cu):
                self.inputs[key] = self.body.placeholder(f"packed_{len(self.packed)}_{node.name}")
            self.packed.append((node, how))
        return self.inputs[key]

    def argument(self, node: fx.Node, layout: Layout, rank: int) -> fx.Node:
        """A tensor as the body has it, to be combined with others of this layout and rank."""
        if node in self.later:
            raise Padded(f"{node.name} is computed in the padded layout from what was packed")
        if node in self.layout:
            given, r = self.layout[node], value_of(node).dim()
            if not isinstance(given, Layout):
                raise Padded(f"{node.name} has several results")
            if given == layout and r == rank:
                return self.in_body[node]
            raise Padded(f"{node.name} has its tokens in other dimensions")
        value = value_of(node)
        if all(isinstance(s, int) for s in value.shape):  # of no token: broadcast over them, if its sizes there are 1
            missing = rank - value.dim()
            at = [d - missing for d in layout.outer if d >= missing]
            if any(value.shape[d] != 1 for d in at):
                raise Padded(f"{node.name} has another size where others have tokens")
            whole = self.whole(node)
            if not at:
                return whole
            inner = [s for d, s in enumerate(value.shape) if d not in at]
            wide = len(layout.inner(rank)) + 1
            shape = [1] * (wide - len(inner)) + inner
            return self.body.call_function(aten.reshape.default, (whole, shape))
        return self.pack(node, layout, rank)

    def whole(self, node: fx.Node) -> fx.Node:
        """A tensor that has no tokens: a weight, or what is computed from weights."""
        if node in self.in_body:
            return self.in_body[node]
        if node.op == "get_attr":
            self.in_body[node] = self.body.get_attr(node.target)
            return self.in_body[node]
        key = (node, repr(Pack(None)))
        if key not in self.inputs:
            with self.body.inserting_before(self.cu):
                self.inputs[key] = self.body.placeholder(f"packed_{len(self.packed)}_{node.name}")
            self.packed.append((node, Pack(None)))
        return self.inputs[key]

    # ---- Rules ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op != "call_function" or not self._tensors(value_of(node)):
                continue
            inputs = [n for n in node.all_input_nodes if self._tensors(value_of(n))]
            name = operation(node.target) or ""
            packed = any(n in self.layout for n in inputs)
            try:
                if any(n in self.later for n in inputs):
                    raise Padded("it is computed from what is in the padded layout again")
                if packed or name in ("strop::embed_norm", "embedding", "strop::attention") or name in _ROWWISE:
                    self.rule(node, name, packed)
            except Padded as reason:
                if name == "strop::attention":
                    raise
                if packed or any(n in self.later for n in inputs):
                    if name not in _AFTER and name not in _POINTWISE and name not in _ROWWISE:
                        raise Padded(f"{name} needs the padded layout: {reason}") from None
                    self.later.add(node)

    @staticmethod
    def _tensors(value: Any) -> bool:
        return isinstance(value, Tensor) or (
            isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value)
        )

    def rule(self, node: fx.Node, name: str, packed: bool) -> None:
        if name in ("strop::embed_norm", "embedding"):
            self.embedding(node, name)
        elif name in _ROWWISE:
            self.rowwise(node)
        elif name == "strop::attention":
            self.attention(node)
        elif name == "strop::rotary" or name in _POINTWISE:
            self.pointwise(node)
        elif name == "strop::mean_pool":
            self.mean_pool(node)
        elif name == "getitem":
            self.put(
                node,
                operator.getitem,
                (self.in_body[node.args[0]], node.args[1]),
                self.layout[node.args[0]][node.args[1]],
            )
        elif name in _VIEWS and packed:
            _VIEWS[name](self, node)
        else:
            raise Padded("no rule for packed tokens covers it")

    def put(self, node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], layout: Any, **kwargs: Any) -> None:
        self.in_body[node] = self.body.call_function(target, args, kwargs)
        self.layout[node] = layout

    def same(self, node: fx.Node, as_node: fx.Node, layout: Layout) -> None:
        """Nothing is to be done: in the body a node is what another is."""
        self.in_body[node], self.layout[node] = self.in_body[as_node], layout

    def embedding(self, node: fx.Node, name: str) -> None:
        layout = self.tokens_of(value_of(node))
        if layout is None:
            raise Padded("it is not of tokens")
        if name == "embedding":
            if value_of(node.args[1]).dim() != 2:
                raise Padded("its indices are not of tokens")
            args = (self.whole(node.args[0]), self.argument(node.args[1], TOKENS, 2))
            self.put(node, aten.embedding.default, args, TOKENS)  # the padding index matters to gradients alone
            return
        tables, ids, weight, bias, eps = node.args
        args = (
            [self.whole(t) for t in tables],
            [self.argument(i, TOKENS, 2) for i in ids],
            weight and self.whole(weight),
            bias and self.whole(bias),
            eps,
        )
        self.put(node, node.target, args, TOKENS)

    def common(self, node: fx.Node) -> tuple[Layout, int]:
        """The layout of a node's packed inputs, or of its result where nothing is packed yet."""
        found = {self.layout[n] for n in node.all_input_nodes if isinstance(self.layout.get(n), Layout)}
        if len(found) > 1:
            raise Padded("its inputs have their tokens in different dimensions")
        value = value_of(node)
        value = value[0] if isinstance(value, (tuple, list)) else value
        layout = found.pop() if found else self.tokens_of(value)
        if layout is None:
            raise Padded("it is not of tokens")
        return layout, value.dim()

    def rowwise(self, node: fx.Node) -> None:
        layout, rank = self.common(node)
        if rank - 1 in layout.outer:
            raise Padded("its last dimension is of tokens")
        if operation(node.target) in ("layer_norm", "rms_norm") and len(node.args[1]) != 1:
            raise Padded("it is a norm over several dimensions")

        def given(n: fx.Node) -> fx.Node:
            sized = all(isinstance(s, int) for s in value_of(n).shape)
            return self.whole(n) if sized and n not in self.layout else self.argument(n, layout, rank)

        args, kwargs = fx.map_arg((node.args, node.kwargs), given)
        results = value_of(node)
        several = isinstance(results, (tuple, list))
        self.put(node, node.target, args, [layout] * len(results) if several else layout, **kwargs)

    def pointwise(self, node: fx.Node) -> None:
        layout, rank = self.common(node)
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("device", "layout", "pin_memory", "memory_format")}
        if kwargs.get("dtype", 0) is None:
            raise Padded("it keeps the dtype")
        args, kwargs = fx.map_arg((node.args, kwargs), lambda n: self.argument(n, layout, rank))
        self.put(node, node.target, args, layout, **kwargs)

    def attention(self, node: fx.Node) -> None:
        given = dict(zip([a.name for a in node.target._schema.arguments], node.args, strict=False)) | dict(node.kwargs)
        if given.get("mask") is not None:
            raise Padded("attention has a mask or bias of its own")
        if given.get("query_offset", 0) != 0:
            raise Padded("attention has a cache before it")
        if given.get("padding") is not None and not self.is_mask(given["padding"]):
            raise Padded("attention's padding is not an input as it was given")
        heads = Layout(0, 2)
        q, k, v = (self.argument(given[name], heads, 4) for name in ("query", "key", "value"))
        left, right = given.get("window_left", -1), given.get("window_right", -1)
        if max(left, right) > 0 or (left >= 0) != (right >= 0):
            self.wants_whole = True
        self.put(
            node, ops.attention_packed.default, (q, k, v, self.cu, self.longest, given.get("scale"), left, right), heads
        )
        self.padding_seen(node, given.get("padding"))

    def padding_seen(self, node: fx.Node, padding: Any) -> None:
        self.attentions += 1
        if not hasattr(self, "with_padding"):
            self.with_padding = padding is not None
        if self.with_padding != (padding is not None):
            raise Padded("some attention knows of padding and some does not")

    def mean_pool(self, node: fx.Node) -> None:
        x, mask, *least = node.args
        if self.layout.get(x) != TOKENS or not self.is_mask(mask):
            raise Padded("it is not of the tokens that the mask counts")
        self.put(node, ops.mean_pool_packed.default, (self.in_body[x], self.cu, *least), SEQUENCES)

    # ---- Views ------------------------------------------------------------------------------------------------------

    def reshape(self, node: fx.Node) -> None:
        x = node.args[0]
        layout: Layout = self.layout[x]
        before = [self.what(s) for s in value_of(x).shape]
        after = [self.what(s) for s in value_of(node).shape]
        if before == after:
            self.same(node, x, layout)
            return
        front = ["B", "L"] if layout == TOKENS else ["B"] if layout == SEQUENCES else None
        if front is None or after[: len(front)] != front or not all(isinstance(s, int) for s in after[len(front) :]):
            raise Padded("it mixes tokens with something else")
        self.put(node, aten.reshape.default, (self.in_body[x], [-1, *after[len(front) :]]), layout)

    def permuted(self, node: fx.Node, order: list[int]) -> None:
        x = node.args[0]
        layout: Layout = self.layout[x]
        rank = len(order)
        new = Layout(order.index(layout.b), None if layout.l is None else order.index(layout.l))
        old_inner = layout.inner(rank)
        body_order = [0] + [1 + old_inner.index(order[d]) for d in new.inner(rank)]
        if body_order == list(range(len(body_order))):
            self.same(node, x, new)
        else:
            self.put(node, aten.permute.default, (self.in_body[x], body_order), new)

    def transpose(self, node: fx.Node) -> None:
        rank = value_of(node).dim()
        order = list(range(rank))
        a, b = (d % rank for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
        self.permuted(node, order)

    def permute(self, node: fx.Node) -> None:
        rank = value_of(node).dim()
        self.permuted(node, [d % rank for d in node.args[1]])

    def inner_dim(self, node: fx.Node, dim: int) -> int:
        """The body's dimension for a padded one that is not of tokens."""
        x = node.args[0]
        rank, layout = value_of(x).dim(), self.layout[x]
        if dim % rank in layout.outer:
            raise Padded("it takes tokens apart")
        return 1 + layout.inner(rank).index(dim % rank)

    def dropped(self, layout: Layout, dim: int) -> Layout:
        return Layout(layout.b - (dim < layout.b), None if layout.l is None else layout.l - (dim < layout.l))

    def unbind(self, node: fx.Node) -> None:
        x, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        at = self.inner_dim(node, dim)
        new = self.dropped(self.layout[x], dim % value_of(x).dim())
        self.put(node, node.target, (self.in_body[x], at), [new] * len(value_of(node)))

    def split(self, node: fx.Node) -> None:
        x, size = node.args[:2]
        at = self.inner_dim(node, node.args[2] if len(node.args) > 2 else 0)
        self.put(node, node.target, (self.in_body[x], size, at), [self.layout[x]] * len(value_of(node)))

    def select(self, node: fx.Node) -> None:
        x, dim, index = node.args
        layout: Layout = self.layout[x]
        if layout == TOKENS and dim % value_of(x).dim() == 1 and index == 0:
            self.wants_first = True
            self.put(node, ops.gather_rows.default, (self.in_body[x], self.first), SEQUENCES)
            return
        at = self.inner_dim(node, dim)
        self.put(node, node.target, (self.in_body[x], at, index), self.dropped(layout, dim % value_of(x).dim()))

    def slice(self, node: fx.Node) -> None:
        x, dim, *rest = (*node.args, 0)[: max(len(node.args), 2)]
        self.put(node, node.target, (self.in_body[x], self.inner_dim(node, dim), *rest), self.layout[x])

    def squeeze(self, node: fx.Node) -> None:
        x = node.args[0]
        if len(node.args) != 2 or not isinstance(node.args[1], int):
            raise Padded("it does not say what it squeezes")
        rank = value_of(x).dim()
        at = self.inner_dim(node, node.args[1])
        if value_of(node).dim() == rank:
            self.same(node, x, self.layout[x])
        else:
            self.put(node, node.target, (self.in_body[x], at), self.dropped(self.layout[x], node.args[1] % rank))

    def unsqueeze(self, node: fx.Node) -> None:
        x, dim = node.args
        layout, rank = self.layout[x], value_of(node).dim()
        dim %= rank
        new = Layout(layout.b + (dim <= layout.b), None if layout.l is None else layout.l + (dim <= layout.l))
        at = 1 + new.inner(rank).index(dim)
        self.put(node, node.target, (self.in_body[x], at), new)


_VIEWS: dict[str, Callable[[_Splitter, fx.Node], None]] = {
    "reshape": _Splitter.reshape, "transpose": _Splitter.transpose, "permute": _Splitter.permute,
    "unbind": _Splitter.unbind, "split": _Splitter.split, "chunk": _Splitter.split,
    "split_with_sizes": _Splitter.split, "select": _Splitter.select, "slice": _Splitter.slice,
    "squeeze": _Splitter.squeeze, "unsqueeze": _Splitter.unsqueeze,
}  # fmt: skip


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def split(graph: fx.Graph, owner: fx.GraphModule, role: Mapping[str, Sequence[str | int]]) -> Ragged:
    """The three graphs of a captured and rewritten one; Padded says why it has to stay as it is."""
    splitter = _Splitter(graph, owner, role)
    splitter.run()
    if splitter.attentions == 0:
        raise Padded("it has no attention that could be given packed tokens")
    return _finish(splitter)


def _finish(s: _Splitter) -> Ragged:
    output = next(n for n in s.graph.nodes if n.op == "output")
    results = output.args[0]
    # `after` computes, of the outputs, what the body did not; from the inputs, and from results of the body.
    wanted: dict[fx.Node, fx.Node] = {}
    rows: list[Layout] = []
    ranks: list[int] = []
    body_results: list[fx.Node] = []
    for node in s.graph.nodes:
        if node.op == "placeholder":
            wanted[node] = _placeholder(s.after, node.target, node)

    def unpacked(node: fx.Node) -> fx.Node:
        if node in wanted:
            return wanted[node]
        if node in s.layout and node not in s.later:
            if not isinstance(s.layout[node], Layout):
                raise Padded(f"{node.name} has several results, which are wanted in the padded layout")
            last = [n for n in s.after.nodes if n.op == "placeholder"][-1:]
            with s.after.inserting_after(last[0]) if last else s.after.inserting_before(None):
                wanted[node] = _placeholder(s.after, f"rows_{len(rows)}_{node.name}", node)
            rows.append(s.layout[node])
            ranks.append(value_of(node).dim())
            body_results.append(s.in_body[node])
            return wanted[node]
        for n in node.all_input_nodes:
            unpacked(n)
        wanted[node] = s.after.node_copy(node, wanted.__getitem__)
        return wanted[node]

    padded: list[Layout | None] = []
    for result in results:
        layout = None
        if is_node(result):
            unpacked(result)
            given = s.layout.get(result)
            layout = given if isinstance(given, Layout) and given.l is not None else None
            if layout is None and result in s.later:
                sizes = [s.what(size) for size in value_of(result).shape]
                if "B" in sizes and "L" in sizes:
                    layout = Layout(sizes.index("B"), sizes.index("L"))
        padded.append(layout)
    if not rows:
        raise Padded("no output depends on packed tokens")
    s.after.output(tuple(wanted[r] if is_node(r) else r for r in results))
    s.body.output(tuple(body_results))
    s.body.eliminate_dead_code()
    # Placeholders that nothing uses stay: the body is called with all of them.
    by_size = [_by_size(node) for node, _ in s.packed]
    sized = fx.Graph()
    for graph, which in ((s.before, False), (sized, True)):
        _copy(s.graph, graph, [node for (node, _), b in zip(s.packed, by_size, strict=True) if b == which])
    for graph in (s.before, sized, s.body, s.after):
        graph.lint()
    modules: dict[str, Any] = {name: fx.GraphModule(s.owner, graph, class_name=name.capitalize()) for name, graph in (
        ("before", s.before), ("sized", sized), ("body", s.body), ("after", s.after))}  # fmt: skip
    _describe(s, modules["body"])
    return Ragged(
        mask=s.mask, packs=[how for _, how in s.packed], by_size=by_size, rows=rows, ranks=ranks, padded=padded,
        wants_first=s.wants_first, wants_whole=s.wants_whole, **modules,
    )  # fmt: skip


def _describe(s: _Splitter, body: fx.GraphModule) -> None:
    """Gives the body's nodes fake tensors, as the padded graph's have them: as many tokens as there are places."""
    batch, length = (next(size for node in s.graph.nodes if node.op == "placeholder" for size in value_of(node).shape
                          if _is(s, size, what)) for what in ("B", "L"))  # fmt: skip
    mode = detect_fake_mode([value_of(node) for node in s.graph.nodes if node.op == "placeholder"])
    assert mode is not None
    inputs: list[Any] = []
    with mode:
        for node, how in s.packed:
            value = value_of(node)
            outer = [] if how.layout is None else [d for d in how.layout.outer if d >= 0]
            inner = [size for d, size in enumerate(value.shape) if d not in outer]
            rows = [] if how.layout is None else [batch if how.layout.l is None else batch * length]
            inputs.append(torch.empty((*rows, *inner), dtype=value.dtype, device=value.device))
        device = inputs[0].device
        inputs += [torch.empty(n, dtype=torch.int32, device=device) for n in (batch + 1, batch)]
    FakeTensorProp(body, mode).propagate_dont_convert_inputs(*inputs, length)


def _is(s: _Splitter, size: Any, what: str) -> bool:
    return isinstance(size, torch.SymInt) and s.what(size) == what


def _by_size(node: fx.Node) -> bool:
    """Whether a node depends on nothing but sizes of inputs and constants."""
    if node.op == "placeholder":
        return False
    return operation(node.target) == "sym_size" or all(_by_size(n) for n in node.all_input_nodes)


def _placeholder(graph: fx.Graph, name: str, like: fx.Node) -> fx.Node:
    node = graph.placeholder(name)
    node.meta = dict(like.meta)
    return node


def _copy(source: fx.Graph, graph: fx.Graph, results: Sequence[fx.Node]) -> None:
    """What computes some nodes, with all inputs of the graph that they are of."""
    kept = {node: _placeholder(graph, node.target, node) for node in source.nodes if node.op == "placeholder"}

    def copied(node: fx.Node) -> fx.Node:
        if node not in kept:
            for n in node.all_input_nodes:
                copied(n)
            kept[node] = graph.node_copy(node, kept.__getitem__)
        return kept[node]

    graph.output(tuple(copied(node) for node in results))
