"""Linear layers with what is computed of their result at once: an activation, or a gate and its product.

Every linear layer becomes `strop::linear_act` first, GPT-2's Conv1D among them; the rest starts from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..ops import ops
from ..patterns import Match, Pattern, aten, same_shape
from ..registry import Rule

# ---- One operator for all of them -----------------------------------------------------------------------------------


def linear(x: Tensor, w: Tensor, b: Tensor | None):
    return aten.linear(x, w, b)


def conv1d(x: Tensor, w: Tensor, b: Tensor, rows, shape):
    return aten.reshape(aten.addmm(b, aten.reshape(x, rows), w), shape)


def _conv1d_fits(match: Match) -> bool:
    x, w, out = match.val("x"), match.val("w"), match.node.meta["val"]
    wanted = torch.empty((*x.shape[:-1], w.shape[1]), device="meta") if not _symbolic(x) else None
    if wanted is not None:
        return same_shape(out, wanted) and x.shape[-1] == w.shape[0]
    same = out.dim() == x.dim() and all(str(a) == str(b) for a, b in zip(out.shape[:-1], x.shape[:-1], strict=True))
    return same and x.shape[-1] == w.shape[0] and out.shape[-1] == w.shape[1]


def _symbolic(x: Tensor) -> bool:
    return any(isinstance(size, torch.SymInt) for size in x.shape)


# ---- Activations and how they are spelled ---------------------------------------------------------------------------
# Constants are parameters, c0 to c3; what they must be is looked at where a pattern is found.

Spelling = tuple[Callable[..., Any], tuple[float, ...]]
_GELU_TANH = (0.5, 1.0, math.sqrt(2 / math.pi), 0.044715)
ACTIVATIONS: dict[str, list[Spelling]] = {
    "gelu": [
        (lambda y, c: aten.gelu(y), ()),
        (lambda y, c: y * c[0] * (aten.erf(y / c[2]) + c[1]), (0.5, 1.0, math.sqrt(2))),
        (lambda y, c: y * c[0] * (aten.erf(y * c[2]) + c[1]), (0.5, 1.0, math.sqrt(0.5))),
        (lambda y, c: y * ((aten.erf(y / c[2]) + c[1]) * c[0]), (0.5, 1.0, math.sqrt(2))),
    ],
    "gelu_tanh": [
        (lambda y, c: aten.gelu(y, approximate="tanh"), ()),
        (lambda y, c: y * c[0] * (aten.tanh((y + aten.pow(y, 3.0) * c[3]) * c[2]) + c[1]), _GELU_TANH),
        (lambda y, c: y * c[0] * (aten.tanh((y + aten.pow(y, 3) * c[3]) * c[2]) + c[1]), _GELU_TANH),
        # y · √(2/π) · (1 + 0.044715 y²), as gelu_fast has it
        (lambda y, c: y * c[0] * (aten.tanh(y * c[2] * (y * c[3] * y + c[1])) + c[1]), _GELU_TANH),
    ],
    "relu": [(lambda y, c: aten.relu(y), ())],
    "silu": [(lambda y, c: aten.silu(y), ()), (lambda y, c: y * aten.sigmoid(y), ())],
    "tanh": [(lambda y, c: aten.tanh(y), ())],
}


def _constants_fit(wanted: tuple[float, ...]) -> Callable[[Match], bool | str]:
    def fit(match: Match) -> bool | str:
        given = [match.values().get(f"c{i}", c) for i, c in enumerate(wanted)]
        if all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(given, wanted, strict=True)):
            return True
        return f"its constants are {given}, not {list(wanted)}"

    return fit


def _activated(spelling: Callable[..., Any]) -> Callable[..., Any]:
    def pattern(x: Tensor, w: Tensor, b: Tensor | None, c0: float, c1: float, c2: float, c3: float):
        return spelling(ops.linear_act(x, w, b), (c0, c1, c2, c3))

    return pattern


def _linear_act(activation: str) -> Callable[..., Any]:
    return lambda x, w, b: ops.linear_act(x, w, b, activation)


# ---- Gates ----------------------------------------------------------------------------------------------------------

_HALVES: dict[str, Callable[..., Any]] = {
    "split": lambda y, n: aten.split.Tensor(y, n, -1),
    "split_with_sizes": lambda y, n: aten.split_with_sizes(y, [n, n], -1),
    "chunk": lambda y, n: aten.chunk(y, 2, -1),
}


def _gated(halves: Callable[..., Any], spelling: Callable[..., Any]) -> Callable[..., Any]:
    def pattern(x: Tensor, w: Tensor, b: Tensor | None, n: int, c0: float, c1: float, c2: float, c3: float):
        parts = halves(ops.linear_act(x, w, b), n)
        return spelling(parts[0], (c0, c1, c2, c3)) * parts[1]

    return pattern


def _gated_fits(constants: tuple[float, ...]) -> Callable[[Match], bool | str]:
    fit = _constants_fit(constants)

    def both(match: Match) -> bool | str:
        columns = match.val("w").shape[0]
        halves = columns % 2 == 0 and match.values().get("n", columns // 2) == columns // 2
        return fit(match) if halves else "its columns are not cut in halves"

    return both


def _gated_pair(spelling: Callable[..., Any]) -> Callable[..., Any]:
    def pattern(
        x: Tensor, w: Tensor, b: Tensor | None, up: Tensor, up_b: Tensor | None,
        c0: float, c1: float, c2: float, c3: float,
    ):  # fmt: skip
        return spelling(ops.linear_act(x, w, b), (c0, c1, c2, c3)) * ops.linear_act(x, up, up_b)

    return pattern


def _pair_fits(constants: tuple[float, ...]) -> Callable[[Match], bool | str]:
    fit = _constants_fit(constants)
    return lambda match: (
        fit(match) if match.val("w").shape == match.val("up").shape else "gate and value differ in size"
    )


def _linear_gated(activation: str) -> Callable[..., Any]:
    return lambda x, w, b: ops.linear_gated(x, w, b, activation)


def _linear_gated_pair(activation: str) -> Callable[..., Any]:
    return lambda x, w, b, up, up_b: ops.linear_gated_pair(x, w, b, up, up_b, activation)


def rules() -> Iterator[Rule]:
    yield Rule("linear", Pattern(linear), lambda x, w, b: ops.linear_act(x, w, b))
    yield Rule(
        "linear", Pattern(conv1d), lambda x, w, b: ops.linear_act(x, aten.transpose.int(w, 0, 1), b), _conv1d_fits
    )
    spellings = [(name, *spelling) for name, several in ACTIVATIONS.items() for spelling in several]
    for name, spelling, constants in spellings:
        for cut, halves in _HALVES.items():
            pattern = Pattern(_gated(halves, spelling), f"linear_gated ({name}, {cut})")
            yield Rule("linear, gated", pattern, _linear_gated(name), _gated_fits(constants))
        pattern = Pattern(_gated_pair(spelling), f"linear_gated_pair ({name})")
        yield Rule("linear, gated", pattern, _linear_gated_pair(name), _pair_fits(constants))
    for name, spelling, constants in spellings:
        pattern = Pattern(_activated(spelling), f"linear_act ({name})")
        yield Rule("linear with activation", pattern, _linear_act(name), _constants_fit(constants))
