"""`torch.compile(model, backend="strop")`: the same rewriting, of the graphs that Dynamo makes.

Dynamo decides what a graph is and when it is made anew; here a graph becomes one of ATen's operators, as export has
it, is rewritten, and runs as a plan on the CPU and node by node on CUDA. What needs gradients, writes to its inputs or
draws random numbers runs as Dynamo has it. The first call of a graph runs both and compares, as what a graph is made
with has no contents; where they differ, Dynamo's graph runs from then on. The logger `strop.backend` says what came of
each graph, at the level INFO, and at WARNING that two differed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import tracing
from torch._subclasses import FakeTensor

from . import registry
from .capture import TOLERANCE, brief, clean, close
from .functional import make_functional
from .patterns import operation, value_of
from .plan import DEVICES, Plan, Stale, Unsupported
from .registry import Outcome

_log = logging.getLogger("strop.backend")
_GRAD_MODE = (torch._C._set_grad_enabled,)


class Refused(Exception):
    """Why a graph runs as Dynamo has it."""


def compile_graph(graph: fx.GraphModule, examples: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """The backend: what runs in the place of a graph of Dynamo's."""
    if options:
        raise ValueError(f"backend strop: there is no option {', '.join(options)}")
    try:
        return Compiled(graph, examples)
    except Refused as why:
        _log.info("a graph of %d nodes runs as it is: %s", len(graph.graph.nodes), why)
    except Exception as error:
        _log.info("a graph of %d nodes runs as it is: %s", len(graph.graph.nodes), brief(error))
    return graph.forward


class Compiled:
    """A rewritten graph."""

    def __init__(self, graph: fx.GraphModule, examples: Sequence[Any]) -> None:
        self.original: Callable[..., Any] = graph.forward
        self.module, self.outcome = _rewritten(graph, examples)
        self.plan = _plan(self.module)
        self.trusted = False  # whether its first call was compared
        self.lock = threading.Lock()
        made = ", ".join(f"{n} × {name}" for name, n in self.outcome.made.items()) or "nothing"
        _log.info("replaced: %s; runs %s", made, "as a plan" if self.plan is not None else "node by node")

    def __call__(self, *args: Any) -> Any:
        if self.module is None:
            return self.original(*args)
        with torch.no_grad():
            return self._run(args) if self.trusted else self._compared(args)

    def _run(self, args: Sequence[Any]) -> Sequence[Any]:
        if self.plan is not None:
            try:
                return self.plan(*args)
            except Stale:  # a constant was moved
                self.plan = None
        return self.module(*args)  # type: ignore[misc]

    def _compared(self, args: Sequence[Any]) -> Sequence[Any]:
        wanted = self.original(*args)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return wanted  # to compare is to wait, which a recording cannot
        with self.lock:
            if self.trusted or self.module is None:
                return wanted
            try:
                wrong = _difference(self._run(args), wanted)
            except Exception as error:
                wrong = brief(error)
            if wrong and self.plan is not None:
                _log.info("runs node by node, not as a plan: %s", wrong)
                self.plan = None
                return wanted  # the next call compares the graph without it
            if wrong:
                _log.warning("a rewritten graph is not what it was made of and is not used: %s", wrong)
                self.module = None
            self.trusted = not wrong
        return wanted


def _difference(given: Sequence[Any], wanted: Sequence[Any]) -> str:
    for position, (a, b) in enumerate(zip(wanted, given, strict=True)):
        if not isinstance(a, Tensor):
            if a != b:
                return f"result {position} is {b}, not {a}"
        elif a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return f"result {position} is {b.dtype} {tuple(b.shape)}, not {a.dtype} {tuple(a.shape)}"
        elif not close(a, b):
            return f"result {position} is off by more than {TOLERANCE.get(a.dtype, 0)} of its largest value"
    return ""


# ---- Rewriting ------------------------------------------------------------------------------------------------------


def _rewritten(graph: fx.GraphModule, examples: Sequence[Any]) -> tuple[fx.GraphModule, Outcome]:
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in examples):
        raise Refused("gradients are wanted")
    if torch.is_grad_enabled() and any(p.requires_grad for p in graph.parameters()):
        raise Refused("gradients are wanted")
    module = _traced(graph, examples)
    for node in list(module.graph.nodes):
        if node.target in _GRAD_MODE:  # there are no gradients in any case
            module.graph.erase_node(node)
        elif isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            if operation(node.target) not in ("dropout", "scaled_dot_product_attention"):
                raise Refused(f"{node.target} draws random numbers")
    if not make_functional(module.graph):
        raise Refused("it writes to its inputs, or to what may be a view")
    clean(module.graph)
    outcome = registry.rewrite(module.graph)
    module.recompile()
    return module, outcome


def _traced(graph: fx.GraphModule, examples: Sequence[Any]) -> fx.GraphModule:
    """The graph in ATen's operators, composite ones whole, with the sizes that Dynamo has symbols for."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    # What Dynamo has recorded beside its inputs: the examples of parameters, and of others too, may be the tensors.
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    given = [node.meta.get("example_value", example) for node, example in zip(inputs, examples, strict=True)]
    # Not the mode of Dynamo's context, which is a new one that these tensors are not of.
    mode = next((t.fake_mode for t in given if isinstance(t, FakeTensor)), None)
    if mode is None:
        raise Refused("its inputs have no symbols for their sizes")
    given = [mode.from_tensor(t, static_shapes=True) if _is_real(t) else t for t in given]
    trace = make_fx(fx.Interpreter(graph).run, pre_dispatch=True, _allow_non_fake_inputs=True)
    with tracing(None), mode, enable_python_dispatcher(), torch.no_grad():
        module = trace(*given)
        for node in module.graph.nodes:
            if node.op == "get_attr" and "val" not in node.meta:
                held = getattr(module, str(node.target))
                if not isinstance(held, Tensor):
                    raise Refused("it has a part of its own")
                node.meta["val"] = mode.from_tensor(held)
    return module


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, FakeTensor)


def _plan(module: fx.GraphModule) -> Plan | None:
    """The graph's plan; no result may be a view of an input or of another result."""
    values = [value_of(node) for node in module.graph.nodes if node.op == "placeholder"]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if any(value.device.type not in DEVICES for value in tensors) or not tensors:
        return None
    output = next(node for node in module.graph.nodes if node.op == "output")
    sources = [_memory_of(node) for node in output.args[0] if isinstance(node, fx.Node)]
    if len(set(sources)) < len(sources) or any(source.op != "call_function" for source in sources):
        return None
    try:
        return Plan(module)
    except (Unsupported, RuntimeError, ValueError) as error:
        _log.info("a graph runs node by node: %s", error)
        return None


def _memory_of(node: fx.Node) -> fx.Node:
    """The node whose memory a result may have."""
    while node.op == "call_function" and node.args:
        first = node.args[0]
        target = node.target
        views = not isinstance(target, torch._ops.OpOverload) or any(r.alias_info for r in target._schema.returns)
        if not isinstance(first, fx.Node) or not (views or operation(target) in ("reshape", "contiguous", "_to_copy")):
            return node
        node = first
    return node
