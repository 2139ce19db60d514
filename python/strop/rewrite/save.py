"""Plan files: a rewritten model as one safetensors file that C++ runs without Python and PyTorch.

The tensors are the weights, by their names in the module; the programs are JSON in the file's metadata, of which
src/runtime/model.h has the format. include/strop/plan.h reads them.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from .. import _C
from .capture import Captured, difference
from .lower import Given, Position, Unsupported, dtype_name
from .model import Forward, Program, forward_of
from .packed import Runner, as_inputs
from .patterns import value_of
from .plan import Plan
from .ragged import Layout, Pack

VERSION = 1
KEY = "strop_plan"
MOST_DIMENSIONS = 4  # of inputs and outputs: what a TensorView has


class SavedPlan:
    """A plan file as C++ reads and runs it, on the CPU, called with tensors by their names.

    It gives a dict of new tensors. `inputs` and `outputs` are the names; `why_padded` says why it computes padding,
    where it does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._model = _C.model_load(self.path)
        says = json.loads(_metadata(self.path)[KEY])
        self.inputs = tuple(given["name"] for given in says["inputs"])
        self.outputs = tuple(result["name"] for result in says["outputs"])
        self.why_padded: str = says.get("why_padded", "")

    def __repr__(self) -> str:
        return f"<plan {self.path}: {', '.join(self.inputs)} → {', '.join(self.outputs)}>"

    def __call__(self, **tensors: Tensor) -> dict[str, Tensor]:
        if tensors.keys() != set(self.inputs):
            raise TypeError(f"expected {', '.join(self.inputs)}, got {', '.join(tensors) or 'nothing'}")
        results = _C.model_run(self._model, tuple(tensors[name].detach() for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))


def load_plan(path: str | os.PathLike[str]) -> SavedPlan:
    """Reads a file of :func:`strop.save_plan`, to run it as a C++ program does.

    Args:
        path: the file.

    Returns:
        What is called with tensors by their names, ``load_plan(path)(input_ids=ids, attention_mask=mask)``, and gives
        a dict of tensors. ValueError or RuntimeError say what is wrong with a file.
    """
    return SavedPlan(path)


def save_plan(
    model: nn.Module, path: str | os.PathLike[str], /, *example_args: Any, **example_kwargs: Any
) -> SavedPlan:
    """Writes a model as one file that a C++ program runs without Python and PyTorch (strop/plan.h), on the CPU.

    The model is captured and rewritten as :func:`strop.optimize_model` does, for the pattern of the example's call, and
    for all batch sizes and lengths; it stays as it is. One that is optimized is saved with its own `dtype` and
    `ragged`. What was written is read again, and checked against the model on other sizes.

    Args:
        model: a module in eval mode, on the CPU.
        path: the file, in the safetensors format: the weights by their names in the module, the programs in the
            metadata. It is there once it is whole.
        *example_args: a call of the model. Its tensors become the inputs, what else it has is fixed.
        **example_kwargs: the same by name.

    Returns:
        The file, loaded, to be called with tensors by their names.

    Raises:
        ImportError: the package safetensors is not installed.
        RuntimeError: the model cannot be a program without PyTorch; the message lists the operations in the way.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("save_plan: the package safetensors is needed (pip install safetensors)") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    program, tensors = _captured(model, example_args, example_kwargs)
    captured = program.captured
    assert captured is not None
    writer = _Writer(model, captured)
    text = json.dumps(writer.described(program), allow_nan=False)
    target = Path(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # what others may do with a new file; the package would let them do nothing
        save_file(writer.tensors, part, metadata={KEY: text})  # one key: the package has no order for more
        part.chmod(mode)
        wrong = _difference(SavedPlan(part), program, tensors)
        if wrong:
            raise Unsupported(f"the plan that was written does not give what the model gives: {wrong}")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return SavedPlan(target)


def _metadata(path: str) -> dict[str, str]:
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    return json.loads(header).get("__metadata__", {})


def _captured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, dict[str, Tensor]]:
    """The model's programs for the pattern of a call, and the call's tensors."""
    present = forward_of(model)
    state = {"model": model, "had": model.__dict__.get("forward"), "dtype": None, "graphs": False, "ragged": True}
    if present is not None:
        state |= {"had": present.had, "dtype": present.dtype, "ragged": present.ragged}
    forward = Forward.__new__(Forward)
    forward.__setstate__(state)
    given = forward._named(args, kwargs)
    if isinstance(given, str):
        raise TypeError(f"the example's call: {given}")
    with torch.no_grad():
        tensors, fixed, reason = forward._split(given)
        reason = reason or forward._refusal(tensors)
        if reason:
            raise ValueError(f"the example's call: {reason}")
        parameters = dict([*model.named_parameters(), *model.named_buffers()])
        elsewhere = [name for name, t in {**tensors, **parameters}.items() if t.device.type != "cpu"]
        if elsewhere:
            raise ValueError(f"{elsewhere[0]}: expected a tensor on the CPU, where plan files run, as all others")
        program = forward._compile(tensors, fixed)
        tensors = {name: forward._converted(t) if forward.dtype is not None else t for name, t in tensors.items()}
    if program.captured is None:
        raise Unsupported(f"the model cannot be captured: {program.why_eager}")
    return program, tensors


def _difference(saved: SavedPlan, program: Program, tensors: dict[str, Tensor]) -> str | None:
    """Where a file and the graph that it was made of differ."""
    captured = program.captured
    assert captured is not None
    ragged = program.packed.ragged if program.packed is not None and not saved.why_padded else None

    def call(given: Any) -> Any:
        return captured.result_of(list(saved(**given).values()))

    def graph(**given: Tensor) -> Any:
        return captured(given)

    if ragged is None:
        return difference(captured, graph, tensors, {}, call)
    return difference(captured, graph, tensors, {}, call, ragged.mask, ragged.padded)


class _Writer:
    """Collects what a file has of a model."""

    def __init__(self, model: nn.Module, captured: Captured) -> None:
        self.captured = captured
        self.tensors: dict[str, Tensor] = {}
        self.written: dict[int, str] = {}  # names by the identity of what is in the graphs
        own = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.names = {id(tensor): name for name, tensor in reversed(own)}
        self.labels = {name.replace(".", "_"): name for name, _ in own}  # of copies in another dtype

    def described(self, program: Program) -> dict[str, Any]:
        captured = self.captured
        if captured.plan is None:
            raise Unsupported("; ".join(captured.notes) or "it has no plan")
        missing = _missing(captured.plan)
        if missing:
            raise Unsupported(f"operations that need PyTorch: {', '.join(missing)}")
        packed, why_padded = None, program.why_padded
        if program.packed is not None:
            why_padded = _why_not_packed(program.packed)
            packed = self.packed(program.packed) if not why_padded else None
        return {
            "version": VERSION,
            "strop": _C.VERSION,
            "inputs": self.inputs(),
            "outputs": self.outputs(),
            "padded": self.part(captured.plan),
            "packed": packed,
            "why_padded": why_padded,
        }

    def inputs(self) -> list[dict[str, Any]]:
        captured = self.captured
        most = {(name, dim): limit for name, dim, limit in captured.most}
        names = {"B": "batch", "L": "length"}
        return [
            {
                "name": node.target,
                "dtype": dtype_name(value_of(node).dtype),
                "shape": [names.get(what, what) for what in captured.roles[node.target]],
                "most": [most.get((node.target, dim), -1) for dim in range(value_of(node).dim())],
            }
            for node in _placeholders(captured.module)
        ]

    def outputs(self) -> list[dict[str, Any]]:
        captured = self.captured
        known = {}
        for node in _placeholders(captured.module):
            for size, what in zip(value_of(node).shape, captured.roles[node.target], strict=True):
                if isinstance(what, str) and isinstance(size, torch.SymInt):
                    known[size.node.expr] = {"B": "batch", "L": "length"}[what]
        results = next(node for node in captured.module.graph.nodes if node.op == "output").args[0]
        names = _names(captured.result)
        found = []
        for name, result in zip(names, results, strict=True):
            value = value_of(result)
            if not isinstance(value, Tensor) or value.dim() > MOST_DIMENSIONS:
                raise Unsupported(f"the output {name} is no tensor of at most {MOST_DIMENSIONS} dimensions")
            shape = [known.get(s.node.expr, -1) if isinstance(s, torch.SymInt) else s for s in value.shape]
            found.append({"name": name, "dtype": dtype_name(value.dtype), "shape": shape})
        return found

    def part(self, plan: Plan | None, results: Sequence[int] = ()) -> dict[str, Any]:
        """A plan; or, where nothing is computed, which inputs are the results."""
        if plan is None:
            return {"program": None, "weights": [], "results": [{"input": i} for i in results]}
        kinds = {Position: "output", Given: "input"}
        if any(type(result) not in kinds for result in plan._results):
            raise Unsupported("a result that is no tensor")
        weights = [
            self.weight(node.target, operator.attrgetter(node.target)(plan.module))
            for node in plan.module.graph.nodes
            if node.op == "get_attr"
        ]
        return {
            "program": json.loads(plan.text),
            "weights": weights,
            "results": [{kinds[type(result)]: result.index} for result in plan._results],
        }

    def weight(self, label: str, tensor: Tensor) -> str:
        """The name of a weight, which is written once however many programs have it."""
        if id(tensor) not in self.written:
            name = self.names.get(id(tensor)) or self.labels.get(label, label)
            while name in self.tensors:
                name += "_"
            own = tensor.detach()
            # The package refuses tensors that share memory, as parts of a merged weight do.
            shares = own.numel() * own.element_size() != own.untyped_storage().nbytes()
            self.tensors[name] = own.clone(memory_format=torch.contiguous_format) if shares else own.contiguous()
            self.written[id(tensor)] = name
        return self.written[id(tensor)]

    def packed(self, runner: Runner) -> dict[str, Any]:
        ragged = runner.ragged
        parts: dict[str, Callable[..., Any]] = runner.plans

        def part(name: str) -> dict[str, Any]:
            return self.part(parts.get(name), as_inputs(getattr(ragged, name)) or ())  # type: ignore[arg-type]

        return {
            "mask": runner.mask,
            "wants_first": ragged.wants_first,
            "wants_whole": ragged.wants_whole,
            "before": part("before"),
            "sized": part("sized"),
            "packs": [
                _pack(how, "sized" if by_size else "before")
                for how, by_size in zip(ragged.packs, ragged.by_size, strict=True)
            ],
            "body": part("body"),
            "rows": [_layout(layout) for layout in ragged.rows],
            "after": part("after"),
        }


def _why_not_packed(runner: Runner) -> str:
    """Why C++ cannot compute on real tokens alone where PyTorch does; empty where it can."""
    if runner.mask is None:
        return "no input says which tokens are real"
    for name in ("before", "sized", "body", "after"):
        plan = runner.plans.get(name)
        if plan is None:
            if as_inputs(getattr(runner.ragged, name)) is None:
                return f"a part of the packed model ({name}) is no plan"
        elif missing := _missing(plan):
            return f"a part of the packed model ({name}) has operations that need PyTorch: {', '.join(missing)}"
    return ""


def _missing(plan: Any) -> list[str]:
    return _C.plan_missing(plan.text)


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _layout(layout: Layout) -> dict[str, Any]:
    return {"batch": layout.b, "length": -1 if layout.l is None else layout.l}


def _pack(how: Pack, source: str) -> dict[str, Any]:
    if how.layout is None:
        return {"from": source, "as_it_is": True}
    return {"from": source, **_layout(how.layout), "batched": how.batched}


def _names(result: pytree.TreeSpec) -> list[str]:
    """What the outputs are called: by keys and positions in what the module returns."""
    tree = pytree.tree_unflatten(list(range(result.num_leaves)), result)
    names = []
    for path, _ in pytree.tree_leaves_with_path(tree):
        keys = [next(str(getattr(key, a)) for a in ("key", "idx", "name") if hasattr(key, a)) for key in path]
        names.append(".".join(keys) or "output")
    return names


__all__ = ["SavedPlan", "load_plan", "save_plan"]
