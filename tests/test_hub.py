"""The repository for the Hub (tools/assemble_hub): what is in it, and that `kernels` loads it, without a network and
beside the package, with bitwise the same results.

It is assembled anew from make's build tree; STROP_HUB names a folder that is assembled already, and is used instead.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import strop
import torch

kernels = pytest.importorskip("kernels")
from kernels._rust import Build, Digest, Metadata  # noqa: E402
from kernels.variants import parse_variant  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tests/support/hub_probe.py"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("STROP_HUB"):
        return Path(given).resolve()
    preset = subprocess.run([ROOT / "tools/bootstrap", "preset"], check=True, text=True, capture_output=True)
    build = ROOT / "build" / preset.stdout.strip()
    if not (build / "CMakeCache.txt").exists():
        pytest.skip("no build tree to assemble from; STROP_HUB names an assembled folder")
    output = tmp_path_factory.mktemp("hub") / "hub"
    command = [sys.executable, str(ROOT / "tools/assemble_hub"), "--build", str(build), "--output", str(output)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def variants(hub: Path) -> list[Path]:
    return sorted(folder for folder in (hub / "build").iterdir() if folder.is_dir())


def probe(hub: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, str(PROBE), str(hub), *arguments], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    for result in results:
        assert result["different"] == []
        assert result["compared"] > 100
        assert result["module"] + "::" == result["namespace"]
        assert result["public"] == sorted(strop.__all__)
    return results


# ---- With kernels ---------------------------------------------------------------------------------------------------


def backend(device: str) -> str:
    return f"-cu{torch.version.cuda.split('.')[0]}" if device == "cuda" else "-cpu-"


@pytest.mark.parametrize("order", ["hub-first", "pip-first"])
def test_beside_the_package(hub: Path, device: str, order: str) -> None:
    """kernels chooses the variant for this PyTorch; on the CPU of a machine with CUDA, the CPU's is asked for.

    Functions are compiled as well, in one of the two orders.
    """
    by_itself = device == "cuda" or torch.version.cuda is None
    (result,) = probe(hub, device, order, "repository" if by_itself else "cpu")
    assert backend(device) in result["folder"]
    assert result["compiled"] == (4 if order == "hub-first" else 0)


def test_by_name(hub: Path, device: str) -> None:
    """get_kernel, with LOCAL_KERNELS saying where the repository is."""
    if device == "cpu" and torch.version.cuda is not None:
        pytest.skip("this PyTorch's variant is the one for CUDA")
    (result,) = probe(hub, device, "pip-first", "override")
    assert backend(device) in result["folder"]


def test_variants_beside_each_other(hub: Path, device: str) -> None:
    """All in one process; the one for CUDA loads, and works on the CPU, where there is no driver as well."""
    names = [folder.name for folder in variants(hub)]
    results = probe(hub, device, "pip-first", *names)
    assert [result["folder"] for result in results] == names
    assert len({result["namespace"] for result in results}) == len(names)


def benchmark_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARKS = sorted(path.name for path in (ROOT / "hub/benchmarks").glob("benchmark*.py"))


def first_workloads(path: Path) -> list[tuple[type, str]]:
    """Forward and fused on the first shape, as `kernels benchmark` finds them."""
    module = benchmark_module(path)
    size = f"{module.SHAPES[0][0]}x{module.SHAPES[0][1]}"
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == path.stem]
    found = [(c, name) for c in classes for name in dir(c) if re.fullmatch(rf"benchmark_(fwd|fused)_{size}", name)]
    assert len(found) == 2 * len(classes) > 0
    return [(c, name.removeprefix("benchmark_")) for c, name in found]


def run_workload(benchmark: type, workload: str, kernel: Any, device: str) -> bool:
    """What `kernels benchmark` does to verify: whether the results agree."""
    instance = benchmark()
    instance.kernel, instance.device = kernel, device
    torch.manual_seed(instance.seed)
    getattr(instance, f"setup_{workload}")()
    getattr(instance, f"benchmark_{workload}")()
    return torch.allclose(instance.out, getattr(instance, f"verify_{workload}")(), atol=1e-2)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_verify(name: str, device: str) -> None:
    for benchmark, workload in first_workloads(ROOT / "hub/benchmarks" / name):
        assert run_workload(benchmark, workload, strop, device)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_find_a_wrong_gradient(name: str, device: str) -> None:
    def off(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
            loss, grad = function(*args, **options)
            return loss, grad * 1.03

        return call

    family = name.removeprefix("benchmark_").removesuffix(".py")
    kernel = SimpleNamespace(**{family: off(getattr(strop, family))})
    for benchmark, workload in first_workloads(ROOT / "hub/benchmarks" / name):
        if workload.startswith("fused"):
            with pytest.raises(RuntimeError, match="gradient"):
                run_workload(benchmark, workload, kernel, device)


# ---- What is in it --------------------------------------------------------------------------------------------------


def test_metadata(hub: Path) -> None:
    """As kernels' own parser reads it; the digest holds, and the variant's name says the same."""
    assert variants(hub)
    for folder in variants(hub):
        metadata = Metadata.read_from_file(folder / "metadata.json")
        variant = parse_variant(folder.name)
        assert str(metadata.name) == "strop"
        assert metadata.version == int(strop.__version__.split(".")[0])
        assert metadata.license == "Apache-2.0"
        assert metadata.python_depends == metadata.kernel_depends == []
        assert str(metadata.backend.backend_type).lower() == variant.arch.backend.name
        assert bool(metadata.backend.archs) == (variant.arch.backend.name == "cuda")
        assert (folder / f"{metadata.id}.abi3.so").exists()
        assert metadata.id.isidentifier()
        metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, folder))


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        ("80-real 90a-real", ["8.0", "9.0a"]),
        ("80-real 90a-real 100a-real 120a-real 90-virtual", ["10.0a", "12.0a", "8.0", "9.0+PTX", "9.0a"]),
        ("100f-real 90", ["10.0f", "9.0+PTX"]),
    ],
)
def test_architectures(architectures: str, expected: list[str]) -> None:
    from test_house import tool

    assert tool("assemble_hub").hub_architectures(architectures) == expected


def test_python_files(hub: Path) -> None:
    """A variant's folder can be called anything, so its files import each other relatively."""
    for folder in variants(hub):
        for file in folder.glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.append(node.module or "")
                assert not [name for name in names if name.split(".")[0] == "strop"], file


def test_modules(hub: Path) -> None:
    """The same rules as for the package's module (test_house.py), and what the Hub asks for: manylinux_2_28."""
    limits = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
    for module in hub.glob("build/*/*.so"):
        readelf = ["readelf", "-W", "-d", "--dyn-syms", "-V", str(module)]
        text = subprocess.run(readelf, check=True, text=True, capture_output=True).stdout
        assert not re.findall(r"RPATH|RUNPATH", text)
        assert not re.findall(r"NEEDED.*\[lib(?:cuda|nv|python|torch_cuda|torch_python|c10).*\]", text)
        for library, version in re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)", text):
            assert tuple(map(int, version.split("."))) <= limits[library], f"{module.name}: {library}_{version}"
        if "-cpu-" in module.parent.name:
            assert module.stat().st_size < 2**20
            assert b"cudaLaunchKernel" not in module.read_bytes()


def assert_includes_are_there(hub: Path, name: str) -> None:
    """Every file that one of ours includes by quotes: beside it, or in a folder that build.toml names.

    The emulator's apart, which only builds for the emulator include.
    """
    folders = [(hub / name).parent, *(hub / f for f in ("include", "src", "torch-ext", "third_party/highway"))]
    for included in re.findall(r'^#include "(.+)"', (hub / name).read_text(), re.MULTILINE):
        if not included.startswith(("emu/", "strop/emu")):
            assert any((folder / included).is_file() for folder in folders), f"{name}: {included}"


def test_build_toml(hub: Path) -> None:
    """kernel-builder's own parser takes it, and what it names is there."""
    assert [str(b) for b in Build.open(hub).general.backends] == ["cpu", "cuda"]
    named = re.findall(r'^  "(.+)",$', (hub / "build.toml").read_text(), re.MULTILINE)
    assert {"bindings/torch/ops.cc", "src/losses.cc", "third_party/highway/hwy/highway.h"} < set(named)
    for name in named:
        assert (hub / name).is_file(), name
        if not name.startswith("third_party"):
            assert_includes_are_there(hub, name)
    assert not any(word in name for name in named for word in ("plan", "inference", "attention", "runtime"))
    assert not list(hub.rglob("*_test.c*"))


def test_card(hub: Path) -> None:
    text = (hub / "README.md").read_text()
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert front and "library_name: kernels" in front[1]
    assert "{{" not in text
    for folder in variants(hub):
        assert f"`{folder.name}`" in text
    for record in (ROOT / "benchmarks/records").glob("*.json"):
        assert json.loads(record.read_text())["commit"][:10] in text
    links = re.findall(r"\]\((media/[^)]+)\)", text)
    assert links
    for link in links:
        assert (hub / link).exists()
