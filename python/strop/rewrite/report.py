"""What of a model runs on which operator, what was left to PyTorch and why: as text, and as tables in a notebook."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from .model import Program, forward_of
from .ops import kernel_refuses
from .patterns import operation, value_of
from .plan import Plan

# Left to PyTorch without a word, as nothing is computed: another view of the same numbers, or sizes.
VIEWS = {
    "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "select", "split", "chunk", "unbind",
    "split_with_sizes", "getitem", "sym_size", "t", "detach", "alias", "narrow", "movedim",
}  # fmt: skip
HEAVY = {
    "linear": "linear", "addmm": "linear", "mm": "linear", "matmul": "product", "bmm": "product", "einsum": "product",
    "baddbmm": "product", "scaled_dot_product_attention": "attention", "softmax": "softmax", "_softmax": "softmax",
    "layer_norm": "norm", "native_layer_norm": "norm", "rms_norm": "norm", "group_norm": "norm",
}  # fmt: skip
_SCALARS = {"add", "sub", "mul", "floordiv", "mod", "neg", "eq", "le", "lt", "ge", "gt", "ne"}


@dataclass
class Line:
    operation: str
    count: int
    runs_on: str
    note: str = ""


@dataclass
class Graph:
    """One pattern of calls."""

    call: str
    calls: int
    replaced: list[Line] = field(default_factory=list)
    left: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why_eager: str = ""
    ragged: bool = False  # whether real tokens alone are computed
    layout: str = ""  # the same in words, with why not and when not
    padded_calls: int = 0  # of these, the calls that needed the padded layout all the same
    cached: bool = False  # whether it was read from the cache on disk, not captured


@dataclass
class Report:
    """What :func:`strop.report` returns: print it, or let a notebook show it."""

    model: str
    optimized: bool
    graphs: list[Graph] = field(default_factory=list)
    eager: dict[str, int] = field(default_factory=dict)  # why calls ran the model's own code: how many
    options: list[str] = field(default_factory=list)

    def left(self, *kinds: str) -> list[str]:
        """The operations of a kind (linear, product, attention, softmax, norm) that PyTorch runs, over all graphs."""
        lines = [line for graph in self.graphs for line in graph.left]
        return [line.operation for line in lines if HEAVY.get(line.operation.removeprefix("aten::")) in kinds]

    def replaced(self, operation: str) -> int:
        """How often an operator of strop's is called, over all graphs."""
        return sum(line.count for g in self.graphs for line in g.replaced if line.operation == f"strop::{operation}")

    def __str__(self) -> str:
        if not self.optimized:
            return f"{self.model}: not optimized"
        parts = [f"{self.model}: {len(self.graphs)} captured"]
        parts += [f"  {option}" for option in self.options]
        for graph in self.graphs:
            cached = ", from the cache" if graph.cached else ""
            parts.append(f"  {graph.call} ({graph.calls} calls{cached})")
            if graph.why_eager:
                parts.append(f"    not captured: {graph.why_eager}")
                continue
            for title, lines in (("replaced", graph.replaced), ("left to PyTorch", graph.left)):
                if lines:
                    parts.append(f"    {title}")
                    width = max(len(line.operation) for line in lines)
                    parts += [
                        f"      {line.count:>4} × {line.operation:<{width}}  {line.runs_on}"
                        + (f": {line.note}" if line.note else "")
                        for line in lines
                    ]
            parts += [f"    {note}" for note in (*graph.notes, graph.layout) if note]
        if self.eager:
            parts.append("  calls that ran the model's own code")
            parts += [f"    {count:>4} × {reason}" for reason, count in self.eager.items()]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        def row(*cells: object, tag: str = "td") -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

        parts = [f"<p><b>{html.escape(self.model)}</b>{'' if self.optimized else ': not optimized'}</p>"]
        parts += [f"<p>{html.escape(option)}</p>" for option in self.options]
        for graph in self.graphs:
            cached = ", from the cache" if graph.cached else ""
            parts.append(f"<p><code>{html.escape(graph.call)}</code>, {graph.calls} calls{cached}</p>")
            if graph.why_eager:
                parts.append(f"<p>not captured: {html.escape(graph.why_eager)}</p>")
                continue
            rows = [row(line.operation, line.count, line.runs_on, line.note) for line in graph.replaced + graph.left]
            parts.append(f"<table>{row('operation', 'count', 'runs on', 'note', tag='th')}{''.join(rows)}</table>")
            parts += [f"<p>{html.escape(note)}</p>" for note in (*graph.notes, graph.layout) if note]
        if self.eager:
            rows = [row(count, reason) for reason, count in self.eager.items()]
            header = row("calls", "why the model's own code ran", tag="th")
            parts.append(f"<table>{header}{''.join(rows)}</table>")
        return "".join(parts)


def _runs_on(node: fx.Node, plan: Plan | None) -> str:
    """Its kernel, or its implementation in PyTorch and why."""
    device = _device(node)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    why = kernel_refuses(node.target, device, args, kwargs)
    name = node.target._schema.name.rpartition("::")[2]  # type: ignore[union-attr]
    if plan is not None and node.name in plan.native:
        # The plan has PyTorch multiply, and does in place what stands behind the product.
        return "PyTorch's product, in place" if name.startswith("linear") else f"its kernel for {device.upper()}"
    return f"its implementation in PyTorch: {why}" if why else f"its kernel for {device.upper()}"


def _device(node: fx.Node) -> str:
    value = value_of(node)
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return value.device.type if isinstance(value, Tensor) else "cpu"


def lines_of(program: Program) -> tuple[list[Line], list[Line]]:
    """What is replaced, and what is left to PyTorch."""
    if program.lines is not None:
        return program.lines
    assert program.captured is not None
    replaced: Counter[tuple[str, str]] = Counter()
    left: Counter[str] = Counter()
    reasons: dict[str, list[str]] = {}
    for node in program.captured.module.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        name = operation(node.target) or str(node.target)
        if isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.name.startswith("aten::"):
            where = _runs_on(node, program.captured.plan)
            replaced[node.target._schema.name, where] += 1
            reasons.setdefault(node.target._schema.name, [])
            if node.name in program.outcome.refused:
                reasons[node.target._schema.name].append(program.outcome.refused[node.name])
        elif name not in VIEWS and isinstance(_first(value_of(node)), Tensor):
            left[name] += 1
            reasons.setdefault(name, [])
            if node.name in program.outcome.refused:
                reasons[name].append(program.outcome.refused[node.name])
    lines = []
    for name, count in sorted(left.items(), key=lambda item: (item[0] not in HEAVY, -item[1])):
        why = list(dict.fromkeys(reasons[name])) or ["no pattern covers it"]
        lines.append(Line(f"aten::{name}" if ":" not in name else name, count, "PyTorch", "; ".join(why)))
    ours = [
        Line(name, count, where, "; ".join(dict.fromkeys(reasons[name])))
        for (name, where), count in replaced.most_common()
    ]
    return ours, lines


def _layout(program: Program) -> str:
    if program.why_padded:
        return f"padding is computed as well (ragged): {program.why_padded}"
    if program.packed is None:
        return ""
    if not program.padded_calls:
        return "real tokens alone are computed"
    why = [
        reason
        for wanted, reason in (
            (program.packed.ragged.wants_first, "a sequence that begins with padding"),
            (program.packed.ragged.wants_whole, "a hole in a sequence"),
            (True, "no real token"),
        )
        if wanted
    ]
    return f"real tokens alone are computed, but for {program.padded_calls} calls with {' or '.join(why)}"


def _first(value: object) -> object:
    return value[0] if isinstance(value, (tuple, list)) and value else value


def report(model: nn.Module) -> Report:
    """What of a model of :func:`strop.optimize_model` runs on which operator, and what PyTorch was left with, and why.

    It knows what has been called: before the first call there is nothing to say. Views are not listed, as nothing is
    computed for them.
    """
    forward = forward_of(model)
    name = type(model).__name__
    if forward is None:
        return Report(name, optimized=False)
    options = [
        f"CUDA graphs on {device}: {len(graphs.replays)} kept of {graphs.recorded} recorded, {graphs.replayed} replays"
        + (f"; none any more: {graphs.broken}" if graphs.broken else "")
        for device, graphs in forward.graphs_by_device.items()
    ]
    if forward.dtype is not None:
        options.append(f"computes in {forward.dtype} on a copy of the weights".replace("torch.", ""))
    found = Report(name, optimized=True, eager=dict(forward.eager), options=options)
    for program in forward.programs.values():
        graph = Graph(program.call, program.calls, why_eager=program.why_eager)
        if program.captured is not None:
            graph.replaced, graph.left = lines_of(program)
            graph.cached = program.lines is not None
            graph.notes = list(program.captured.notes)
            graph.layout = _layout(program)
            graph.ragged, graph.padded_calls = program.packed is not None, program.padded_calls
            if program.captured.plan is not None:
                graph.notes += [f"calls Python: {reason}" for reason in program.captured.plan.why_python]
            for name, plan in program.packed.plans.items() if program.packed is not None else ():
                reasons = plan.why_python if isinstance(plan, Plan) else []
                graph.notes += [f"calls Python for real tokens ({name}): {reason}" for reason in reasons]
        found.graphs.append(graph)
    return found
