"""The house itself: packaging, the rules that tools/check keeps, doctor, the tools, and the snippets of the docs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import strop
import torch
from strop import _C, __main__, _doctor

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    loader = SourceFileLoader(f"strop_tools_{name}", str(ROOT / "tools" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look it up
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


# ---- Rules ----------------------------------------------------------------------------------------------------------


def test_house_rules_hold() -> None:
    assert tool("check").house_rules(ROOT) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        ("framework", "src/base/a.cc", "#include <torch/csrc/stable/tensor.h>\n"),
        ("framework", "include/strop/a.h", "#  include <Python.h>\n"),
        ("framework", "src/kernels/policy_loss/a.cu", "#include <ATen/dlpack.h>\n"),
        ("length", "src/kernels/policy_loss/a.cuh", "\n" * 200),
        ("families", "src/kernels/policy_loss/a.cc", '#include "kernels/reverse_kl/reverse_kl.h"\n'),
        ("base", "src/base/a.h", '#include "kernels/reverse_kl/reverse_kl.h"\n'),
        ("ptx", "src/kernels/policy_loss/a.cuh", 'asm volatile("fence;");\n'),
        ("launch", "src/kernels/policy_loss/a.cu", "kernel<<<1, 32>>>();\n"),
    ],
)
def test_house_rules_find(rule: str, path: str, text: str) -> None:
    (found,) = tool("check").violations(path, text)
    assert found.startswith(f"{path}: {rule}: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("bindings/torch/a.cc", "#include <torch/csrc/stable/tensor.h>\n"),
        ("src/base/ptx/a.cuh", 'asm volatile("fence;");\n'),
        ("src/base/a.h", "// not <<<>>>, nor asm(\n"),
        ("src/losses.cc", '#include "kernels/reverse_kl/reverse_kl.h"\n'),
        ("src/kernels/policy_loss/a.cc", '#include "kernels/policy_loss/policy_loss.h"\n'),
        ("src/kernels/policy_loss/a.cc", "\n" * 199),
        ("src/kernels/policy_loss/a_test.cc", "\n" * 400),
    ],
)
def test_house_rules_allow(path: str, text: str) -> None:
    assert list(tool("check").violations(path, text)) == []


# ---- Package --------------------------------------------------------------------------------------------------------


def test_one_version() -> None:
    (written,) = re.findall(r"^project\(strop VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert written == strop.__version__ == importlib.metadata.version("strop") == _C.build_info()["version"]


def test_typed() -> None:
    package = Path(strop.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "_C.pyi").exists()


def readelf(*arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments, _C.__file__], check=True, text=True, capture_output=True).stdout


def test_module_loads_anywhere() -> None:
    """abi3, no library of CUDA or Python needed, and no path to where it was built."""
    assert Path(_C.__file__).name == "_C.abi3.so"
    dynamic = readelf("-d")
    needed = re.findall(r"NEEDED.*\[(.+)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if re.match(r"lib(cuda|nv|python|torch_cuda|torch_python|c10)", name)]
    assert "libhwy.so.1" not in needed
    assert not re.findall(r"RPATH|RUNPATH", dynamic)


def test_module_keeps_its_symbols_to_itself() -> None:
    symbols = [line.split() for line in readelf("--dyn-syms").splitlines()]
    defined = [s[7] for s in symbols if len(s) >= 8 and s[4] in ("GLOBAL", "WEAK", "UNIQUE") and s[6].isdigit()]
    assert "PyInit__C" in defined
    assert not [name for name in defined if re.search(r"strop|hwy|cuda", name)]


# Names with an underscore that are part of the stable ABI all the same: macros and inline functions lead to them.
STABLE_PRIVATE = re.compile(r"_Py(_(Dealloc|NoneStruct|TrueStruct|FalseStruct|NotImplementedStruct)|\w+_SizeT)$")


def test_module_is_limited_api() -> None:
    """The module asks Python for nothing private, as it would if a file were compiled without Py_LIMITED_API."""
    undefined = re.findall(r"UND (_?Py\w+)", readelf("--dyn-syms"))
    assert "PyModule_Create2" in undefined or "PyModuleDef_Init" in undefined
    assert not [name for name in undefined if name.startswith("_") and not STABLE_PRIVATE.match(name)]


# ---- Doctor ---------------------------------------------------------------------------------------------------------

DEFAULT_ARCHITECTURES = "80-real 90a-real 100a-real 120a-real 90-virtual"


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (DEFAULT_ARCHITECTURES, (8, 0), True),
        (DEFAULT_ARCHITECTURES, (8, 9), True),
        (DEFAULT_ARCHITECTURES, (7, 5), False),
        (DEFAULT_ARCHITECTURES, (9, 0), True),
        (DEFAULT_ARCHITECTURES, (10, 3), True),  # PTX of sm_90
        (DEFAULT_ARCHITECTURES, (12, 0), True),
        ("90a-real", (9, 0), True),
        ("90a-real", (10, 0), False),
        ("80-real", (9, 0), False),
        ("80", (9, 0), True),
        ("100f-real", (10, 3), True),
        ("100f-real", (12, 0), False),
        ("", (9, 0), False),
    ],
)
def test_covers(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    assert _doctor.covers(architectures, capability) is expected


H100 = {
    "name": "H100",
    "capability": "9.0",
    "multiprocessors": 132,
    "l2_bytes": 50 * 2**20,
    "paths": {"grpo_loss": "one launch", "bnpo_loss": "one launch", "reverse_kl": "blocks share a row"},
}
BUILT = {
    "version": "1.2.3",
    "cuda": True,
    "cuda_architectures": DEFAULT_ARCHITECTURES,
    "compiler": "GNU 12.2.0",
    "nvcc": "13.0.88",
    "torch_version_built": "2.13.0",
    "highway_target": "AVX2",
    "cpu_threads": 2,
    "cuda_devices": [H100],
}
CPU_ONLY = {**BUILT, "cuda": False, "cuda_architectures": "", "nvcc": "", "cuda_devices": []}
SEEN = [("H100", (9, 0))]


def test_doctor_finds_all_well() -> None:
    report = _doctor.examine(BUILT, "2.13.0+cu130", "13.0", SEEN)
    assert report.ok
    assert report.paths["cuda:0 sm_90"]["reverse_kl"] == "blocks share a row"
    assert report.paths["cpu"]["grpo_loss"] == "AVX2, 2 threads"
    text = str(report)
    for part in (
        "1.2.3",
        "GNU 12.2.0",
        "13.0.88",
        "2.13.0+cu130",
        "132 multiprocessors",
        "50 MiB",
        "blocks share a row",
    ):
        assert part in text
    assert text.endswith("all is well")


@pytest.mark.parametrize(
    ("info", "torch_version", "torch_cuda", "seen", "problem"),
    [
        (CPU_ONLY, "2.10.1", None, [], "too old"),
        (CPU_ONLY, "2.13.0+cu130", "13.0", SEEN, "built without CUDA"),
        ({**BUILT, "cuda_devices": []}, "2.13.0+cu130", "13.0", SEEN, "driver may be too old"),
        ({**BUILT, "cuda_devices": [{**H100, "capability": (7, 5)}]}, "2.13.0", "13.0", SEEN, "capability 7.5"),
    ],
)
def test_doctor_finds_what_is_wrong(info, torch_version, torch_cuda, seen, problem) -> None:
    report = _doctor.examine(info, torch_version, torch_cuda, seen)
    assert not report.ok
    (found,) = report.problems
    assert problem in found
    assert found in str(report)


@pytest.mark.parametrize(("info", "note"), [(BUILT, "without CUDA"), ({**BUILT, "cuda_devices": []}, "no GPU here")])
def test_doctor_notes(info, note) -> None:
    report = _doctor.examine(info, "2.13.0", None, [])
    assert report.ok
    assert note in report.notes[0]


def test_doctor_survives_missing_keys() -> None:
    assert "unknown" in str(_doctor.examine({}, "2.13.0", None, []))


def test_doctor_here(capsys: pytest.CaptureFixture[str]) -> None:
    report = strop.doctor()
    assert capsys.readouterr().out == f"{report}\n"
    assert report.ok, report.problems
    assert report.built["strop"] == strop.__version__
    assert report.found["torch"].startswith(torch.__version__)
    assert set(report.paths["cpu"]) == set(_doctor.OPERATIONS)
    for device, paths in report.paths.items():
        assert set(paths) == set(_doctor.OPERATIONS), device
        assert "unknown" not in "".join(paths.values()), device
    gpus = len([device for device in report.paths if device.startswith("cuda")])
    assert gpus == (torch.cuda.device_count() if _C.build_info()["cuda"] else 0)


def test_command_line() -> None:
    result = subprocess.run([sys.executable, "-m", "strop", "doctor"], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert strop.__version__ in result.stdout


def test_command_line_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "build_info", lambda: CPU_ONLY)
    monkeypatch.setattr(_doctor, "_torch_devices", lambda: SEEN)
    assert __main__.main(["doctor"]) == 1
    with pytest.raises(SystemExit) as no_command:
        __main__.main([])
    assert no_command.value.code == 2


# ---- Tools ----------------------------------------------------------------------------------------------------------

JUNIT = """<testsuites><testsuite>
<testcase name="a" status="run"/><testcase name="b"/>
<testcase name="c"><failure message="no"/></testcase><testcase name="d"><error/></testcase>
<testcase name="e"><skipped/></testcase><testcase name="f" status="disabled"/>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("text", "succeeded", "expected"),
    [
        (JUNIT, False, (2, 2, 2)),
        ("<testsuite><testcase name='a'/></testsuite>", True, (1, 0, 0)),
        ("<testsuite><testcase name='a'/></testsuite>", False, (1, 1, 0)),  # died after its last test
        ("<testsuite/>", True, (0, 1, 0)),  # ran nothing
        (None, False, (0, 1, 0)),  # died before its report
    ],
)
def test_run_tests_counts(tmp_path: Path, text: str | None, succeeded: bool, expected: tuple[int, int, int]) -> None:
    module = tool("run_tests")
    report = tmp_path / "report.xml"
    if text is not None:
        report.write_text(text)
    suite = module.count(module.Suite("suite"), report, succeeded)
    assert (suite.passed, suite.failed, suite.skipped) == expected


@pytest.mark.parametrize(("release", "expected"), [(None, "cpu"), ("12.4", "cpu"), ("12.8", "cuda"), ("13.0", "cuda")])
def test_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str | None, expected: str) -> None:
    if release:
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
        nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if release else str(tmp_path))
    assert tool("bootstrap").preset() == expected


# ---- Docs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "docs/losses.md"])
def test_snippets_run(name: str) -> None:
    """The Python of a page, one block after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/losses.md", "docs/building.md", "docs/hub.md", "docs/trl.md"]
)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
