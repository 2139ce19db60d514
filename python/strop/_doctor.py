"""What was built, what was found, and which path each operation takes: `strop.doctor()`, `python -m strop doctor`."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

MINIMUM_TORCH = (2, 11)
OPERATIONS = ("grpo_loss", "bnpo_loss", "reverse_kl")
# The instruction sets that decide which code Highway picks, as Linux names them.
CPU_FEATURES = (
    "sse4_2",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "asimd",
    "sve",
    "sve2",
    "bf16",
)


@dataclass
class Report:
    """What :func:`doctor` found.

    Attributes:
        built: what the package was built with: version, compilers, CUDA architectures, torch.
        found: what this machine has: Python, torch, CPU, driver, GPUs.
        paths: for each device, the path that each operation takes there.
        notes: what is worth knowing and not wrong.
        problems: what is wrong, with what to do; empty where all is well.
    """

    built: dict[str, str] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)
    paths: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = []
        for title, section in (("built", self.built), ("found", self.found)):
            lines.append(title)
            lines += [f"  {key:<14}{value}" for key, value in section.items()]
        lines.append("paths")
        for device, operations in self.paths.items():
            lines.append(f"  {device}")
            lines += [f"    {name:<12}{text}" for name, text in operations.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append("all is well" if self.ok else f"{len(self.problems)} wrong")
        return "\n".join(lines)


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code built for `architectures` runs on a GPU of this compute capability.

    `architectures` is CMake's list, spaces between: `90a-real` is machine code for 9.0 alone, `80-real` for 8.0 and
    later 8.x, `90-virtual` is PTX, which the driver compiles for anything from 9.0 on; without a suffix it is both.
    """
    for name in re.split(r"[\s;,]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)(\d)([af]?)(?:-(real|virtual))?", name)
        if not match:
            continue
        built, letter, kind = (int(match[1]), int(match[2])), match[3], match[4]
        if capability == built or letter == "f" and capability[0] == built[0] and capability >= built:
            return True
        if letter:
            continue
        if capability[0] == built[0] and capability >= built or kind != "real" and capability >= built:
            return True
    return False


def _version_pair(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _capability(value: Any) -> tuple[int, int]:
    """A compute capability given as (9, 0), "9.0", "sm_90" or 90."""
    if isinstance(value, (tuple, list)):
        return int(value[0]), int(value[1])
    digits = re.findall(r"\d+", str(value))
    return (int(digits[0]), int(digits[1])) if len(digits) > 1 else (int(digits[0][:-1]), int(digits[0][-1]))


def _cpu() -> str:
    """The processor's name and those of its features that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    features = " ".join(feature for feature in CPU_FEATURES if feature in present)
    return f"{name[1] if name else platform.machine()} ({features})"


def _driver() -> str:
    try:
        match = re.search(r"(\d+\.\d+(?:\.\d+)?)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return ""
    return match[1] if match else ""


def _torch_devices() -> list[tuple[str, tuple[int, int]]]:
    """Name and compute capability of the GPUs that torch can use."""
    if not torch.cuda.is_available():
        return []
    indices = range(torch.cuda.device_count())
    return [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in indices]


def examine(
    info: Mapping[str, Any],
    torch_version: str,
    torch_cuda: str | None,
    torch_devices: list[tuple[str, tuple[int, int]]],
) -> Report:
    """The report for one build on one machine.

    Args:
        info: `strop._C.build_info()`.
        torch_version: `torch.__version__`.
        torch_cuda: `torch.version.cuda`, None for a CPU build of torch.
        torch_devices: name and compute capability of each GPU that torch can use.
    """
    report = Report()
    with_cuda = bool(info.get("cuda"))
    architectures = str(info.get("cuda_architectures") or "")
    report.built = {
        "strop": str(info.get("version", "unknown")),
        "compiler": str(info.get("compiler", "unknown")),
        "CUDA": f"nvcc {info.get('nvcc', 'unknown')}, {architectures}" if with_cuda else "no, the CPU backend alone",
        "torch": f"{info.get('torch_version_built', 'unknown')} (runs with any from 2.11 on)",
    }
    threads = info.get("cpu_threads", "unknown")
    target = info.get("highway_target", "unknown")
    report.found = {
        "Python": platform.python_version(),
        "torch": f"{torch_version}, {f'CUDA {torch_cuda}' if torch_cuda else 'without CUDA'}",
        "CPU": _cpu(),
        "threads": str(threads),
        "driver": _driver() or "none",
    }
    cpu_paths = info.get("cpu_paths") or {}
    report.paths["cpu"] = {op: str(cpu_paths.get(op, f"{target}, {threads} threads")) for op in OPERATIONS}

    if _version_pair(torch_version) < MINIMUM_TORCH:
        report.problems.append(f"torch {torch_version} is too old: strop needs 2.11 or later")

    devices = list(info.get("cuda_devices") or [])
    for index, device in enumerate(devices):
        capability = _capability(device.get("capability", "0.0"))
        details = f"sm_{capability[0]}{capability[1]}, {device.get('multiprocessors', '?')} multiprocessors"
        if device.get("l2_bytes"):
            details += f", {device['l2_bytes'] / 2**20:.0f} MiB L2"
        report.found[f"cuda:{index}"] = f"{device.get('name', 'unknown')}, {details}"
        report.paths[f"cuda:{index} sm_{capability[0]}{capability[1]}"] = {
            op: str(text) for op, text in (device.get("paths") or {}).items()
        }
        if not covers(architectures, capability):
            report.problems.append(
                f"cuda:{index} has compute capability {capability[0]}.{capability[1]}, the package was built for "
                f"{architectures}: build it with CMAKE_CUDA_ARCHITECTURES={capability[0]}{capability[1]}"
            )
    if not devices:
        for index, (name, (major, minor)) in enumerate(torch_devices):
            report.found[f"cuda:{index}"] = f"{name}, sm_{major}{minor} (seen by torch)"

    if torch_devices and not with_cuda:
        report.problems.append(
            "torch can use a GPU, the package was built without CUDA: install it again with nvcc 12.8 or later on PATH"
        )
    elif torch_devices and not devices:
        report.problems.append(
            "torch can use a GPU, the package's own CUDA runtime finds none: the driver may be too old for "
            f"CUDA {info.get('nvcc', 'of this build')}"
        )
    elif devices and not torch_cuda:
        report.notes.append("there is a GPU, and this torch was built without CUDA: tensors stay on the CPU")
    elif with_cuda and not devices:
        report.notes.append("built with CUDA; no GPU here, so the CPU backend does the work")
    return report


def doctor(file: TextIO | None = None) -> Report:
    """Prints what was built, what was found and which path each operation takes, and returns it.

    Args:
        file: where the text goes; standard output by default.

    Returns:
        The findings as a :class:`Report`; its `ok` is False where something is wrong.
    """
    from . import _C  # here: this module is of use where the compiled one is not

    report = examine(_C.build_info(), torch.__version__, torch.version.cuda, _torch_devices())
    print(report, file=file if file is not None else sys.stdout)
    return report
