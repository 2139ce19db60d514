"""Makes an exported graph functional: nothing in it writes to a tensor, and what may be a view is one or is none.

`ExportedProgram.run_decompositions({})` does the same by tracing the graph once more, which takes longer than the
export itself. Few operations of a transformer's graph need it; where one does that is not known here, it is left to
PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .patterns import operation, value_of

aten = torch.ops.aten


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def make_functional(graph: fx.Graph) -> bool:
    """Whether it could be done; if not, the graph is of no use any more."""
    shared = {node for node in graph.nodes if _may_share(node)}
    for node in graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
        if not isinstance(node.target, torch._ops.OpOverload):  # getitem, and what is done to sizes
            continue
        name = operation(node.target)
        if name in _RULES:
            new = _RULES[name](node)
        elif node.target._schema.is_mutable:
            new = _out_of_place(node, shared)
        elif _stays(node.target):
            continue
        else:
            new = None
        if new is None:
            return False
        writes = node.target._schema.is_mutable and name not in _RULES
        node.target, node.args, node.kwargs = new
        if writes:  # whoever reads it later reads what was written
            _give_later_users(node.args[0], node)  # type: ignore[arg-type]
            shared.discard(node)
    return True


def _give_later_users(written: fx.Node, node: fx.Node) -> None:
    later, found = set(), False
    for other in node.graph.nodes:
        if found:
            later.add(other)
        found = found or other is node
    written.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _stays(target: torch._ops.OpOverload) -> bool:
    """Whether PyTorch's decompositions leave an operator as it is, too: it is a basic one, or a composite that neither
    gives a view nor may give one."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd"):
        return True
    try:
        from torch._decomp import _should_decompose_because_unsafe_op as unsafe
    except ImportError:
        return False
    return not unsafe(target) and all(a.alias_info is None for a in target._schema.arguments)


def _may_share(node: fx.Node) -> bool:
    """Whether a node may give the memory of an argument."""
    if node.op != "call_function":
        return node.op != "output"
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    if operation(node.target) == "_to_copy":
        before, after = (value_of(n) for n in (node.args[0], node))
        return before.dtype == after.dtype and before.device == after.device
    views = any(result.alias_info is not None for result in node.target._schema.returns)
    return views or operation(node.target) in _RULES or not _stays(node.target)


def _out_of_place(node: fx.Node, shared: set[fx.Node]) -> Call | None:
    """An operation that writes to its first argument as the one that does not; None where a view may see the write."""
    schema = node.target._schema  # type: ignore[union-attr]
    name = schema.name.removeprefix("aten::")
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    x = node.args[0] if node.args else None
    if len(written) != 1 or schema.arguments[0].alias_info is None or not name.endswith("_"):
        return None
    if not isinstance(x, fx.Node) or x in shared or any(user in shared for user in x.users if user is not node):
        return None
    target = getattr(getattr(aten, name[:-1], None), schema.overload_name or "default", None)
    before, after = value_of(x), value_of(node)
    if target is None or before.dtype != after.dtype or before.dim() != after.dim():
        return None
    return (target, node.args, dict(node.kwargs)) if _keeps_dtype(target, node) else None


def _keeps_dtype(target: Any, node: fx.Node) -> bool:
    """Whether the result has its first argument's dtype of itself, which it is given when written to that."""
    dtypes = {value.dtype for value in map(value_of, node.all_input_nodes) if isinstance(value, Tensor)}
    numbers = [a for a in node.args[1:] if isinstance(a, float)]
    x: Tensor = value_of(node.args[0])
    return (
        dtypes == {x.dtype}
        and (x.is_floating_point() or not numbers)
        and x.dtype != torch.bool
        or (operation(target) == "masked_fill")
    )


# ---- What may be a view ---------------------------------------------------------------------------------------------


def _same(node: fx.Node) -> Call:
    return aten.alias.default, (node.args[0],), {}


def _dropout(node: fx.Node) -> Call | None:
    return _same(node) if len(node.args) == 3 and node.args[2] is False else None


def _to(node: fx.Node) -> Call | None:
    if str(node.target) == "aten._to_copy.default":
        return node.target, node.args, dict(node.kwargs)
    if not str(node.target).startswith("aten.to."):
        return None
    before, after = (value_of(n) for n in (node.args[0], node))
    kwargs = {
        what: getattr(after, what) for what in ("dtype", "device") if getattr(after, what) != getattr(before, what)
    }
    return (aten._to_copy.default, (node.args[0],), kwargs) if kwargs else _same(node)


def _contiguous(node: fx.Node) -> Call:
    return aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}


def _reshape(node: fx.Node) -> Call | None:
    return (aten.reshape.default, node.args, {}) if len(node.args) == 2 else None


def _chunk(node: fx.Node) -> Call | None:
    dim = node.args[2] if len(node.args) > 2 else 0
    sizes = [value.shape[dim] for value in value_of(node)]
    whole = all(isinstance(size, int) for size in sizes)
    return (aten.split.Tensor, (node.args[0], sizes[0], dim), {}) if whole else None


_RULES: dict[str | None, Callable[[fx.Node], Call | None]] = {
    "dropout": _dropout, "_to_copy": _to, "contiguous": _contiguous, "chunk": _chunk, "detach_": _same,
    "reshape": _reshape,
}  # fmt: skip
