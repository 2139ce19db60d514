"""The wheel and the sdist of dist/, as `make wheel sdist` left them. `make test` runs this after making them."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r"project\(strop VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())[1]  # type: ignore[index]
PLATFORM = f"manylinux_2_28_{platform.machine()}"
WHEEL = ROOT / f"dist/strop-{VERSION}-cp310-abi3-{PLATFORM}.whl"
SDIST = ROOT / f"dist/strop-{VERSION}.tar.gz"
MEGABYTE = 1_000_000


def run(*command: object, **options) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f"{words} failed:\n{done.stdout}"
    return done.stdout


MODULE, PROGRAM = "strop/_C.abi3.so", "strop/bin/strop-emu"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    return folder


def dynamic_symbols(file: Path) -> Iterator[tuple[str, str, str]]:
    """Section, binding, and name with version, of what a module or program exports and asks for."""
    for line in run("readelf", "-W", "--dyn-syms", file).splitlines():
        words = line.split()
        if len(words) >= 8 and words[0] != "Num:":
            yield words[6], words[4], words[7]


def test_wheel_has_the_package_and_nothing_else() -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        names = {name for name in wheel.namelist() if not re.match(r"strop-[0-9.]+\.dist-info/|.*/$", name)}
        assert b"Tag: cp310-abi3-%s" % PLATFORM.encode() in wheel.read(f"strop-{VERSION}.dist-info/WHEEL")
    sources = {
        str(f.relative_to(ROOT / "python"))
        for f in (ROOT / "python/strop").rglob("*")
        if f.suffix in (".py", ".pyi", ".typed")
    }
    assert names == sources | {"strop/py.typed", MODULE, PROGRAM}
    assert WHEEL.stat().st_size < 60 * MEGABYTE


def test_auditwheel_accepts_it(tmp_path: Path) -> None:
    strictly = ["--plat", PLATFORM, "--only-plat", "--exclude", "libtorch_cpu.so"]
    run("auditwheel", "repair", *strictly, "-w", tmp_path, WHEEL)


def test_abi3audit_accepts_it() -> None:
    assert json.loads(run("abi3audit", "--strict", "--report", WHEEL))["specs"]


def test_module_exports_its_initialiser_alone(unpacked: Path) -> None:
    exported = [name for section, _, name in dynamic_symbols(unpacked / MODULE) if section != "UND"]
    assert exported == ["PyInit__C"]


@pytest.mark.parametrize("file", [MODULE, PROGRAM])
def test_nothing_is_asked_for_without_a_version(unpacked: Path, file: str) -> None:
    """But for Python's and PyTorch's: a function of a newer glibc would look like that, and auditwheel not see it."""
    symbols = dynamic_symbols(unpacked / file)
    wanted = [name for section, binding, name in symbols if section == "UND" and binding == "GLOBAL"]
    assert wanted
    assert not [name for name in wanted if "@" not in name and not re.match("_?Py|aoti_torch_|torch_", name)]
    dynamic = run("readelf", "-d", unpacked / file)
    assert "(NEEDED)" in dynamic and "(RPATH)" not in dynamic and "(RUNPATH)" not in dynamic


def test_installed_wheel_works(tmp_path: Path) -> None:
    """In an environment of its own, which has this one's packages behind it but not this one's strop."""
    environment = tmp_path / "venv"
    python = environment / "bin/python"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", WHEEL)
    (packages,) = environment.glob("lib/python3*/site-packages")
    import torch

    (packages / "torch.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    assert f"strop {VERSION} works on" in run(python, "-I", ROOT / "tests/support/smoke.py", cwd=tmp_path)
    assert run(python, "-I", "-m", "strop", "doctor", cwd=tmp_path).endswith("all is well\n")
    run(python, "-I", "-m", "strop", "emu", "policy_loss", "--shape", "2,5", cwd=tmp_path)


def test_sdist_has_all_that_is_built() -> None:
    with tarfile.open(SDIST) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    folders = ("bindings", "cmake", "include", "python", "src", "tools")
    files = {f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file()}
    needed = {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts and f.suffix != ".so"}
    assert (
        needed | {"CMakeLists.txt", "CMakePresets.json", "LICENSE", "Makefile", "README.md", "pyproject.toml"} <= names
    )
    assert not {name for name in names if re.match(r"(build|dist|\.venv|\.local|\.cache)/|.*\.(so|pyc)$", name)}
