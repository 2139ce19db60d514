"""What decides the graph of a module's call, as a digest: two modules of one digest have the same graph.

It has the classes of all submodules with the files that define them, every attribute that is no parameter or buffer,
the names, shapes and dtypes of those that are, the call, and the versions of what captures it. What cannot be told,
such as a closure or an object without attributes, raises Unknown: the graph of such a module is not kept.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import os
import platform
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _C

MOST_FILES = 256
MOST_BYTES = 1 << 20  # of a tensor that is neither a parameter nor a buffer: its values are constants of the graph

_VERSIONED = {"torch", "transformers", "numpy", "strop"}  # packages of which the version, or a digest, says enough
_UNIMPORTANT = {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_is_hf_initialized"}
_OF_MODULES = set(nn.Module().__dict__)
_PLAIN = (str, int, float, bool, complex, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.Size,
          torch.memory_format, range, slice, type(...))  # fmt: skip


class Unknown(Exception):
    """Why a digest would not say all."""


class _Writer:
    """Writes values as text, each object once."""

    def __init__(self, without: Any = None) -> None:
        self.without = without
        self.parts: list[str] = []
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # what has been seen, so that no other object gets its id
        self.modules: set[str] = set()  # of Python, that define what was seen

    def write(self, value: Any) -> None:
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            self.parts.append(f"{type(value).__name__}:{value!r}")
        elif id(value) in self.seen:
            self.parts.append(f"#{self.seen[id(value)]}")
        else:
            self.seen[id(value)] = len(self.seen)
            self.kept.append(value)
            self._new(value)

    def _new(self, value: Any) -> None:
        if isinstance(value, type):
            self._class(value)
        elif isinstance(value, enum.Enum):
            self.parts.append(f"{type(value).__qualname__}.{value.name}")
        elif isinstance(value, Tensor):
            self._tensor(value, contents=True)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, types.ModuleType):
            self.parts.append(value.__name__)
        elif isinstance(value, (list, tuple)):
            self._several(value, value)
        elif isinstance(value, (set, frozenset)):
            self._several(value, sorted(value, key=repr))
        elif isinstance(value, Mapping):
            self._several(value, [part for item in value.items() for part in item])
        elif isinstance(value, functools.partial):
            self._several(value, [value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self._several(value, [value.__func__, value.__self__])
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, torch._ops.OpOverloadPacket)):
            self.parts.append(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}")
        elif isinstance(value, logging.Logger):
            self.parts.append("logger")
        elif hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
            self._class(type(value))
            self._attributes(value.__dict__)
        else:
            raise Unknown(f"an attribute of type {type(value).__name__}")

    def _several(self, of: Any, values: Iterable[Any]) -> None:
        self.parts.append(f"{type(of).__name__}(")
        for value in values:
            self.write(value)
        self.parts.append(")")

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            self.parts.append(f"{base.__module__}.{base.__qualname__}")
            self.modules.add(base.__module__)

    def _function(self, function: types.FunctionType) -> None:
        if function.__closure__:
            raise Unknown(f"{function.__qualname__} is a closure")
        self.modules.add(function.__module__)
        code = hashlib.sha256(function.__code__.co_code).hexdigest()  # lambdas of one line share their name
        self._several(function, [function.__module__, function.__qualname__, code, function.__defaults__])
        self._several(function, [c for c in function.__code__.co_consts if isinstance(c, _PLAIN)])

    def _attributes(self, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            if name not in _UNIMPORTANT:
                self.parts.append(f".{name}")
                self.write(value)

    def _module(self, module: nn.Module) -> None:
        self._class(type(module))
        for name in _OF_MODULES:
            if "hooks" in name and getattr(module, name, None):
                raise Unknown(f"a {type(module).__name__} has hooks")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in module.__dict__[kind].items():
                self.parts.append(f"{kind}.{name}")
                if tensor is None or id(tensor) in self.seen:
                    self.write(tensor)
                else:
                    self.seen[id(tensor)] = len(self.seen)
                    self._tensor(tensor, contents=False)
        own = {k: v for k, v in module.__dict__.items() if k not in _OF_MODULES and v is not self.without}
        self._attributes(own)
        self._several(module, [part for item in module._modules.items() for part in item])

    def _tensor(self, tensor: Tensor, contents: bool) -> None:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
            raise Unknown(f"a tensor of type {type(tensor).__name__}, {tensor.layout}")
        self.parts.append(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.device}")
        if not contents:
            return
        if tensor.numel() * tensor.element_size() > MOST_BYTES:
            raise Unknown("a large tensor that is no buffer")
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self.parts.append(hashlib.sha256(bytes(values.tolist())).hexdigest())


# ---- Source ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _digest_of_file(path: str, size: int, changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest_of_file(path: str) -> str:
    try:
        stat = os.stat(path)
        return _digest_of_file(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise Unknown(f"{path} cannot be read: {error.strerror}") from None


def _package(name: str) -> str:
    return name.partition(".")[0]


def _installed(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path


def _used_by(module: types.ModuleType) -> Iterator[str]:
    """The modules whose functions, classes or names another one uses."""
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str):
            yield name


def _sources(names: Iterable[str]) -> dict[str, str]:
    """Digests of the files that define modules, and of those that these use, but for what others install."""
    found: dict[str, str] = {}
    todo = [(name, True) for name in names]
    while todo:
        name, wanted = todo.pop()
        package = _package(name)
        known = package in ("torch", "strop") or package in sys.stdlib_module_names
        if name in found or (known and name != "__main__"):
            continue
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if path is None:
            if wanted:
                raise Unknown(f"{name} is not from a file")
            continue
        if not wanted and (package in _VERSIONED or _installed(path)):
            continue
        found[name] = digest_of_file(path)
        if len(found) > MOST_FILES:
            raise Unknown(f"it uses more than {MOST_FILES} files")
        if package not in _VERSIONED and not _installed(path):
            assert module is not None
            todo += [(used, False) for used in _used_by(module)]
    return found


@functools.cache
def _here() -> tuple[str, ...]:
    """What captures, rewrites and computes: PyTorch's version, and this package as it is."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    binary = os.stat(_C.__file__)
    own = hashlib.sha256("".join(digest_of_file(str(file)) for file in files).encode()).hexdigest()
    return (torch.__version__, str(torch.version.git_version), platform.python_version(), own,
            f"{_C.VERSION} {binary.st_size} {binary.st_mtime_ns}")  # fmt: skip


# ---- The digest -----------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module, *call: Any, without: Any = None) -> str:
    """The digest of a module and what it is called with; Unknown says why there is none.

    `without` is an attribute that does not matter: what stands in for the module's forward.
    """
    if any(getattr(nn.modules.module, name, None) for name in dir(nn.modules.module) if name.endswith("_hooks")):
        raise Unknown("there are hooks of all modules")
    writer = _Writer(without)
    writer.write(model)
    for part in call:
        writer.write(part)
    transformers = sys.modules.get("transformers")
    parts = [*_here(), getattr(transformers, "__version__", ""), repr(torch.get_default_dtype())]
    if torch.cuda.is_initialized():
        parts.append(repr(torch.cuda.get_device_capability()))
    parts += [f"{name} {digest}" for name, digest in sorted(_sources(writer.modules).items())]
    return hashlib.sha256("\n".join(parts + writer.parts).encode()).hexdigest()
