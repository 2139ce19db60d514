"""Has a graph compute everything where its inputs are.

Models make positions and constants on the CPU and copy them to the device at each call, as torch.arange and
torch.tensor do where nobody names a device. Such a copy has the device wait for the host, and cannot be part of a CUDA
graph.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

from .patterns import operation, value_of


def on_one_device(module: fx.GraphModule, own: Collection[str] = ()) -> bool:
    """Moves what is made on the CPU to the inputs' device; whether there was any.

    A graph that takes something to the CPU, or gives a result there, stays as it is, and so does one that has one of
    the model's `own` tensors there.
    """
    graph = module.graph
    given = [value_of(node) for node in graph.nodes if node.op == "placeholder"]
    devices = {value.device for value in given if isinstance(value, Tensor)}
    if len(devices) != 1 or devices == {torch.device("cpu")}:
        return False
    (device,) = devices
    moved = [node for node in graph.nodes if node.op != "output" and _is_elsewhere(value_of(node), device)]
    results = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    if not moved or any(node in results or node.target in own for node in moved):
        return False
    checks = [node for node in graph.nodes if operation(node.target) == "_assert_tensor_metadata"]
    for node in moved:
        if any(isinstance(value_of(n), Tensor) and n not in moved for n in node.all_input_nodes):
            return False
    mode = detect_fake_mode([value_of(node) for node in graph.nodes if isinstance(value_of(node), Tensor)])
    assert mode is not None
    for node in checks:
        if node.args[0] in moved:  # that they are on the CPU
            graph.erase_node(node)
    for node in moved:
        if node.op == "get_attr":
            setattr(module, node.target, getattr(module, node.target).to(device))
        elif isinstance(node.target, torch._ops.OpOverload):
            if any(argument.name == "device" for argument in node.target._schema.arguments):
                node.kwargs = {**node.kwargs, "device": device}
        with mode:
            node.meta["val"] = value_of(node).to(device)
    return True


def _is_elsewhere(value: Any, device: torch.device) -> bool:
    return isinstance(value, Tensor) and value.device != device
