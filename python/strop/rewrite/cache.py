"""Keeps what was captured on disk, so that the next process starts at once.

An entry has the rewritten graphs of one pattern of calls and their plans, with parameters by their place in the module;
never weights, and never code. It is found by a digest of all that decides the graph (fingerprint.py), compared with the
module once when it is read, and made anew where it differs. Folder: STROP_CACHE_DIR, else XDG_CACHE_HOME/strop, else
~/.cache/strop; STROP_CACHE=0 switches it off. What goes wrong here is logged, at the level of debugging, by the logger
`strop.cache`, and has no other consequence than that a model is captured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from . import packed, registry
from .capture import Captured, roles
from .fingerprint import Unknown, fingerprint
from .merge import join
from .plan import Plan
from .ragged import Layout, Pack, Ragged
from .registry import Outcome
from .serial import Unwritable, graph_in, graph_out, lowered_in, lowered_out
from .weights import Place

if TYPE_CHECKING:
    from .model import Forward, Program

MOST_ENTRIES = 512
MOST_BYTES = 256 << 20
MOST_BYTES_OF_ONE = 32 << 20
CONFIG = ("_attn_implementation", "output_attentions", "output_hidden_states", "return_dict", "use_cache")
PARTS = ("before", "sized", "body", "after")

_MAGIC = b"strop-cache-1\n"
_log = logging.getLogger("strop.cache")


def folder() -> Path | None:
    """Where entries are; None where none are to be."""
    if os.environ.get("STROP_CACHE", "1") == "0":
        return None
    named = os.environ.get("STROP_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "strop"
    except RuntimeError:  # no home
        return None


@dataclass
class Found:
    """What an entry says, with a module's weights."""

    captured: Captured
    packed: packed.Runner | None
    outcome: Outcome
    why_padded: str
    lines: Any


class Entry:
    """The place of one pattern of calls of one kind of module."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, forward: Forward, tensors: Mapping[str, Tensor], fixed: Mapping[str, Any]) -> Entry | None:
        """None where nothing is to be kept, or it cannot be told what the graph depends on."""
        where = folder()
        if where is None:
            return None
        try:
            if forward.had is not None:
                raise Unknown("the module has a forward of its own")
            if registry.has_user_rules():
                raise Unknown("there are patterns of replace_pattern")
            role = roles(tensors)
            call = [(name, t.dtype, str(t.device), role[name]) for name, t in tensors.items()]
            config = getattr(forward.model, "config", None)
            options = [getattr(config, name, None) for name in CONFIG]
            parts = (call, dict(fixed), options, forward.dtype, forward.ragged)
            return cls(where / f"{fingerprint(forward.model, *parts, without=forward)}.strop")
        except Unknown as why:
            _log.debug("%s is not kept: %s", type(forward.model).__name__, why)
        except Exception as error:  # of attributes that cannot be looked at
            _log.debug("%s is not kept: %s: %s", type(forward.model).__name__, type(error).__name__, error)
        return None

    # ---- Files ------------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    def read(self, model: nn.Module, dtype: torch.dtype | None) -> Found | None:
        """What an earlier process wrote, None where there is none; one that cannot be read is removed."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return None
        try:
            header, constants = _opened(data)
            found = _from(header, constants, model, dtype)
        except Exception as error:
            _log.debug("%s cannot be used: %s: %s", self.path, type(error).__name__, error)
            self.remove()
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)  # the entry that was used least recently goes first
        return found

    def write(self, program: Program) -> None:
        """Writes what was captured, where that can be done."""
        try:
            data = _closed(*_to(program))
            if len(data) > MOST_BYTES_OF_ONE:
                raise Unwritable(f"{len(data)} bytes")
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _put(self.path, data)
            _trim(self.path.parent)
        except Exception as error:
            _log.debug("%s is not written: %s: %s", self.path, type(error).__name__, error)


def _closed(header: Mapping[str, Any], constants: Mapping[str, Tensor]) -> bytes:
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    blob = io.BytesIO()
    torch.save(dict(constants), blob)
    payload = struct.pack("<Q", len(text)) + text + blob.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    begin = len(_MAGIC) + 32
    payload = memoryview(data)[begin:]
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(payload).digest() != data[len(_MAGIC) : begin]:
        raise ValueError("not what was written")
    (size,) = struct.unpack_from("<Q", payload)
    header = json.loads(bytes(payload[8 : 8 + size]))
    constants = torch.load(io.BytesIO(payload[8 + size :]), weights_only=True, map_location="cpu")
    return header, constants


def _put(path: Path, data: bytes) -> None:
    """Under its name a file is whole or not there, whoever else writes it."""
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _trim(where: Path) -> None:
    """Removes what was used least recently, until the folder is within its bounds; and what was left half written."""
    kept = []
    for path in where.iterdir():
        with contextlib.suppress(OSError):
            stat = path.stat()
            if path.suffix == ".strop":
                kept.append((stat.st_mtime_ns, stat.st_size, path))
            elif path.suffix == ".tmp" and stat.st_mtime < time.time() - 3600:
                path.unlink()
    size = 0
    for n, (_, bytes_, path) in enumerate(sorted(kept, reverse=True)):
        size += bytes_
        if n >= MOST_ENTRIES or size > MOST_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()


# ---- What is written ------------------------------------------------------------------------------------------------


def _layout_out(layout: Layout | None) -> list[int | None] | None:
    return None if layout is None else [layout.b, layout.l]


def _layout_in(written: list[Any] | None) -> Layout | None:
    return None if written is None else Layout(*written)


def _to(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from .report import lines_of

    captured, runner = program.captured, program.packed
    assert captured is not None
    graphs = [captured.module, *(getattr(runner.ragged, name) for name in PARTS if runner is not None)]
    attributes, merged, constants = _attributes(captured, graphs)
    replaced, left = lines_of(program)
    header = {
        "names": captured.names,
        "roles": {name: list(role) for name, role in captured.roles.items()},
        "result": pytree.treespec_dumps(captured.result),
        "most": captured.most,
        "notes": captured.notes,
        "why_padded": program.why_padded,
        "outcome": dataclasses.asdict(program.outcome),
        "lines": [[dataclasses.asdict(line) for line in lines] for lines in (replaced, left)],
        "attributes": attributes,
        "merged": merged,
        "devices": {label: str(tensor.device) for label, tensor in constants.items()},
        "graph": graph_out(captured.module.graph),
        "plan": lowered_out(captured.plan.lowered) if captured.plan is not None else None,
        "packed": _packed_to(runner) if runner is not None else None,
    }
    return header, {label: tensor.detach().cpu() for label, tensor in constants.items()}


def _attributes(
    captured: Captured, graphs: list[fx.GraphModule]
) -> tuple[dict[str, str], dict[str, list[str]], dict[str, Tensor]]:
    """Of what graphs read: what is where in the module, what is made of others, and what is a constant."""
    read = dict.fromkeys(str(n.target) for graph in graphs for n in graph.graph.nodes if n.op == "get_attr")
    merged = {label: parts for label, parts in captured.merged.items() if label in read}
    read.update(dict.fromkeys(part for parts in merged.values() for part in parts))
    constants = {}
    for label in read:
        if label not in merged and label not in captured.origins:
            tensor = getattr(captured.module, label, None)
            if type(tensor) is not Tensor:
                raise Unwritable(f"the attribute {label}")
            constants[label] = tensor
    return {label: captured.origins[label] for label in read if label in captured.origins}, merged, constants


def _packed_to(runner: packed.Runner) -> dict[str, Any]:
    ragged = runner.ragged
    plans = {name: plan for name, plan in runner.plans.items() if isinstance(plan, Plan)}
    if plans.keys() != runner.plans.keys():
        raise Unwritable("what is no plan")
    return {
        "mask": ragged.mask,
        "packs": [[_layout_out(how.layout), how.batched] for how in ragged.packs],
        "by_size": ragged.by_size,
        "rows": [_layout_out(layout) for layout in ragged.rows],
        "ranks": ragged.ranks,
        "padded": [_layout_out(layout) for layout in ragged.padded],
        "wants": [ragged.wants_first, ragged.wants_whole],
        "graphs": {name: graph_out(getattr(ragged, name).graph) for name in PARTS},
        "plans": {name: lowered_out(plan.lowered) for name, plan in plans.items()},
    }


# ---- What is read ---------------------------------------------------------------------------------------------------


def _from(
    header: Mapping[str, Any], constants: Mapping[str, Tensor], model: nn.Module, dtype: torch.dtype | None
) -> Found:
    from .report import Line

    shared = list(_places(model, header["attributes"].values()))
    owner = _owner(header, constants, [tensor for _, _, tensor in shared], dtype)
    module, nodes = graph_in(header["graph"], owner, "Rewritten")
    captured = Captured(
        module,
        tuple(header["names"]),
        {name: tuple(role) for name, role in header["roles"].items()},
        pytree.treespec_loads(header["result"]),
        [(name, dim, limit) for name, dim, limit in header["most"]],
        shared,
        dict(header["attributes"]),
        dict(header["merged"]),
        list(header["notes"]),
    )
    if header["plan"] is not None:
        captured.plan = Plan(module, lowered=lowered_in(header["plan"], module, nodes))
    runner = _packed_from(header["packed"], owner, captured.names) if header["packed"] is not None else None
    lines = tuple([Line(**line) for line in lines] for lines in header["lines"])
    return Found(captured, runner, Outcome(**header["outcome"]), header["why_padded"], lines)


def _places(model: nn.Module, paths: Any) -> Iterator[Place]:
    for path in paths:
        at, _, last = path.rpartition(".")
        module = model.get_submodule(at)
        where = module._parameters if last in module._parameters else module._buffers
        yield where, last, where[last]


def _owner(
    header: Mapping[str, Any], constants: Mapping[str, Tensor], tensors: list[Tensor], dtype: torch.dtype | None
) -> nn.Module:
    """What has the attributes that the graphs read."""
    owner = nn.Module()
    copies: dict[int, Tensor] = {}  # of a tensor that is in several places, one
    for label, tensor in zip(header["attributes"], tensors, strict=True):
        if dtype is not None:
            if id(tensor) not in copies:
                new = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
                copies[id(tensor)] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
            tensor = copies[id(tensor)]
        setattr(owner, label, tensor)
    for label, device in header["devices"].items():
        setattr(owner, label, constants[label].to(device))
    for label, parts in header["merged"].items():
        join(owner, parts, label)
    return owner


def _packed_from(written: Mapping[str, Any], owner: nn.Module, names: tuple[str, ...]) -> packed.Runner:
    graphs, plans = {}, {}
    for name in PARTS:
        graphs[name], nodes = graph_in(written["graphs"][name], owner, name.capitalize())
        if name in written["plans"]:
            plans[name] = Plan(graphs[name], part=True, lowered=lowered_in(written["plans"][name], graphs[name], nodes))
    rows = [Layout(*layout) for layout in written["rows"]]
    packs = [Pack(_layout_in(layout), batched) for layout, batched in written["packs"]]
    ragged = Ragged(
        mask=written["mask"], packs=packs, by_size=list(written["by_size"]), rows=rows, ranks=list(written["ranks"]),
        padded=[_layout_in(layout) for layout in written["padded"]],
        wants_first=written["wants"][0], wants_whole=written["wants"][1], **graphs,
    )  # fmt: skip
    return packed.Runner(ragged, names, plans)
