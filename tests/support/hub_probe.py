"""What test_hub.py runs in a process of its own: the Hub's copy of the package beside the package, without a network.

    hub_probe.py FOLDER DEVICE ORDER KERNEL...

ORDER is hub-first or pip-first: which of the two is imported before the other. A KERNEL is `repository` (kernels
chooses a variant in FOLDER), `cpu` (the same, for that backend), `override` (by name through LOCAL_KERNELS) or the name
of a variant's folder. Prints, for each, a JSON object: the folder that it was loaded from, its module, its operators'
namespace, how many results were compared with the package's, how many functions were compiled (where the Hub comes
first), and which results differed in any bit.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER, DEVICE, ORDER, *KERNELS = sys.argv[1:]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LOCAL_KERNELS"] = f"org/strop={FOLDER}"


class NoSocket(socket.socket):
    def __init__(self, *args: Any, **options: Any) -> None:
        raise OSError("a socket was asked for")


socket.socket = NoSocket  # type: ignore[misc]

import torch  # noqa: E402
from kernels import get_kernel, get_local_kernel  # noqa: E402


def load(kernel: str) -> ModuleType:
    if kernel == "override":
        return get_kernel("org/strop", version=0)
    if kernel in ("repository", "cpu"):
        return get_local_kernel(Path(FOLDER), backend="cpu" if kernel == "cpu" else None)
    return get_local_kernel(Path(FOLDER) / "build" / kernel)


def load_all() -> list[ModuleType]:
    return [load(kernel) for kernel in KERNELS]


loaded = load_all() if ORDER == "hub-first" else []
sys.path.insert(0, str(Path(__file__).parent.parent))
from support.cases import any_case, clone, generator  # noqa: E402
from support.functions import AUTOGRAD, NINE, Function, same  # noqa: E402
from support.reference import Result  # noqa: E402

loaded = loaded or load_all()


def on_hub(kernel: ModuleType, fn: Function) -> Function:
    """The function, taken from the Hub's copy."""
    return type("HubFunction", (Function,), {"function": property(lambda self: getattr(kernel, self.name))})(
        fn.family, fn.variant
    )


def cases(fn: Function, device: str) -> list[Any]:
    g = generator("hub", fn.name)
    options = [
        {"dtype": dtype, "beta": beta, "mask": mask, "small": small}
        for dtype in (torch.float32, torch.bfloat16)
        for beta in (0.1, 0.0)
        for mask in ("all", "random", "none")
        for small in (False, True)
    ]
    options.append({"dtype": torch.float16, "mask_dtype": torch.int64, "beta": 0.2})
    if not fn.is_policy:
        options = [o for o in options if o["beta"]]
    return [any_case(fn.family, g, device=device, **o) for o in options]


def compiled(kernel: ModuleType, fn: Function, backend: str) -> bool:
    """Whether the Hub's function as one compiled graph, backward included, gives what the package's gives eagerly."""
    torch._dynamo.reset()
    function = getattr(kernel, fn.name)
    case = any_case(fn.family, generator("hub compiled"), device=DEVICE)
    leaf = case.leaf.detach().clone().requires_grad_()

    @torch.compile(fullgraph=True, backend=backend)
    def call(first: torch.Tensor) -> torch.Tensor:
        return function(first, *case.args()[1:], **case.kwargs()) * 2.0

    loss = call(leaf)
    loss.backward()
    return same(Result(loss.detach() / 2, leaf.grad / 2), fn(case))


def examine(kernel: ModuleType) -> dict[str, Any]:
    folder = Path(kernel.__file__).parent
    device = DEVICE if kernel._C.build_info()["cuda"] else "cpu"
    compared, different = 0, []
    for fn in NINE:
        for number, case in enumerate(cases(fn, device)):
            variants = [{}, {"inplace": True}] if fn.name == "reverse_kl" else [{}]
            for extra in variants:
                compared += 1
                if not same(on_hub(kernel, fn)(clone(case), **extra), fn(clone(case), **extra)):
                    different.append(f"{fn.name} {number} {extra}")
    graphs = [(fn, "aot_eager") for fn in AUTOGRAD] + [(AUTOGRAD[0], "inductor")] if ORDER == "hub-first" else []
    different += [f"{fn.name} {backend}" for fn, backend in graphs if not compiled(kernel, fn, backend)]
    return {
        "folder": folder.name,
        "module": kernel.__name__,
        "namespace": kernel._ops.add_op_namespace_prefix(""),
        "public": sorted(kernel.__all__),
        "compared": compared,
        "compiled": len(graphs),
        "different": different,
    }


print(json.dumps([examine(kernel) for kernel in loaded]))
