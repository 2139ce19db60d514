"""The parameters and buffers that a graph was made of, and whether its module has them still."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import _C

Place = tuple[dict[str, Any], str, Tensor]  # the dict of a module, the name in it, and what is there


class Weights:
    """What was where when it was made, and in which memory; with `contents` also whether it was written to since.

    Writes through `Tensor.data` are not counted by PyTorch, and not seen here.
    """

    def __init__(self, places: list[Place], contents: bool) -> None:
        self.places = places  # the capsule borrows what they hold
        self.capsule = _C.weights_load(places, contents)

    def same(self) -> bool:
        """Whether nothing has changed."""
        return _C.weights_same(self.capsule)


def places_of(model: nn.Module) -> list[Place]:
    """All parameters and buffers of a module."""
    found = []
    for module in model.modules():
        for where in (module._parameters, module._buffers):
            found += [(where, name, tensor) for name, tensor in where.items() if tensor is not None]
    return found
