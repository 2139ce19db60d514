"""optimize_model and restore: a module whose forward runs rewritten graphs, and its own code for the rest.

One graph serves all calls of one pattern: which arguments are tensors, of what dtype and device, and what the others
are. Sizes are not part of it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from .. import _C
from . import cache, packed, registry
from .capture import CHECKED_AT, Answers, B, Captured, CaptureError, L, capture, clean, difference, roles
from .devices import on_one_device
from .graphs import Graphs, run_as_it_is
from .merge import merge_linears
from .patterns import value_of
from .plan import DEVICES as PLAN_DEVICES
from .plan import Plan, Stale
from .quick import Quick
from .ragged import Padded, split
from .registry import Outcome
from .weights import Place, Weights, places_of

Model = TypeVar("Model", bound=nn.Module)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_PROGRAMS = 32  # of one model: sizes that are not batch or length make a pattern each, without end
MOST_KNOWN = 4096
_SET_UP = ("programs", "known", "graphs_by_device", "eager", "lock", "parameters", "positional", "__signature__")
_FIXED = (str, int, float, bool, type(None), torch.dtype, torch.device)  # arguments that are part of a call's pattern
# Where any of these says so, a call is for the module's own code.
_OUTSIDE = (torch._C._is_any_autocast_enabled, torch.compiler.is_compiling, torch._C._get_tracing_state)
_CONFIG = ("_attn_implementation", "output_attentions", "output_hidden_states", "return_dict", "use_cache")


@dataclass
class Program:
    """The rewritten graph of one pattern of calls, or why there is none."""

    call: str
    captured: Captured | None = None
    outcome: Outcome = field(default_factory=lambda: Outcome({}, {}))
    why_eager: str = ""
    packed: packed.Runner | None = None  # the same for real tokens alone
    quick: Quick | None = None  # and its repeated calls
    why_padded: str = ""  # why there is no such
    calls: int = 0
    padded_calls: int = 0  # of these, by the padded graph though there is one for real tokens
    weights: Weights | None = None  # what it was made of
    lines: Any = None  # of a report, where they were read from the cache


class Forward:
    """What stands in for a module's forward."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, graphs: Any, ragged: bool) -> None:
        self.model = model
        self.had = model.__dict__.get("forward")  # a forward that somebody else put in place of the class's
        self.dtype, self.graphs, self.ragged = dtype, graphs, ragged
        self._set_up()

    def __repr__(self) -> str:
        return f"<{type(self.model).__name__}.forward by strop.optimize_model>"

    def _set_up(self) -> None:
        functools.update_wrapper(self, self.original, updated=())
        self.__signature__ = signature = inspect.signature(self.original)
        kinds = inspect.Parameter
        self.parameters = signature.parameters
        self.positional = [
            p.name for p in self.parameters.values() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]
        self.programs: dict[Any, Program] = {}
        self.known: dict[Any, Program] = {}  # of calls that look as one before did
        self.graphs_by_device: dict[torch.device, Graphs] = {}
        self.eager: dict[str, int] = {}  # why calls ran the module's own code: how many
        self.lock = threading.RLock()

    @property
    def original(self) -> Callable[..., Any]:
        return self.had if self.had is not None else functools.partial(type(self.model).forward, self.model)

    # A copy of the module, or one loaded from a file, is captured anew: the graphs here have this module's weights.

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("model", "had", "dtype", "graphs", "ragged")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The module is not whole yet; what depends on it is made when it is first called.

    def __getattr__(self, name: str) -> Any:
        if name in _SET_UP and "model" in self.__dict__:
            self._set_up()
            return self.__dict__[name]
        raise AttributeError(name)

    # ---- Calls ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Two calls that look alike are for the same program; None: not known.
        look = None if args else _C.call_look(kwargs, self.model, _CONFIG, registry.version(), _OUTSIDE)
        known = self.known.get(look)
        if known is not None:
            captured = known.captured
            if known.quick is not None and captured is not None:
                try:
                    leaves = known.quick.run(kwargs)
                except Stale:
                    leaves = None
                if leaves is not None:
                    known.calls += 1
                    return captured.result_of(leaves)
            if known.weights is not None and known.weights.same():
                return self._answer(known, kwargs, args, kwargs)
        given = self._named(args, kwargs)
        if isinstance(given, str):
            return self._eagerly(given, args, kwargs)
        tensors, fixed, reason = self._split(given)
        reason = reason or self._refusal(tensors)
        if reason:
            return self._eagerly(reason, args, kwargs)
        role = roles(tensors)
        key = self._key(tensors, fixed, role)
        program = self.programs.get(key)
        if program is None and len(self.programs) >= MOST_PROGRAMS:
            return self._eagerly(f"{MOST_PROGRAMS} patterns of calls are captured already", args, kwargs)
        if program is None or not self._current(program):
            with self.lock:
                program = self.programs.get(key)
                if program is None or not self._current(program):
                    for graphs in self.graphs_by_device.values() if program is not None else ():
                        graphs.clear()  # they read weights that are there no more
                    self._forget(program)
                    program = self.programs[key] = self._compile(tensors, fixed)
        captured = program.captured
        if captured is None:
            return self._eagerly(program.why_eager, args, kwargs)
        for name, dim, limit in captured.most:
            if tensors[name].shape[dim] > limit:
                return self._eagerly(f"size {dim} of {name} is above {limit}", args, kwargs)
        if 0 in next(iter(tensors.values())).shape:
            return self._eagerly("an empty input", args, kwargs)
        if look is not None:
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            self.known[look] = program
        return self._answer(program, tensors, args, kwargs)

    def _answer(self, program: Program, given: Mapping[str, Any], args: Any, kwargs: Any) -> Any:
        captured = program.captured
        assert captured is not None
        program.calls += 1
        try:
            with torch.no_grad():
                return self._run(program, captured, captured.ordered(given))
        except Stale:  # the module was moved or cast: its parameters are the same objects with other contents
            self._forget(program)
            return self(*args, **kwargs)

    def _forget(self, program: Program | None) -> None:
        """Has a program's calls find it no more."""
        self.programs = {key: kept for key, kept in self.programs.items() if kept is not program}
        self.known = {look: kept for look, kept in self.known.items() if kept is not program}

    def _run(self, program: Program, captured: Captured, ordered: list[Tensor]) -> Any:
        if self.dtype is not None:
            ordered = [self._converted(t) for t in ordered]
        device = ordered[0].device
        recorded = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if program.packed is not None and not recorded:  # to count tokens is to wait, which a recording cannot
            tokens = program.packed.locate(ordered)
            if tokens is not None:
                return captured.result_of(program.packed(tokens, ordered))
            program.padded_calls += 1
        leaves = None
        graphs = None if recorded else self._graphs_of(device)
        if graphs is not None:
            leaves = run_as_it_is(graphs, program.call, ordered, lambda *given: captured.run(list(given)))
        return captured.result_of(leaves if leaves is not None else captured.run(ordered))

    def _graphs_of(self, device: torch.device) -> Graphs | None:
        """The CUDA graphs of a device; None where there are to be none."""
        if device.type != "cuda" or self.graphs is False:
            return None
        with self.lock:
            if device not in self.graphs_by_device:
                self.graphs_by_device[device] = Graphs(device, at_once=self.graphs is True)
            return self.graphs_by_device[device]

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | str:
        """Arguments by their names."""
        if not args:
            return kwargs
        if len(args) > len(self.positional):
            return "more positional arguments than parameters"
        named = dict(zip(self.positional, args, strict=False))
        if named.keys() & kwargs.keys():
            return "an argument given twice"
        return {**named, **kwargs}

    def _split(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """Tensors, and what else is given and is not the default."""
        tensors, fixed = {}, {}
        for name, value in given.items():
            if isinstance(value, Tensor):
                if type(value) not in (Tensor, nn.Parameter):
                    return {}, {}, f"{name} is a {type(value).__name__}"
                tensors[name] = value
            elif isinstance(value, _FIXED):
                parameter = self.parameters.get(name)
                if value is not None or (parameter is not None and parameter.default is not None):
                    fixed[name] = value
            else:
                return {}, {}, f"{name} is a {type(value).__name__}"
        return tensors, fixed, ""

    def _refusal(self, tensors: Mapping[str, Tensor]) -> str:
        """Why a call is for the module's own code, from what it costs nothing to look at."""
        if not tensors:
            return "no tensor among the arguments"
        if self.model.training:
            return "the module is in training mode"
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values()):
            return "the gradient of an input is wanted"
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "it is being compiled or traced"
        device = next(iter(tensors.values())).device.type
        if torch.is_autocast_enabled(device):
            return "it is under autocast"
        return ""

    def _key(self, tensors: Mapping[str, Tensor], fixed: Mapping[str, Any], role: Mapping[str, Any]) -> Any:
        config = getattr(self.model, "config", None)
        return (
            tuple((name, t.dtype, t.device, role[name]) for name, t in tensors.items()),
            tuple((name, type(value), value) for name, value in fixed.items()),
            tuple(getattr(config, name, None) for name in _CONFIG),
            registry.version(),
        )

    def _current(self, program: Program) -> bool:
        return program.weights is None or program.weights.same()

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _eagerly(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.eager[reason] = self.eager.get(reason, 0) + 1
        return self.original(*args, **kwargs)

    # ---- Graphs -----------------------------------------------------------------------------------------------------

    def _compile(self, tensors: Mapping[str, Tensor], fixed: Mapping[str, Any], cached: bool = True) -> Program:
        program = Program(_describe(tensors, fixed))
        try:
            config = getattr(self.model, "config", None)
            for name in ("output_attentions", "output_hidden_states"):
                if fixed.get(name, getattr(config, name, False)):
                    raise CaptureError(f"{name} asks for what lies inside the layers")
            kept = cache.Entry.of(self, tensors, fixed) if cached else None
            if not self._read(program, kept, tensors, fixed):
                self._capture(program, tensors, fixed, kept)
        except CaptureError as error:
            program.why_eager = str(error)
        return program

    def _read(
        self, program: Program, kept: cache.Entry | None, tensors: Mapping[str, Tensor], fixed: Mapping[str, Any]
    ) -> bool:
        """A program that an earlier process has captured; it is compared with the module once."""
        found = kept.read(self.model, self.dtype) if kept is not None else None
        if kept is None or found is None:
            return False

        def in_its_dtype(**given: Any) -> Any:
            result = self.original(**{n: v.to(tensors[n].dtype) if n in tensors else v for n, v in given.items()})
            return pytree.tree_map(lambda t: self._converted(t) if isinstance(t, Tensor) else t, result)

        device = next(iter(tensors.values())).device
        forward = self.original
        if self.dtype is not None:
            forward, tensors_given = in_its_dtype, {name: self._converted(t) for name, t in tensors.items()}
        else:
            tensors_given = dict(tensors)
        answers = Answers(forward, tensors_given, fixed, sizes=CHECKED_AT[1:])
        try:
            if found.packed is not None:
                wrong = _packed_difference(found.captured, found.packed, answers)
            else:
                wrong = difference(found.captured, answers)
        except Exception as error:
            wrong = str(error)
        if wrong:
            kept.remove()
            return False
        program.outcome, program.why_padded, program.lines = found.outcome, found.why_padded, found.lines
        self._use(program, found.captured, found.packed, places_of(self.model), device)
        return True

    def _capture(
        self, program: Program, tensors: Mapping[str, Tensor], fixed: Mapping[str, Any], kept: cache.Entry | None
    ) -> None:
        model, forward = self.model, self.original
        places = places_of(self.model)
        if self.dtype is not None:
            model = _in_dtype(model, self.dtype)
            forward = functools.partial(type(model).forward, model)
            tensors = {name: self._converted(t) for name, t in tensors.items()}
        captured = capture(model, forward, tensors, fixed)
        on_one_device(captured.module, captured.origins)
        clean(captured.module.graph)
        plain = fx.Graph()
        plain.output(plain.graph_copy(captured.module.graph, {}))
        outcome = registry.rewrite(captured.module.graph)
        if self.dtype is not None:
            captured.merged = merge_linears(captured.module)
        captured.module.recompile()
        answers = Answers(forward, tensors, fixed)
        wrong = difference(captured, answers)
        if wrong:
            captured.module.graph = plain
            captured.module.recompile()
            again = difference(captured, answers)
            if again:
                raise CaptureError(f"the captured graph does not do what the module does: {again}")
            captured.notes.append(f"nothing was replaced, as the rewritten graph is not what was captured: {wrong}")
            outcome = Outcome({}, {})
            captured.merged = {}
        _plan(captured, answers)
        runner = None
        if self.ragged:
            runner, program.why_padded = _packed(captured, answers)
        program.outcome = outcome
        self._use(program, captured, runner, places, next(iter(tensors.values())).device)
        if kept is not None:
            kept.write(program)

    def _use(
        self,
        program: Program,
        captured: Captured,
        runner: packed.Runner | None,
        places: list[Place],
        device: torch.device,
    ) -> None:
        """Has a program's calls run a graph."""
        if runner is not None:
            runner.graphs = self._graphs_of(device)
        program.packed = runner
        # What has to be there still is the model's own, whose contents matter where they were copied.
        copied = self.dtype is not None
        program.weights = Weights(places if copied else captured.shared, copied)
        program.captured = captured
        program.quick = Quick.of(program.packed, captured.names, program.weights, self.dtype)


def _plan(captured: Captured, answers: Answers) -> None:
    """Makes a checked graph a plan, which is checked as well; the graph stays where that does not work."""
    if not _plans_run_on(captured):
        return
    try:
        captured.plan = Plan(captured.module)
        wrong = difference(captured, answers)
    except Exception as error:
        wrong = str(error)
    if wrong:
        captured.plan = None
        captured.notes.append(f"runs node by node in Python, not as a plan: {wrong}")


def _plans_run_on(captured: Captured) -> bool:
    tensors = (value_of(node) for node in captured.module.graph.nodes if node.op == "placeholder")
    return all(tensor.device.type in PLAN_DEVICES for tensor in tensors)


def _packed(captured: Captured, answers: Answers) -> tuple[packed.Runner | None, str]:
    """A captured graph for real tokens alone, or why there is none."""
    try:
        ragged = split(captured.module.graph, captured.module, captured.roles)
    except Padded as reason:
        return None, str(reason)
    plans: dict[str, Plan] = {}
    notes = []
    for name in ("body", "before", "sized", "after") if _plans_run_on(captured) else ():
        graph = getattr(ragged, name)
        if packed.as_inputs(graph) is None:
            try:
                plans[name] = Plan(graph, part=True)
            except Exception as error:
                notes.append(f"packed tokens run node by node in Python ({name}), not as a plan: {error}")
    wrong = ""
    for given in (plans, {}):
        runner = packed.Runner(ragged, captured.names, given)
        try:
            wrong = _packed_difference(captured, runner, answers)
        except Exception as error:
            if not given:
                raise
            wrong = str(error)
        if not wrong:
            captured.notes += notes
            return runner, ""
        notes = [f"packed tokens run node by node in Python, not as a plan: {wrong}"]
    return None, f"packed tokens do not give what the padded layout gives: {wrong}"


def _packed_difference(captured: Captured, runner: packed.Runner, answers: Answers) -> str | None:
    """As capture.difference, of what runs on real tokens alone."""

    def call(tensors: Mapping[str, Tensor]) -> Any:
        ordered = captured.ordered(tensors)
        tokens = runner.locate(ordered)
        return captured(tensors) if tokens is None else captured.result_of(runner(tokens, ordered))

    return difference(captured, answers, call, runner.ragged.mask, runner.ragged.padded)


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module in another dtype."""
    forward = model.__dict__.pop("forward", None)
    # Converted as they are copied: a copy in the old dtype would be made for nothing.
    memo: dict[int, Any] = {}
    for _, _, tensor in places_of(model):
        if type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point():
            new = tensor.detach().to(dtype, copy=True)
            memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    try:
        copied = copy.deepcopy(model, memo).to(dtype)
    finally:
        if forward is not None:
            model.__dict__["forward"] = forward
    return copied


def _describe(tensors: Mapping[str, Tensor], fixed: Mapping[str, Any]) -> str:
    parts = []
    for name, role in roles(tensors).items():
        sizes = "×".join(
            {B: "batch", L: "length"}.get(what, str(what)) if isinstance(what, str) else str(what) for what in role
        )
        parts.append(f"{name}: {str(tensors[name].dtype).removeprefix('torch.')} {sizes}")
    return ", ".join(parts + [f"{name}={value!r}" for name, value in fixed.items()])


def forward_of(model: nn.Module) -> Forward | None:
    found = model.__dict__.get("forward")
    return found if isinstance(found, Forward) and found.model is model else None


def optimize_model(
    model: Model, dtype: torch.dtype | None = None, graphs: bool | str = "auto", ragged: bool = True
) -> Model:
    """Makes a model's forward run on strop's operators; the same object, called as before, gives the same.

    Nothing is captured before the first call. Each pattern of calls (which tensors, what else) is captured once for all
    batch sizes and lengths, rewritten, and checked against the model on other sizes. Where that is not possible, or a
    call is for something that a graph cannot do (training, gradients of inputs, a cache, attentions), the model's own
    code runs as before: :func:`strop.report` says when and why. Results carry no gradient.

    The model's weights are neither copied nor changed: loading others into them takes effect at once, and replacing
    them, or moving the model, has it captured anew.

    Args:
        model: any module, in eval mode when it is called. One that is optimized already is optimized anew where the
            options differ, and left alone where they don't.
        dtype: compute in float16 or bfloat16 on a copy of the weights, with results of that dtype; None: as the model
            is.
        graphs: CUDA graphs. "auto": a number of tokens and sequences, rounded up to a bucket, is recorded when met for
            the second time; True: when met first; False: never. Results are copies and stay valid. On a CPU it has no
            effect.
        ragged: with an attention mask, compute on real tokens alone, where the model allows it; results of tokens are 0
            at padding. On CUDA each call with a mask waits for the number of its tokens. False: compute padding as the
            model does.

    Returns:
        The model itself.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    if graphs not in ("auto", True, False):
        raise ValueError(f'graphs: expected "auto", True or False, got {graphs!r}')
    present = forward_of(model)
    if present is not None:
        if (present.dtype, present.graphs, present.ragged) == (dtype, graphs, bool(ragged)):
            return model
        restore(model)
    model.forward = Forward(model, dtype, graphs, bool(ragged))  # type: ignore[method-assign]
    return model


def restore(model: Model) -> Model:
    """Gives a model of :func:`strop.optimize_model` its own forward back; any other is left as it is."""
    present = forward_of(model)
    if present is not None:
        if present.had is not None:
            model.forward = present.had  # type: ignore[method-assign]
        else:
            del model.__dict__["forward"]
    return model
