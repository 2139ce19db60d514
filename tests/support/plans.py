"""Plans of optimized models, held against the graphs that they are made of."""

from __future__ import annotations

from typing import Any

import strop
import torch
from strop.rewrite.capture import Captured
from strop.rewrite.packed import as_inputs, pack
from torch import Tensor, nn


def captured_by(model: nn.Module) -> list[Captured]:
    """The graphs of an optimized model, each of which runs as a plan."""
    found = [program.captured for program in model.forward.programs.values()]
    assert found and all(c is not None and c.plan is not None and not c.notes for c in found), str(strop.report(model))
    return found


def agree(given: list[Any], wanted: list[Any], what: Any) -> None:
    """A kernel in the place of its implementation in PyTorch rounds elsewhere: about 1e-6 of the largest value each."""
    assert len(given) == len(wanted)
    for a, b in zip(given, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and not a.requires_grad, what
        scale = b.abs().max().clamp(min=1e-30) if b.numel() else 1
        assert not b.numel() or float((a - b).abs().max() / scale) <= 2e-5, what


def body_agrees(runner: Any, inputs: list[Tensor], what: Any) -> None:
    """The body of a packed model, as a plan and as a graph, on the real tokens of a call."""
    ragged, found = runner.ragged, runner.locate(inputs)
    assert found is not None, what
    values, sized = iter(ragged.before(*inputs)), iter(ragged.sized(*inputs))
    packed = [
        pack(next(sized if by_size else values), how, found)
        for how, by_size in zip(ragged.packs, ragged.by_size, strict=True)
    ]
    arguments = (*packed, found.cu, found.first, found.longest)
    with torch.no_grad():
        agree(runner.body(*arguments), list(ragged.body(*arguments)), what)


def all_of_it_is_plans(runner: Any) -> bool:
    """Whether every graph of a packed model that computes something is a plan."""
    parts = ("before", "sized", "after")
    return runner.body is runner.plans["body"] and all(
        part in runner.plans or as_inputs(getattr(runner.ragged, part)) is not None for part in parts
    )
