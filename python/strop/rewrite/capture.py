"""Captures a module as one ATen graph that serves every batch size and length.

By torch.export, non-strict, with all sizes symbolic, so that nothing of Dynamo is there when the graph runs. Sizes are
named by their role: B is the batch, L the length, both of the first input. The graph is only trusted once it has given
what the module gives on other sizes than it was captured with.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from . import masks
from .functional import make_functional
from .patterns import complete, operation, value_of
from .plan import Plan
from .weights import Place

aten = torch.ops.aten
B, L = "B", "L"
Roles = tuple[str | int, ...]  # of each size of a tensor: B, L, or the number that it is

CAPTURED_AT = (3, 7)  # batch and length: two sizes that nothing else is likely to have, neither of them 1
CHECKED_AT = ((1, 5), (4, 10))


_lock = threading.RLock()  # hooks into transformers are the process's


class CaptureError(RuntimeError):
    """Why a module could not be captured."""


def roles(tensors: Mapping[str, Tensor]) -> dict[str, Roles]:
    """What each size of each tensor stands for.

    The first tensor has tokens, (batch, length), or what stands for tokens, (batch, length, columns); other tensors of
    numbers have a batch and no length.
    """
    first = next(iter(tensors.values()))
    batch = first.shape[0] if first.dim() else -1
    has_length = first.dim() == 3 or (first.dim() == 2 and not first.is_floating_point())
    length = first.shape[1] if has_length else -1
    return {name: _roles(tensor, batch, length) for name, tensor in tensors.items()}


def _roles(tensor: Tensor, batch: int, length: int) -> Roles:
    shape = tensor.shape
    if len(shape) == 2:
        return (B if shape[0] == batch else shape[0], L if shape[1] == length else shape[1])
    found: list[str | int] = []
    for dim, size in enumerate(shape):
        if dim == 0 and size == batch:
            found.append(B)
        elif size == length and (dim == 1 and len(shape) == 3 or dim >= 2 and len(shape) == 4):
            found.append(L)
        else:
            found.append(size)
    return tuple(found)


def resized(tensor: Tensor, role: Roles, batch: int, length: int) -> Tensor:
    """The same values, repeated or cut to other sizes."""
    for dim, what in enumerate(role):
        if isinstance(what, str):
            index = torch.arange(batch if what == B else length, device=tensor.device) % tensor.shape[dim]
            tensor = tensor.index_select(dim, index)
    return tensor


@dataclass
class Captured:
    """A graph, what it takes and what it gives."""

    module: fx.GraphModule
    names: tuple[str, ...]  # inputs
    roles: dict[str, Roles]
    result: pytree.TreeSpec
    most: list[tuple[str, int, int]]  # input, dimension, the largest size that the graph allows
    shared: list[Place]  # where in the module each parameter and buffer is
    origins: dict[str, str] = field(default_factory=dict)  # and its path there, by the name that the graph has for it
    merged: dict[str, list[str]] = field(default_factory=dict)  # attributes made of others, one behind the other
    notes: list[str] = field(default_factory=list)
    plan: Plan | None = None  # what runs in the graph's place
    make: Callable[[Any], Any] | None = None  # result_of, once it was needed

    def __call__(self, tensors: Mapping[str, Tensor]) -> Any:
        return self.result_of(self.run(self.ordered(tensors)))

    def run(self, tensors: list[Tensor]) -> Any:
        """The graph's results, of its inputs in their order."""
        return (self.plan or self.module)(*tensors)

    def ordered(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """A call's tensors in the order in which the graph takes them."""
        return [tensors[name] for name in self.names]

    def result_of(self, leaves: Any) -> Any:
        """What the module returns, of the graph's results."""
        if self.make is None:
            self.make = maker(self.result)
        return self.make(leaves)


def maker(result: pytree.TreeSpec) -> Callable[[Any], Any]:
    """What makes a result of its leaves: as pytree does, and in a fifth of the time for a flat ModelOutput.

    Such a result is a dict and a dataclass at once, whose constructor looks at every field.
    """

    def plainly(leaves: Any) -> Any:
        return pytree.tree_unflatten(leaves, result)

    kind, keys = result.type, result.context
    if not (isinstance(kind, type) and issubclass(kind, OrderedDict) and isinstance(keys, list)):
        return plainly
    if result.num_leaves != len(keys) or not all(isinstance(key, str) for key in keys):
        return plainly
    new, put = kind.__new__, OrderedDict.__setitem__
    example = [object() for _ in keys]
    wanted = plainly(example)
    fields = dict.fromkeys(vars(wanted))

    def directly(leaves: Any) -> Any:
        made = new(kind)
        held = made.__dict__
        held.update(fields)
        for key, leaf in zip(keys, leaves, strict=True):
            put(made, key, leaf)
            held[key] = leaf
        return made

    got = directly(example)
    same = list(got.items()) == list(wanted.items()) and list(vars(got).items()) == list(vars(wanted).items())
    return directly if same else plainly


class _Call(nn.Module):
    """A module's forward with tensors by position and everything else fixed."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any], names: tuple[str, ...], fixed: Mapping[str, Any]):
        super().__init__()
        self.model = model
        self.training = False
        self.call = forward
        self.names, self.fixed = names, dict(fixed)

    def forward(self, *tensors: Tensor) -> Any:
        return self.call(**dict(zip(self.names, tensors, strict=True)), **self.fixed)


def capture(
    model: nn.Module, forward: Callable[..., Any], tensors: Mapping[str, Tensor], fixed: Mapping[str, Any]
) -> Captured:
    """The graph of forward(**tensors, **fixed), where forward is the model's own; CaptureError says what went wrong."""
    training = next((name or "the module" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise CaptureError(f"{training} is in training mode")
    names = tuple(tensors)
    if not names:
        raise CaptureError("it was called without a tensor")
    role = roles(tensors)
    example = tuple(resized(tensors[name].detach(), role[name], *CAPTURED_AT) for name in names)
    shapes = tuple(
        {d: torch.export.Dim.AUTO for d, what in enumerate(role[name]) if isinstance(what, str)} for name in names
    )
    call = _Call(model, forward, names, fixed)
    with _lock, warnings.catch_warnings(), torch.no_grad(), masks.hooked() as seen, _without_stack_traces():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(call, example, dynamic_shapes={"tensors": shapes}, strict=False)
            captured = _own(program, call, names, role, seen)
            if not make_functional(captured.module.graph):
                captured = _own(program.run_decompositions({}), call, names, role, seen)
        except CaptureError:
            raise
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            raise CaptureError(f"torch.export: {type(error).__name__}: {text[0][:300]}") from error
    return captured


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Has tracing not look up where in the module's source each node comes from, which nobody reads here."""
    config = getattr(fx, "config", None)
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is None:  # an earlier PyTorch
        yield
        return
    config.do_not_emit_stack_traces = True  # type: ignore[union-attr]
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before  # type: ignore[union-attr]


def _own(
    program: torch.export.ExportedProgram, call: _Call, names: tuple[str, ...], role: dict[str, Roles], seen: masks.Seen
) -> Captured:
    """The exported graph with the module's own parameters and buffers in it, and inputs as its only placeholders."""
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if written:
        raise CaptureError(f"it writes to {', '.join(written)}")
    kinds = torch.export.graph_signature.InputKind
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, Any] = {}
    shared: list[Place] = []
    origins: dict[str, str] = {}
    inputs = iter(names)
    most = []
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind == kinds.USER_INPUT:
            name = next(inputs)
            values[node] = graph.placeholder(name)
            for dim, size in enumerate(node.meta["val"].shape):
                limit = _upper(program, size)
                if limit is not None:
                    most.append((name, dim, limit))
                elif isinstance(role[name][dim], str) and not isinstance(size, torch.SymInt):
                    raise CaptureError(f"size {dim} of {name} is fixed to {size} by what the module does with it")
        else:
            if spec.kind in (kinds.PARAMETER, kinds.BUFFER):
                path, _, last = spec.target.rpartition(".")
                owner = call.get_submodule(path)
                where = owner._parameters if spec.kind == kinds.PARAMETER else owner._buffers
                tensor = where[last]
                shared.append((where, last, tensor))
                label = spec.target.removeprefix("model.").replace(".", "_")
            elif spec.kind == kinds.CONSTANT_TENSOR:
                tensor, label = program.constants[spec.target], spec.target.replace(".", "_")
            else:
                raise CaptureError(f"an input of kind {spec.kind.name} has no counterpart here: {spec.target}")
            label = label if label not in attributes else f"{label}_{len(attributes)}"
            attributes[label] = tensor
            if spec.kind != kinds.CONSTANT_TENSOR:
                origins[label] = spec.target.removeprefix("model.")
            values[node] = graph.get_attr(label)
        values[node].meta = dict(node.meta)
    # Placeholders first, as a graph has them.
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        last_placeholder = [n for n in graph.nodes if n.op == "placeholder"][-1]
        last_placeholder.append(node)
    # One buffer that a module does not register in its state dict may still be read through getattr.
    for node in program.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            attributes.setdefault(node.target, operator.attrgetter(node.target)(program.graph_module))
        values[node] = graph.node_copy(node, values.__getitem__)
        values[node].meta = dict(node.meta)
    module = fx.GraphModule(attributes, graph, class_name="Rewritten")
    result = program.call_spec.out_spec
    assert result is not None
    return Captured(module, names, role, result, most, shared, origins, notes=list(dict.fromkeys(seen.left)))


def _upper(program: torch.export.ExportedProgram, size: Any) -> int | None:
    if not isinstance(size, torch.SymInt):
        return None
    bounds = program.range_constraints.get(size.node.expr)
    try:
        return int(bounds.upper) if bounds is not None and bounds.upper < 2**31 else None
    except (OverflowError, TypeError, ValueError):
        return None


# ---- What export leaves behind --------------------------------------------------------------------------------------


def clean(graph: fx.Graph) -> None:
    """Removes what computes nothing: checks of metadata, dropout's clones, slices of everything, sums with nothing.

    Views become reshapes: whether a result can be viewed depends on the layout that a kernel gives it, which was that
    of the device, and of the kernel, that the graph was captured with.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = operation(node.target)
        if name == "_assert_tensor_metadata":
            graph.erase_node(node)
        elif name == "reshape":
            node.target = aten.reshape.default
        elif _changes_nothing(node, name):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _changes_nothing(node: fx.Node, name: str | None) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    before, after = value_of(node.args[0]), value_of(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    same = before.dtype == after.dtype and before.device == after.device and before.dim() == after.dim()
    if name == "dropout":
        return same and node.args[2] is False
    if name in ("clone", "alias", "detach", "detach_", "lift_fresh_copy", "contiguous"):
        return same
    if name in ("_to_copy", "to", "type_as"):
        return same
    if name == "slice":
        _, _, start, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
        return same and start in (None, 0) and (end is None or end == 2**63 - 1) and step == 1
    if name == "expand":
        return same and all(size == -1 for size in node.args[1])
    if name in ("mul", "div") and not node.kwargs:
        return same and isinstance(node.args[1], (int, float)) and node.args[1] == 1
    if name in ("add", "sub") and not node.kwargs:
        return same and isinstance(node.args[1], (int, float)) and node.args[1] == 0
    return False


# ---- The check ------------------------------------------------------------------------------------------------------

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Answers:
    """What the module itself gives on the sizes that graphs are checked at, computed once for all checks."""

    def __init__(
        self,
        forward: Callable[..., Any],
        tensors: Mapping[str, Tensor],
        fixed: Mapping[str, Any],
        sizes: Sequence[tuple[int, int]] = CHECKED_AT,
    ) -> None:
        self.forward, self.tensors, self.fixed, self.sizes = forward, tensors, fixed, sizes
        self.roles = roles(tensors)
        self.known: dict[Any, tuple[dict[str, Tensor], Any]] = {}

    def example(self, batch: int, length: int, holes: bool) -> dict[str, Tensor]:
        """The same inputs in another size; in a larger one a mask of tokens has padding, and a hole where holes are."""
        given = {name: resized(t.detach(), self.roles[name], batch, length) for name, t in self.tensors.items()}
        if self._has_mask(given, batch):
            mask = torch.ones_like(given["attention_mask"])
            mask[0, length // 2 :] = 0
            if holes:
                mask[1, 2] = 0
            given["attention_mask"] = mask
        return given

    def _has_mask(self, given: Mapping[str, Tensor], batch: int) -> bool:
        mask = given.get("attention_mask")
        return (
            mask is not None and batch > 1 and self.roles["attention_mask"] == (B, L) and not mask.is_floating_point()
        )

    def __call__(self, holes: bool, fits: Callable[[Mapping[str, Tensor]], bool]) -> Iterator[tuple[Any, Any]]:
        """Inputs, of those sizes that fit, and what the module gives of them, or the error that it raises."""
        for batch, length in self.sizes:
            key = batch, length, holes and self._has_mask(self.tensors, batch)
            given = self.known[key][0] if key in self.known else self.example(batch, length, holes)
            if not fits(given):
                continue
            if key not in self.known:
                self.known[key] = given, self._answer(given)
            yield self.known[key]

    def _answer(self, given: Mapping[str, Tensor]) -> Any:
        try:
            with torch.no_grad():
                return self.forward(**given, **self.fixed)
        except Exception as error:
            return error


def difference(
    captured: Captured,
    answers: Answers,
    call: Callable[[Mapping[str, Tensor]], Any] | None = None,
    padding: str | None = None,
    padded: Sequence[Any] = (),
) -> str | None:
    """Where a captured graph and the module differ on other sizes; None where they agree.

    `call` is what is compared instead of the graph itself, but for what its results have where the input `padding` has
    padding: for each of them `padded` has the layout, or None where it has no tokens.
    """

    def fits(given: Mapping[str, Tensor]) -> bool:
        return all(given[name].shape[dim] <= limit for name, dim, limit in captured.most)

    for given, wanted in answers(holes=call is None, fits=fits):
        sizes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in given.items())
        if isinstance(wanted, Exception):
            return f"on {sizes} the module fails itself: {brief(wanted)}"
        with torch.no_grad():
            try:
                got = (call or captured)(given)
            except Exception as error:
                return f"on {sizes} it fails: {brief(error)}"
        layouts = padded or [None] * len(pytree.tree_leaves(got))
        leaves = zip(pytree.tree_leaves_with_path(wanted), pytree.tree_leaves(got), layouts, strict=True)
        for (path, a), b, layout in leaves:
            if layout is not None and padding in given and isinstance(a, Tensor):
                a, b = (_without_padding(t, given[padding], layout) for t in (a, b))
            if not isinstance(a, Tensor):
                if a != b:
                    return f"on {sizes}{pytree.keystr(path)} is {b}, not {a}"
                continue
            if a.shape != b.shape or a.dtype != b.dtype:
                kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (b, a)]
                return f"on {sizes} result {pytree.keystr(path)} is {kinds[0]}, not {kinds[1]}"
            if not close(a, b) and not _close_but_for_padding(a, b, given.get("attention_mask")):
                worst = (a.double() - b.double()).abs().max().item()
                return f"on {sizes} result {pytree.keystr(path)} is off by {worst:.2g}"
    return None


def brief(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"


def _close_but_for_padding(a: Tensor, b: Tensor, mask: Tensor | None) -> bool:
    """Whether results differ at most where padding is.

    What a token of padding gets that sees no real one, as in a sliding window, is PyTorch's choice: on CUDA its kernels
    for halves and for float32 give different things there.
    """
    if mask is None or mask.dim() != 2 or mask.is_floating_point() or a.shape[:2] != mask.shape or a.dim() < 3:
        return False
    return close(*(t.masked_fill((mask == 0).view(*mask.shape, *[1] * (t.dim() - 2)), 0) for t in (a, b)))


def _without_padding(result: Tensor, mask: Tensor, layout: Any) -> Tensor:
    shape = [1] * result.dim()
    shape[layout.b], shape[layout.l] = mask.shape
    return result.masked_fill((mask == 0).view(shape), 0)


def close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.numel() == 0:
        return True
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0, (a.double() - b.double()).abs()).max()
    scale = torch.where(a.isfinite(), a.double().abs(), 0).max()
    return bool(error <= TOLERANCE.get(a.dtype, 1e-4) * scale.clamp(min=torch.finfo(a.dtype).tiny))


__all__ = ["CaptureError", "Captured", "capture", "clean", "complete", "difference", "roles"]
