"""Lowers a rewritten graph to the text of a plan (src/runtime/program.h): what C++ runs without Python.

Sizes, views and strop's operators become operations that the runtime has itself. The rest is called through PyTorch's
dispatcher, with all arguments of the schema; its stable interface has no `Scalar`, so numbers become tensors without
dimensions where the result is the same. What cannot be said in either way is a Python callable of the plan.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .._ops import add_op_namespace_prefix
from .patterns import is_node, value_of

VERSION = 1
MOST_DIMENSIONS = 8

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SCALARS = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)  # that the runtime stores
_POINTWISE = (torch.int32, torch.int64, torch.float32, torch.float64)  # that its sums and products take on the CPU
_KNOWN = (*_SCALARS, torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.uint64)


class Unsupported(RuntimeError):
    """Why a graph cannot be a plan."""


@dataclass
class Lowered:
    """The text of a plan, with what it refers to."""

    text: str
    constants: list[Tensor]
    callables: tuple[Callable[..., Any], ...]
    results: list[Any]  # of the graph: positions among the plan's outputs as Position or inputs as Given, or what it is
    native: frozenset[str]  # nodes that the runtime computes itself
    why_python: list[str] = field(default_factory=list)  # operations that call Python
    called: list[str] = field(default_factory=list)  # the nodes that the callables are for


@dataclass(frozen=True)
class Position:
    index: int


@dataclass(frozen=True)
class Given:
    index: int


def lower(module: fx.GraphModule, part: bool = False) -> Lowered:
    """The plan of a graph; Unsupported says why there is none.

    part: it is one of a packed model's graphs. Inputs among its results are passed on, and rows behind the last
    sequence may be anything, as nobody reads them.
    """
    return _Lowering(module, part).run()


# ---- Arguments ------------------------------------------------------------------------------------------------------

_TYPES = {
    "Tensor": "Tensor", "int": "int", "SymInt": "int", "float": "float", "bool": "bool", "str": "str",
    "ScalarType": "dtype", "Device": "device", "Layout": "layout", "MemoryFormat": "memory_format",
}  # fmt: skip


def type_name(real_type: Any) -> str | None:
    """A schema's type as the program has it; None where the stable interface cannot pass it."""
    text = str(real_type)
    for wrapper, mark in (("Optional[", "?"), ("List[", "[]")):
        if text.startswith(wrapper):
            inner = type_name(text[len(wrapper) : -1])
            return inner + mark if inner is not None else None
    return _TYPES.get(text)


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in _KNOWN:
        raise Unsupported(f"tensors of {dtype}".replace("torch.", ""))
    return str(dtype).removeprefix("torch.")


def encoded(value: Any) -> Any:
    """An argument as the program has it."""
    if is_node(value):
        return f"%{value.name}"
    if isinstance(value, _Register):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return {"str": value}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.device):
        if value.type not in ("cpu", "cuda"):
            raise Unsupported(f"the device {value.type}")
        return {"device": value.type, "index": -1 if value.index is None else value.index}
    if value is torch.strided:
        return {"layout": "strided"}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    raise Unsupported(f"an argument of type {type(value).__name__}")


@dataclass(frozen=True)
class _Register:
    """A register that is no node's."""

    name: str


def _complete(node: fx.Node) -> dict[str, Any]:
    """All arguments of a node by their names, defaults included."""
    found = {}
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def _tensor(value: Any) -> Tensor | None:
    found = value_of(value)
    return found if isinstance(found, Tensor) else None


def _is_symbolic(node: fx.Node) -> bool:
    return isinstance(value_of(node), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))


# ---- The lowering ---------------------------------------------------------------------------------------------------

_INTEGERS: dict[Any, str] = {
    operator.add: "int.add", operator.sub: "int.sub", operator.mul: "int.mul", operator.floordiv: "int.floordiv",
    operator.mod: "int.mod", operator.neg: "int.neg", operator.eq: "int.eq", operator.ne: "int.ne",
    operator.lt: "int.lt", operator.le: "int.le", operator.gt: "int.gt", operator.ge: "int.ge",
    torch.sym_max: "int.max", torch.sym_min: "int.min", max: "int.max", min: "int.min",
    torch.sym_float: "int.float",
}  # fmt: skip


class _Lowering:
    def __init__(self, module: fx.GraphModule, part: bool) -> None:
        self.module, self.part = module, part
        self.inputs: list[dict[str, Any]] = []
        self.constants: list[dict[str, Any]] = []
        self.scalars: list[dict[str, Any]] = []
        self.instructions: list[dict[str, Any]] = []
        self.tensors: list[Tensor] = []
        self.callables: list[Callable[..., Any]] = []
        self.native: set[str] = set()
        self.why_python: list[str] = []
        self.called: list[str] = []
        self.pieces: dict[fx.Node, list[str]] = {}  # of nodes with several results: their registers
        self.same: dict[fx.Node, Any] = {}  # nodes that are what another register is
        self.results: list[Any] | None = None

    def run(self) -> Lowered:
        for node in self.module.graph.nodes:
            try:
                getattr(self, f"_{node.op}")(node)
            except Unsupported as error:
                raise Unsupported(f"{node.name}: {error}") from None
        outputs: list[str] = []
        results: list[Any] = []
        given = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        for result in self.results or []:
            if self.part and result in given:
                results.append(Given(given.index(result)))
            elif is_node(result):
                if not isinstance(value_of(result), Tensor):
                    raise Unsupported(f"a result that is no tensor: {result.name}")
                results.append(Position(len(outputs)))
                outputs.append(self.text(result))
            elif isinstance(result, (int, float, bool, str, type(None))):
                results.append(result)
            else:
                raise Unsupported(f"a result of type {type(result).__name__}")
        program = {
            "version": VERSION,
            "inputs": self.inputs,
            "constants": self.constants,
            "scalars": self.scalars,
            "instructions": self.instructions,
            "outputs": outputs,
        }
        callables, native = tuple(self.callables), frozenset(self.native)
        return Lowered(json.dumps(program), self.tensors, callables, results, native, self.why_python, self.called)

    # ---- Nodes

    def _placeholder(self, node: fx.Node) -> None:
        value = value_of(node)
        number = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
        self.inputs.append({"name": node.name, **({"dtype": "int"} if number else _declared(value))})

    def _get_attr(self, node: fx.Node) -> None:
        tensor = operator.attrgetter(str(node.target))(self.module)
        if not isinstance(tensor, Tensor):
            raise Unsupported("an attribute that is no tensor")
        self.constants.append({"name": node.name, **_declared(tensor)})
        self.tensors.append(tensor)

    def _output(self, node: fx.Node) -> None:
        self.results = list(node.args[0])  # type: ignore[arg-type]

    def _call_method(self, node: fx.Node) -> None:
        self.python(node, f"the method {node.target}")

    def _call_module(self, node: fx.Node) -> None:
        raise Unsupported("a call of a module")

    def _call_function(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            return self._getitem(node)
        if target in _INTEGERS and _is_symbolic(node):
            return self.add(_INTEGERS[target], node, *node.args)
        if not isinstance(target, torch._ops.OpOverload):
            return self.python(node, "no operator")
        if _is_symbolic(node) and str(target) != "aten.sym_size.int":
            raise Unsupported(f"{target} gives a number")
        if target._schema.is_mutable:
            raise Unsupported(f"{target} writes to its argument")
        rule = RULES.get(target._schema.name.replace(add_op_namespace_prefix(""), "strop::"))
        if rule is None or not rule(self, node, _complete(node)):
            self.foreign(node, target, _complete(node))

    def _getitem(self, node: fx.Node) -> None:
        source, index = node.args
        pieces = self.pieces.get(source)  # type: ignore[arg-type]
        if pieces is None or not isinstance(index, int):
            raise Unsupported("an item of what is no list of tensors")
        self.same[node] = _Register(pieces[index])

    # ---- Instructions

    def text(self, value: Any) -> Any:
        """An argument, with what nodes stand for in their places."""
        if is_node(value):
            return self.text(self.same[value]) if value in self.same else encoded(value)
        if isinstance(value, (list, tuple)):
            return [self.text(item) for item in value]
        return encoded(value)

    def outs(self, node: fx.Node) -> list[str]:
        """The registers of a node's results."""
        value = value_of(node)
        if isinstance(value, (tuple, list)):
            if not all(isinstance(item, Tensor) for item in value):
                raise Unsupported(f"{node.target} gives what is no tensor")
            self.pieces[node] = [f"{node.name}.{i}" for i in range(len(value))]
            return self.pieces[node]
        if not isinstance(value, Tensor) and not _is_symbolic(node):
            raise Unsupported(f"{node.target} gives what is no tensor")
        return [node.name]

    def add(self, op: str, node: fx.Node, *args: Any, **more: Any) -> bool:
        """An instruction whose result is the node's."""
        for value in torch.utils._pytree.tree_leaves(value_of(node)):
            if isinstance(value, Tensor):
                _declared(value)
        if op not in ("call", "python"):
            self.native.add(node.name)
        self.instructions.append({"op": op, **more, "args": self.text(args), "out": self.outs(node)})
        return True

    def alias(self, node: fx.Node, of: Any) -> bool:
        """No instruction: the node is what another is."""
        self.same[node] = of
        return True

    def scalar(self, value: float, dtype: torch.dtype) -> _Register:
        """A tensor without dimensions."""
        register = {"name": f"scalar.{len(self.scalars)}", "dtype": dtype_name(dtype), "value": encoded(value)}
        for known in self.scalars:
            if {**known, "name": ""} == {**register, "name": ""}:
                return _Register(known["name"])
        self.scalars.append(register)
        return _Register(register["name"])

    def foreign(self, node: fx.Node, target: torch._ops.OpOverload, arguments: dict[str, Any]) -> bool:
        """A call through the dispatcher, or where a type stands in the way, through Python."""
        schema = target._schema
        types = [type_name(argument.real_type) for argument in schema.arguments]
        results = [type_name(result.real_type) for result in schema.returns]
        missing = [
            f"{a.name} is a {a.real_type}" for a, t in zip(schema.arguments, types, strict=True) if t is None
        ] + [f"a result is a {r.real_type}" for r, t in zip(schema.returns, results, strict=True) if t is None]
        if missing:
            self.python(node, missing[0])
            return True
        overload = schema.overload_name
        more = {"name": schema.name, "overload": overload, "types": types, "results": results}
        return self.add("call", node, *arguments.values(), **more)

    def python(self, node: fx.Node, why: str) -> None:
        """A call of Python: the node's arguments without what is fixed in them."""
        call, given = caller(node)
        name = str(node.target).partition("(")[0]
        self.add("python", node, *given, name=name, callable=len(self.callables))
        self.callables.append(call)
        self.called.append(node.name)
        self.why_python.append(f"{node.name} ({name}): {why}")


def caller(node: fx.Node) -> tuple[Callable[..., Any], list[fx.Node]]:
    """What a node does, as a function of the nodes that it is of, and these."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    given = list(dict.fromkeys(found))
    order = {known: position for position, known in enumerate(given)}
    target, args, kwargs = node.target, node.args, node.kwargs

    def call(*values: Any) -> Any:
        a, k = fx.node.map_arg((args, kwargs), lambda n: values[order[n]])
        return getattr(a[0], target)(*a[1:], **k) if isinstance(target, str) else target(*a, **k)

    return call, given


def _declared(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise Unsupported(f"an input that is a {type(value).__name__}")
    if value.layout is not torch.strided or value.device.type not in ("cpu", "cuda"):
        raise Unsupported(f"a tensor on {value.device.type}, {value.layout}")
    if value.dim() > MOST_DIMENSIONS:
        raise Unsupported(f"{value.dim()} dimensions")
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return {"dtype": dtype_name(value.dtype), "device": value.device.type, "shape": shape}


# ---- Rules ----------------------------------------------------------------------------------------------------------
# Of an operator: emit what it becomes and return True, or return False to have it called through the dispatcher.

Rule = Callable[[_Lowering, fx.Node, dict[str, Any]], bool]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def _overload(node: fx.Node) -> str:
    return node.target._schema.overload_name  # type: ignore[union-attr]


@rule("aten::sym_size")
def _size(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("size", node, a["self"], a["dim"])


@rule("aten::reshape", "aten::view", "aten::_unsafe_view")
def _reshape(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    size = a.get("shape", a.get("size"))
    return isinstance(size, (list, tuple)) and to.add("reshape", node, a["self"], size)


@rule("aten::clone", "aten::contiguous")
def _contiguous(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("contiguous", node, a["self"])


@rule("aten::alias", "aten::detach", "aten::lift_fresh_copy")
def _nothing(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.alias(node, a["self"])


@rule("aten::transpose")
def _transpose(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return _overload(node) == "int" and to.add("transpose", node, a["self"], a["dim0"], a["dim1"])


@rule("aten::permute")
def _permute(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("permute", node, a["self"], a["dims"])


@rule("aten::unsqueeze")
def _unsqueeze(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("unsqueeze", node, a["self"], a["dim"])


@rule("aten::squeeze")
def _squeeze(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    if _overload(node) == "":
        return to.add("squeeze", node, a["self"])
    return _overload(node) in ("dim", "dims") and to.add("squeeze", node, a["self"], a["dim"])


@rule("aten::expand")
def _expand(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("expand", node, a["self"], a["size"])


@rule("aten::expand_as")
def _expand_as(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("expand_as", node, a["self"], a["other"])


@rule("aten::select")
def _select(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return _overload(node) == "int" and to.add("select", node, a["self"], a["dim"], a["index"])


@rule("aten::slice")
def _slice(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return _overload(node) == "Tensor" and to.add("slice", node, *a.values())


@rule("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unbind")
def _split(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    sizes = a.get("split_size", a.get("split_sizes"))
    if sizes is None:
        name = "chunk" if "chunks" in a else "unbind"
        return to.add(name, node, *a.values())
    name = "split_with_sizes" if isinstance(sizes, (list, tuple)) else "split"
    return to.add(name, node, a["self"], sizes, a["dim"])


@rule("aten::t")
def _t(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return to.add("t", node, a["self"])


# ---- Numbers in the places of tensors


def _scalar_dtype(value: Any, like: Tensor) -> torch.dtype:
    """In which a number meets a tensor as it does in PyTorch, where it counts less than the tensor's own dtype."""
    if isinstance(value, bool):
        return torch.bool
    if like.dim() == 0:
        return like.dtype if like.is_floating_point() or isinstance(value, int) else torch.float32
    if like.dtype == torch.float64:
        return torch.float64
    if like.is_floating_point() or isinstance(value, float):
        return torch.float32  # what eager computes with, for half precision too
    return torch.int64


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and not is_node(value)


def _with_scalars(
    to: _Lowering, node: fx.Node, target: torch._ops.OpOverload, arguments: dict[str, Any], *names: str
) -> bool:
    """A call of another overload, with the numbers among the named arguments as tensors; False where that differs."""
    like = _tensor(arguments["self"]) if is_node(arguments.get("self")) else None
    like = like if like is not None else _tensor(arguments.get("other"))
    wanted = value_of(node)
    if not isinstance(wanted, Tensor):
        return False
    made: dict[str, Any] = {}
    fakes = {name: value_of(value) for name, value in arguments.items()}
    for name in names:
        value = arguments[name]
        if not _is_number(value):
            if value is not None and _tensor(value) is None:
                return False
            continue
        dtype = _scalar_dtype(value, like) if like is not None else wanted.dtype
        if dtype not in _SCALARS:
            return False
        made[name] = (value, dtype)
        with _fake_mode(wanted):
            fakes[name] = torch.empty((), dtype=dtype)
    with _fake_mode(wanted), torch.no_grad():
        try:
            given = target(**fakes)
        except Exception:
            return False
    if given.dtype != wanted.dtype or given.device != wanted.device:
        return False
    registers = {name: to.scalar(*scalar) for name, scalar in made.items()}
    return to.foreign(node, target, {**arguments, **registers})


def _fake_mode(value: Tensor) -> Any:
    mode = getattr(value, "fake_mode", None)
    return mode if mode is not None else torch.no_grad()


aten = torch.ops.aten


@rule("aten::mul", "aten::div", "aten::eq", "aten::ne", "aten::lt", "aten::le", "aten::gt", "aten::ge",
      "aten::bitwise_and", "aten::bitwise_or", "aten::floor_divide", "aten::remainder")  # fmt: skip
def _binary(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    target = getattr(aten, node.target._schema.name.removeprefix("aten::"))  # type: ignore[union-attr]
    overload = {"Scalar": "Tensor", "Scalar_mode": "Tensor_mode"}.get(_overload(node), _overload(node))
    overload = overload or "default"
    return _is_number(a.get("other")) and _with_scalars(to, node, getattr(target, overload), a, "other")


@rule("aten::add", "aten::sub", "aten::rsub")
def _sum(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    """On the CPU the runtime's own; the dispatcher's has a factor of the type Scalar."""
    wanted, first, second = value_of(node), a["self"], a["other"]
    if not isinstance(wanted, Tensor) or a.get("alpha", 1) != 1:
        return False
    if wanted.device.type != "cpu" or wanted.dtype not in _POINTWISE:
        return False
    operands = []
    for value in (first, second):
        tensor = _tensor(value)
        if tensor is None and not _is_number(value):
            return False
        if tensor is not None and (tensor.dtype != wanted.dtype or tensor.device != wanted.device):
            return False
        operands.append(value if tensor is not None else to.scalar(value, wanted.dtype))
    name = node.target._schema.name  # type: ignore[union-attr]
    if name == "aten::rsub":
        operands.reverse()
    return to.add("cpu.add" if name == "aten::add" else "cpu.sub", node, *operands)


@rule("aten::pow")
def _pow(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    if _overload(node) != "Tensor_Scalar":
        return False
    x, wanted = _tensor(a["self"]), value_of(node)
    if a["exponent"] == 2 and x is not None and x.dtype == wanted.dtype:
        return to.foreign(node, aten.mul.Tensor, {"self": a["self"], "other": a["self"]})
    return _with_scalars(to, node, aten.pow.Tensor_Tensor, a, "exponent")


@rule("aten::masked_fill")
def _masked_fill(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return _overload(node) == "Scalar" and _with_scalars(to, node, aten.masked_fill.Tensor, a, "value")


@rule("aten::where")
def _where(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return "Scalar" in _overload(node) and _with_scalars(to, node, aten.where.self, a, "self", "other")


@rule("aten::clamp", "aten::clamp_min", "aten::clamp_max")
def _clamp(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    if _overload(node) != "" or value_of(node).device.type != "cpu":
        return False
    target = getattr(aten, node.target._schema.name.removeprefix("aten::")).Tensor  # type: ignore[union-attr]
    return _with_scalars(to, node, target, a, *(name for name in ("min", "max") if name in a))


# ---- New tensors


def _filled(to: _Lowering, node: fx.Node, value: Any, size: Any, like: Any = None) -> bool:
    """One number seen in every place: the graph writes nowhere."""
    wanted = value_of(node)
    if not _is_number(value) or wanted.dtype not in _SCALARS or wanted.device.type != "cpu":
        return False
    scalar = to.scalar(value, wanted.dtype)
    return to.add("expand", node, scalar, size) if like is None else to.add("expand_as", node, scalar, like)


@rule("aten::full", "aten::ones", "aten::zeros", "aten::new_full", "aten::new_ones", "aten::new_zeros")
def _full(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    value = a["fill_value"] if "fill_value" in a else float("ones" in str(node.target))
    return _filled(to, node, _as(value, value_of(node)), a["size"])


@rule("aten::full_like", "aten::ones_like", "aten::zeros_like")
def _full_like(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    value = a["fill_value"] if "fill_value" in a else float("ones" in str(node.target))
    return _filled(to, node, _as(value, value_of(node)), None, a["self"])


def _as(value: Any, like: Tensor) -> Any:
    return int(value) if _is_number(value) and not like.is_floating_point() else value


@rule("aten::scalar_tensor")
def _scalar_tensor(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    return _filled(to, node, _as(a["s"], value_of(node)), [])


@rule("aten::arange")
def _arange(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    wanted = value_of(node)
    bounds = [a.get("start", 0), a["end"], a.get("step", 1)]
    whole = all(isinstance(value_of(bound), (int, torch.SymInt)) for bound in bounds)
    if not whole or wanted.device.type != "cpu" or wanted.dtype not in (torch.int32, torch.int64, torch.float32):
        return False
    return to.add("cpu.range", node, *bounds, wanted.dtype)


@rule("aten::_to_copy", "aten::type_as")
def _cast(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    x, wanted = _tensor(a["self"]), value_of(node)
    if x is None or x.device != wanted.device:
        return False
    return to.alias(node, a["self"]) if x.dtype == wanted.dtype else to.add("cast", node, a["self"], wanted.dtype)


# ---- strop's operators


def _has(value: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
    tensor = _tensor(value)
    return value is None or (tensor is not None and tensor.dtype in dtypes)


@rule("strop::layer_norm", "strop::add_layer_norm", "strop::rms_norm", "strop::add_rms_norm")
def _norm(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    x, residual = _tensor(a["x"]), a["residual"]
    parameters = [a["weight"], a.get("bias")]
    if not all(_has(value, FLOATS) for value in (a["x"], *parameters)) or not _has(residual, (x.dtype,)):  # type: ignore[union-attr]
        return False
    same_shape = residual is None or _tensor(residual).dim() == x.dim()  # type: ignore[union-attr]
    kind = "strop.rms_norm" if "rms" in str(node.target) else "strop.layer_norm"
    return same_shape and to.add(kind, node, a["x"], residual, *parameters, a["eps"])


@rule("strop::embed_norm")
def _embed_norm(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    tables, ids = a["tables"], a["ids"]
    first = _tensor(tables[0])
    whole = all(_has(i, (torch.int32, torch.int64)) for i in ids)
    floats = all(_has(t, (first.dtype,)) for t in tables) and _has(tables[0], FLOATS)  # type: ignore[union-attr]
    fits = len(tables) <= 3 and whole and floats and _has(a["weight"], FLOATS) and _has(a["bias"], FLOATS)
    return fits and to.add("strop.embedding_norm", node, tables, ids, a["weight"], a["bias"], a["eps"])


@rule("strop::attention")
def _attention(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    q, k, v = (_tensor(a[name]) for name in ("query", "key", "value"))
    assert q is not None and k is not None and v is not None
    size = q.shape[-1]
    fits = isinstance(size, int) and size % 8 == 0 and 8 <= size <= 256 and v.shape[-1] == size
    if not fits or q.dtype not in FLOATS or {k.dtype, v.dtype} != {q.dtype}:
        return False
    mask = _tensor(a["mask"])
    if mask is not None and (mask.dtype not in (torch.bool, torch.float64, *FLOATS) or mask.dim() > 4):
        return False
    if a["padding"] is not None and (
        not _has(a["padding"], (torch.bool,)) or (mask is not None and mask.dtype == torch.bool)
    ):
        return False
    bounded = a["window_left"] >= 0 or a["window_right"] >= 0
    if bounded and not (isinstance(a["query_offset"], int) and a["query_offset"] == 0):
        return False
    names = ("query", "key", "value", "mask", "padding", "scale", "window_left", "window_right")
    return to.add("strop.attention", node, *(a[name] for name in names))


@rule("strop::attention_packed")
def _attention_packed(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    q, k, v = (_tensor(a[name]) for name in ("query", "key", "value"))
    assert q is not None and k is not None and v is not None
    size = q.shape[-1]
    fits = q.dim() == 3 and isinstance(size, int) and size % 8 == 0 and 8 <= size <= 256 and v.shape[-1] == size
    if not fits or q.dtype not in FLOATS or {k.dtype, v.dtype} != {q.dtype}:
        return False
    # The operator has 0 in rows behind the last sequence, the runtime nothing.
    whole = _has(a["cu"], (torch.int32, torch.int64))
    return to.part and whole and to.add("strop.attention_packed", node, *a.values())


@rule("strop::rotary")
def _rotary(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    x, cos, sin = (_tensor(a[name]) for name in ("x", "cos", "sin"))
    assert x is not None and cos is not None and sin is not None
    if x.dim() not in (3, 4) or not all(_has(a[name], FLOATS) for name in ("x", "cos", "sin")):
        return False
    size, heads = x.shape[-1], 2 if x.dim() == 3 else 3  # counted from the end
    fits = all(
        t.dim() <= x.dim() and t.shape[-1] == size and (t.dim() < heads or t.shape[-heads] == 1) for t in (cos, sin)
    )
    return isinstance(size, int) and size % 2 == 0 and fits and to.add("strop.rotary", node, *a.values())


def _product_runs(node: fx.Node, a: dict[str, Any], *tensors: str) -> bool:
    """Whether these are multiplied as they are, without a cast, and the epilogue takes the product."""
    dtype = value_of(node).dtype
    return dtype in FLOATS and all(_has(a[name], (dtype,)) for name in tensors)


@rule("strop::linear_act")
def _linear_act(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    residual = _tensor(a["residual"])
    fits = residual is None or residual.dim() == value_of(node).dim()
    return (
        fits
        and _product_runs(node, a, "x", "weight", "bias", "residual")
        and to.add("strop.linear_act", node, *a.values())
    )


@rule("strop::linear_gated", "strop::linear_gated_pair")
def _linear_gated(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    tensors = [name for name in a if name != "activation"]
    name = "strop.linear_gated_pair" if "pair" in str(node.target) else "strop.linear_gated"
    return _product_runs(node, a, *tensors) and to.add(name, node, *a.values())


@rule("strop::gather_rows", "strop::scatter_rows")
def _rows(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    x, index = a["x"], a["rows"] if "rows" in a else a["where"]
    if a.get("repeated"):
        return False
    fits = _has(index, (torch.int32, torch.int64)) and _tensor(index).dim() == 1 and _tensor(x).dim() >= 1  # type: ignore[union-attr]
    name = "strop.gather_rows" if "gather" in str(node.target) else "strop.scatter_rows"
    return fits and to.add(name, node, x, index)


@rule("strop::token_index")
def _token_index(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    mask = _tensor(a["mask"])
    return mask is not None and mask.dim() == 2 and to.add("strop.token_index", node, a["mask"])


@rule("strop::mean_pool")
def _mean_pool(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    x, mask = _tensor(a["x"]), _tensor(a["mask"])
    fits = x is not None and mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape and x.dtype in FLOATS
    return fits and to.add("strop.mean_pool", node, *a.values())


@rule("strop::mean_pool_packed")
def _mean_pool_packed(to: _Lowering, node: fx.Node, a: dict[str, Any]) -> bool:
    x = _tensor(a["x"])
    fits = x is not None and x.dim() == 2 and x.dtype in FLOATS and _has(a["cu"], (torch.int32, torch.int64))
    return fits and to.add("strop.mean_pool_packed", node, *a.values())
