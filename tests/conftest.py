"""Fixtures and options of the Python tests.

`device` runs a test on the CPU and, where there is one, on the CUDA device; `--device` picks. `cuda` is for tests of
what only CUDA has. Everything random comes from one seed, printed in the header (STROP_TEST_SEED repeats it).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
# Nothing is read from what earlier runs captured, or written where users have theirs; tests/test_cache.py has its own.
os.environ["STROP_CACHE"] = "0"
os.environ["STROP_CACHE_DIR"] = str(Path(tempfile.gettempdir(), "strop-tests"))

from support.cases import SEED  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda", "all"), default="all", help="where to run (default: all)")
    parser.addoption("--large", action="store_true", help="also run tests marked large on the CPU")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: more than 2^31 elements (CUDA: where memory allows; CPU: by --large)")


def pytest_report_header(config: pytest.Config) -> str:
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"strop: STROP_TEST_SEED={SEED}, torch {torch.__version__}, {cuda}"


def _devices(config: pytest.Config) -> list[str]:
    chosen = config.getoption("--device")
    devices = ["cpu"] if chosen in ("cpu", "all") else []
    if chosen == "cuda" or (chosen == "all" and torch.cuda.is_available()):
        devices.append("cuda")
    return devices


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", _devices(metafunc.config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`--device cuda` leaves the tests that name no device to the run on the CPU."""
    if config.getoption("--device") != "cuda":
        return
    kept = [i for i in items if {"device", "cuda"} & set(getattr(i, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[i for i in items if i not in kept])
    items[:] = kept


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> str:
    if "cuda" not in _devices(request.config):
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small computations: waiting for other threads would be most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _clean_cuda(request: pytest.FixtureRequest):
    """A test that leaves CUDA broken fails itself, not its neighbours."""
    yield
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
