"""Plan: a rewritten graph that runs in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .. import _C
from .lower import Given, Lowered, Position, Unsupported, lower

__all__ = ["DEVICES", "Plan", "Stale", "Unsupported"]

DEVICES = ("cpu", "cuda")  # on which plans run


class Stale(RuntimeError):
    """A parameter has another dtype, device or shape than when the plan was made."""


class Plan:
    """A graph as a program for the runtime: called with what the graph takes, it gives a list of the same results.

    Inputs are tensors, or numbers. It holds the module's own parameters and sees what is written to them. Any number of
    threads may call it. Results are new tensors, without a gradient.
    """

    def __init__(self, module: fx.GraphModule, part: bool = False, lowered: Lowered | None = None) -> None:
        """Unsupported says why a graph cannot be a plan. `part` is as in lower(), whose result may be given."""
        lowered = lowered or lower(module, part)
        self.lowered = lowered
        self.module = module  # for calls that PyTorch's dispatcher has to see
        self.text = lowered.text
        self.native = lowered.native  # names of the graph's nodes that strop computes itself
        self.why_python = lowered.why_python  # operations that call Python, and why
        self._results = lowered.results
        self._plain = all(isinstance(result, Position) for result in self._results)
        self._capsule = _C.plan_load(lowered.text, lowered.constants, lowered.callables)

    def __call__(self, *inputs: Tensor | int) -> list[Any]:
        outputs = _C.plan_run(self._capsule, inputs)
        if outputs is None:
            raise Stale("the parameters are not what they were when the plan was made")
        if outputs is NotImplemented:
            with torch.no_grad():
                return list(self.module(*inputs))
        if self._plain:
            return outputs
        return [self._result(r, inputs, outputs) for r in self._results]

    def _result(self, result: Any, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> Any:
        if isinstance(result, Given):
            return inputs[result.index]
        return outputs[result.index] if isinstance(result, Position) else result

    def kept_bytes(self) -> int:
        """Memory on the CPU that is kept for the next call."""
        return _C.plan_kept_bytes(self._capsule)
