"""What was captured is kept on disk: the next process computes the same without capturing, and never something else."""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strop
import torch
from strop.rewrite import cache, capture
from strop.rewrite import model as rewriting
from support import models
from support.cases import SEED, generator
from torch import Tensor, nn


class Layer(nn.Module):
    def __init__(self, columns: int = 8, eps: float = 1e-5, seed: int = 0) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(columns, columns), nn.LayerNorm(columns, eps=eps)
        self.scales = torch.tensor([1.0, 2.0])
        self.register_buffer("shift", torch.zeros(columns))
        g = generator("cache", columns, seed)
        with torch.no_grad():
            for tensor in (*self.parameters(), self.shift):
                tensor.copy_(torch.randn(tensor.shape, generator=g))
        self.eval()

    def forward(self, x: Tensor, times: float = 1.0) -> Tensor:
        y = torch.nn.functional.gelu(self.linear(x))
        return self.norm(x + y) * times + self.shift * self.scales.max()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("x", shape))


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STROP_CACHE", "1")
    monkeypatch.setenv("STROP_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one at each capture."""
    found: list[str] = []
    original = capture.capture

    def counted(model: nn.Module, *args: Any) -> Any:
        found.append(type(model).__name__)
        return original(model, *args)

    monkeypatch.setattr(rewriting, "capture", counted)
    return found


def first(model: nn.Module, *args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return strop.optimize_model(model, **options)(*args)


def is_cached(model: nn.Module) -> bool:
    return strop.report(model).graphs[-1].cached


# ---- Another process ------------------------------------------------------------------------------------------------

CHILD = """
import json, sys, time
import torch
sys.path.insert(0, {tests!r})
import strop
from support import models
from support.cases import generator
import test_cache

kind, dtype, to, refuse = sys.argv[1:]
if refuse == "refuse":
    def refuse(*args, **kwargs):
        raise RuntimeError("captured again")
    torch.export.export = refuse
g = generator("child")
if kind == "layer":
    model, calls = test_cache.Layer(), [dict(x=test_cache.draw(2, 5, 8)), dict(x=test_cache.draw(1, 9, 8))]
else:
    model = models.make(kind)
    calls = [models.tokens(b, n, g, models.mask(m, b, n, g))
             for b, n, m in ((3, 9, "right"), (2, 6, "holes"), (2, 7, "left"), (2, 5, "none"), (4, 8, "right"))]
dtype = getattr(torch, dtype) if dtype else None
before = "torch._dynamo" in sys.modules
begin = time.perf_counter()
strop.optimize_model(model, dtype=dtype)
with torch.no_grad():
    results = [model(**call) for call in calls]
    seconds = time.perf_counter() - begin
report = strop.report(model)
leaves = [[t for t in torch.utils._pytree.tree_leaves(r) if t is not None] for r in results]
torch.save(leaves, to)
print(json.dumps(dict(
    cached=[g.cached for g in report.graphs], eager=report.eager, seconds=seconds, report=str(report),
    types=[type(r).__name__ for r in results],
    dynamo=(not before) and "torch._dynamo" in sys.modules,
)))
"""


def child(tmp_path: Path, kind: str, dtype: str, name: str, refuse: bool) -> tuple[dict[str, Any], list[list[Tensor]]]:
    source = CHILD.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", source, kind, dtype, str(tmp_path / name), "refuse" if refuse else ""]
    environment = {**os.environ, "STROP_TEST_SEED": str(SEED)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), torch.load(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("layer", ""), ("BERT", ""), ("BERT", "bfloat16"), ("ModernBERT", ""), ("MPNet", "")]
)
def test_the_next_process_computes_the_same_without_capturing(tmp_path: Path, kind: str, dtype: str) -> None:
    made, wanted = child(tmp_path, kind, dtype, "first", refuse=False)
    read, given = child(tmp_path, kind, dtype, "second", refuse=True)
    assert all(read["cached"]) and not any(made["cached"]) and not read["eager"] and not made["eager"]
    assert read["types"] == made["types"] and read["report"].replace(", from the cache", "") == made["report"]
    assert [len(r) for r in given] == [len(r) for r in wanted]
    for a, b in zip([t for r in given for t in r], [t for r in wanted for t in r], strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert read["seconds"] < 10
    assert not read["dynamo"]  # neither tracing nor its imports


# ---- What is found again --------------------------------------------------------------------------------------------


def test_models_of_other_weights_share_an_entry(captures: list[str], where: Path) -> None:
    x = draw(2, 5, 8)
    for seed in (0, 1, 2):
        model = Layer(seed=seed)
        with torch.no_grad():
            wanted = model(x)
        torch.testing.assert_close(first(model, x), wanted, rtol=1e-5, atol=1e-5)
        assert is_cached(model) == (seed > 0)
    assert len(captures) == 1 and len(list(where.iterdir())) == 1


def test_weights_are_live_and_replaced_ones_noticed(captures: list[str]) -> None:
    first(Layer(), draw(2, 5, 8))
    model, plain, other = Layer(), Layer(), Layer(seed=5)
    for dtype, tolerance in ((None, 1e-5), (torch.bfloat16, 5e-2)):
        first(model, draw(2, 5, 8), dtype=dtype)
        for m in (model, plain):
            m.load_state_dict(other.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(
                model(draw(2, 5, 8)).float(), plain(draw(2, 5, 8)), rtol=tolerance, atol=2 * tolerance
            )
        for m in (model, plain):
            m.linear.weight = nn.Parameter(torch.eye(8))
        with torch.no_grad():
            torch.testing.assert_close(
                model(draw(2, 5, 8)).float(), plain(draw(2, 5, 8)), rtol=tolerance, atol=2 * tolerance
            )
    assert len(captures) == 2 and is_cached(model)  # one a dtype


def test_report_and_restore_are_the_same() -> None:
    made, read = Layer(), Layer(seed=1)
    first(made, draw(2, 5, 8)), first(read, draw(2, 5, 8))
    assert is_cached(read) and not is_cached(made)
    assert str(strop.report(read)) == str(strop.report(made)).replace("1 calls", "1 calls, from the cache")
    assert "from the cache" in strop.report(read)._repr_html_()
    strop.restore(read)
    assert "forward" not in read.__dict__


def test_no_weights_are_written(where: Path) -> None:
    first(Layer(512), draw(2, 5, 512))
    [entry] = where.iterdir()
    assert entry.stat().st_size < 512 * 512 * 4 / 10


# ---- What is another graph ------------------------------------------------------------------------------------------


def changed_attribute(model: Layer) -> None:
    model.norm.eps = 1e-6


def changed_constant(model: Layer) -> None:
    model.scales = torch.tensor([1.0, 3.0])


def changed_class(model: Layer) -> None:
    model.norm = nn.RMSNorm(8)
    model.norm.eval()


@pytest.mark.parametrize(
    ("change", "args", "options"),
    [
        (changed_attribute, (), {}),
        (changed_constant, (), {}),
        (changed_class, (), {}),
        (lambda model: None, (3.0,), {}),
        (lambda model: None, (), {"dtype": torch.bfloat16}),
        (lambda model: None, (), {"ragged": False}),
        (lambda model: model.double(), (), {}),
    ],
    ids=["attribute", "constant", "class", "argument", "dtype", "ragged", "weights"],
)
def test_what_decides_the_graph_is_a_miss(
    change: Callable[[Layer], Any], args: tuple[Any, ...], options: dict[str, Any], captures: list[str]
) -> None:
    first(Layer(), draw(2, 5, 8))
    model, plain = Layer(), Layer()
    change(model), change(plain)
    x = draw(2, 5, 8).to(plain.linear.weight.dtype)
    with torch.no_grad():
        wanted = plain(x, *args)
    tolerance = 5e-2 if options.get("dtype") else 1e-5
    torch.testing.assert_close(first(model, x, *args, **options).to(x.dtype), wanted, rtol=tolerance, atol=tolerance)
    assert len(captures) == 2 and not is_cached(model)


def test_another_shape_of_a_weight_is_a_miss(captures: list[str]) -> None:
    first(Layer(8), draw(2, 5, 8)), first(Layer(16), draw(2, 5, 16))
    assert len(captures) == 2


def test_another_configuration_is_a_miss_and_another_name_is_none(captures: list[str]) -> None:
    g = generator("configuration")
    call = models.tokens(2, 6, g, models.mask("right", 2, 6, g))
    for more in ({}, {"name_or_path": "elsewhere"}, {"layer_norm_eps": 1e-6}, {"hidden_act": "relu"}):
        model = models.make("BERT", layers=1, **more)
        with torch.no_grad():
            wanted = model(**call)
            given = strop.optimize_model(model)(**call)
        assert models.worst(given, wanted, call["attention_mask"]) < 1e-5
    assert len(captures) == 3


SOURCE = """
import torch
from torch import nn
from {helper} import shifted

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(8)), self.linear.bias.zero_()
        self.eval()

    def forward(self, x):
        return shifted(self.linear(x)) * {factor}
"""
HELPER = "def shifted(x):\n    return x + {shift}\n"


def test_another_source_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: list[str]) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    names = "strop_test_own", "strop_test_helper"
    x = draw(2, 5, 8)
    for factor, shift in ((2, 1), (2, 1), (3, 1), (3, 4)):
        (tmp_path / f"{names[0]}.py").write_text(SOURCE.format(helper=names[1], factor=factor))
        (tmp_path / f"{names[1]}.py").write_text(HELPER.format(shift=shift))
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        model = importlib.import_module(names[0]).Own()
        torch.testing.assert_close(first(model, x), (x + shift) * factor)
    assert len(captures) == 3


def test_patterns_of_users_are_not_kept(captures: list[str], where: Path) -> None:
    first(Layer(), draw(2, 5, 8))
    rule = strop.replace_pattern(lambda x: torch.exp(x) * 1, lambda x: torch.exp(x))
    try:
        model = Layer()
        first(model, draw(2, 5, 8))
        assert not is_cached(model) and len(captures) == 2
    finally:
        rule.remove()
    model = Layer()
    first(model, draw(2, 5, 8))
    assert is_cached(model) and len(captures) == 2 and len(list(where.iterdir())) == 1


def hooked(model: Layer) -> None:
    model.linear.register_forward_hook(lambda module, args, output: output * 2)


def closed_over(model: Layer) -> None:
    factor = 2.0
    model.act = lambda x: x * factor


def with_an_object(model: Layer) -> None:
    model.act = object()


def of_another_class(model: Layer) -> None:
    model.linear.weight = type("Mine", (nn.Parameter,), {})(model.linear.weight.detach())


@pytest.mark.parametrize(
    "change", [hooked, closed_over, with_an_object, of_another_class], ids=lambda change: change.__name__
)
def test_what_cannot_be_told_is_not_kept(change: Callable[[Layer], None], where: Path) -> None:
    for _ in range(2):
        model, plain = Layer(), Layer()
        change(model), change(plain)
        with torch.no_grad():
            torch.testing.assert_close(first(model, draw(2, 5, 8)), plain(draw(2, 5, 8)), rtol=1e-5, atol=1e-5)
    assert not where.exists() or not list(where.iterdir())


# ---- Files ----------------------------------------------------------------------------------------------------------


def edited(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    header, constants = cache._opened(data)
    edit(header)
    return cache._closed(header, constants)


def another_operator(header: dict[str, Any]) -> None:
    for node in header["graph"]:
        node[2] = node[2].replace("linear_act", "no_such_operator")


def another_result(header: dict[str, Any]) -> None:
    """What a wrong graph is: well formed, and not what the module computes."""
    header["plan"] = None
    for node in header["graph"]:
        node[3] = json.loads(json.dumps(node[3]).replace('"gelu"', '"relu"'))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"x" + data[1:],
        lambda data: edited(data, lambda header: header.pop("graph")),
        lambda data: edited(data, another_operator),
        lambda data: edited(data, another_result),
    ],
    ids=["empty", "truncated", "a flipped bit", "another format", "a part missing", "another operator", "wrong"],
)
def test_a_damaged_entry_is_replaced(damage: Callable[[bytes], bytes], where: Path, captures: list[str]) -> None:
    x = draw(2, 5, 8)
    wanted = first(Layer(), x)
    [entry] = where.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    for cached in (False, True):
        model = Layer()
        assert torch.equal(first(model, x), wanted) and is_cached(model) == cached
    assert len(captures) == 2 and cache._opened(entry.read_bytes()) is not None


def test_the_folder_is_bounded(where: Path, monkeypatch: pytest.MonkeyPatch, captures: list[str]) -> None:
    monkeypatch.setattr(cache, "MOST_ENTRIES", 2)
    for n, columns in enumerate((8, 16)):
        first(Layer(columns), draw(2, 5, columns))
        [newest] = [p for p in where.iterdir() if p.stat().st_mtime > 1e6]
        os.utime(newest, (n, n))
    first(Layer(8), draw(2, 5, 8))  # read: it is the newest now
    first(Layer(24), draw(2, 5, 24))
    assert len(list(where.iterdir())) == 2 and len(captures) == 3
    first(Layer(8), draw(2, 5, 8))
    assert len(captures) == 3
    first(Layer(16), draw(2, 5, 16))
    assert len(captures) == 4
    monkeypatch.setattr(cache, "MOST_BYTES", 1)
    first(Layer(32), draw(2, 5, 32))
    assert not list(where.iterdir())


def test_many_may_write_and_read_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "one.strop"
    contents = [cache._closed({"n": n}, {"t": torch.full((1000,), float(n))}) for n in range(4)]

    def write(n: int) -> None:
        for _ in range(25):
            cache._put(path, contents[n])

    def read(_: int) -> int:
        whole = 0
        for _ in range(50):
            if path.exists():
                header, constants = cache._opened(path.read_bytes())
                assert bool((constants["t"] == header["n"]).all())
                whole += 1
        return whole

    cache._put(path, contents[0])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(work, n) for n in range(4) for work in (write, read)]
        assert sum(task.result() or 0 for task in tasks) == 200
    assert [p.name for p in tmp_path.iterdir()] == ["one.strop"]


def test_a_folder_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STROP_CACHE_DIR", str(tmp_path / "file" / "below"))
    for _ in range(2):
        model = Layer()
        first(model, draw(2, 5, 8))
        assert not is_cached(model)


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, where: Path) -> None:
    assert cache.folder() == where
    monkeypatch.delenv("STROP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.folder() == Path("/somewhere/strop")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.folder() == Path("/home/me/.cache/strop")
    monkeypatch.setenv("STROP_CACHE", "0")
    assert cache.folder() is None


@pytest.fixture
def _switched_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STROP_CACHE", "0")
    yield


@pytest.mark.usefixtures("_switched_off")
def test_switched_off_nothing_is_written(where: Path, captures: list[str]) -> None:
    for _ in range(2):
        first(Layer(), draw(2, 5, 8))
    assert len(captures) == 2 and not where.exists()
