"""The benchmarks: what is compared agrees, processes may die, a run goes on, the table says what the record says."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import benchmark_children

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import baselines  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import encoders  # noqa: E402
import inference  # noqa: E402
import losses  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import plot  # noqa: E402
import record as records  # noqa: E402
import table  # noqa: E402
import timing  # noqa: E402

# ---- What is compared -----------------------------------------------------------------------------------------------


def small(kernel: str) -> tuple[int, ...]:
    return (2, 5, 33) if cases.is_reverse_kl(kernel) else (3, 17)


def run(kernel: str, impl: str, beta: float | None, dtype: torch.dtype = torch.float32, mask: str = "quarter") -> Any:
    torch.manual_seed(0)
    inputs = cases.make_inputs(kernel, small(kernel), dtype, "cpu", mask)
    beta = None if cases.is_reverse_kl(kernel) else beta
    return cases.ready(kernel, impl, beta, inputs, cases.leaf_of(inputs))()


@pytest.mark.parametrize("kernel", cases.KERNELS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_all_agree(kernel: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form, whole graphs as Dynamo and AOTAutograd trace them; what inductor makes of them takes too long here."""

    def traced(function: Any) -> Any:
        return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(baselines, "compiled", traced)
    torch._dynamo.reset()
    impls = cases.impls_of(kernel, [impl for impl in cases.IMPLS if impl != "liger"])
    expected = run(kernel, "eager", beta)
    for impl in impls:
        result = run(kernel, impl, beta)
        cases.check(result, expected, torch.float32)
        assert isinstance(result, tuple) == (not kernel.endswith("_fwd"))
    assert {"strop", "eager"} < set(impls)
    assert len([impl for impl in impls if impl.startswith("compile")]) == 1 + (kernel in records.FAMILIES)


def test_traced_form_is_there() -> None:
    assert "compile_traced" in cases.impls_of("reverse_kl", cases.IMPLS)
    assert "compile_written" in cases.impls_of("reverse_kl", cases.IMPLS)
    assert "liger" in cases.impls_of("reverse_kl", cases.IMPLS)
    assert "fused_backward" in cases.impls_of("grpo_loss_autograd", cases.IMPLS)
    assert hasattr(torch._dynamo.config, "trace_autograd_ops")


@pytest.mark.parametrize("dtype", list(cases.DTYPES))
def test_dtypes(dtype: str) -> None:
    for kernel in ("bnpo_loss", "reverse_kl"):
        result, expected = (run(kernel, impl, 0.1, cases.DTYPES[dtype]) for impl in ("strop", "eager"))
        cases.check(result, expected, cases.DTYPES[dtype])
        assert result[1].dtype == cases.DTYPES[dtype]


def test_wrong_results_are_not_timed() -> None:
    loss, grad = run("grpo_loss", "eager", 0.1)
    for wrong in [(loss, grad * 1.01), (loss + 0.01, grad), (loss, grad * torch.nan)]:
        with pytest.raises(AssertionError, match="wrong by more"):
            cases.check(wrong, (loss, grad), torch.float32)


def test_masks_and_bytes() -> None:
    rows = (8, 64)
    assert cases.make_mask(rows, "full", "cpu").all()
    assert cases.make_mask(rows, "quarter", "cpu").sum() == 8 * 64 * 3 // 4
    ragged = cases.make_mask(rows, "ragged", "cpu")
    assert (ragged.sum(1) >= 32).all() and (ragged.int().diff() <= 0).all()
    full, quarter = (
        cases.bytes_moved("reverse_kl_fwd", cases.make_inputs("reverse_kl", (4, 8, 10), torch.half, "cpu", mask), None)
        for mask in ("full", "quarter")
    )
    assert full == 2 * 320 * 2 + 32
    assert quarter == 2 * 320 * 2 * 3 // 4 + 32
    policy = cases.make_inputs("grpo_loss", (4, 8), torch.float32, "cpu", "full")
    assert cases.bytes_moved("grpo_loss", policy, 0.1) - cases.bytes_moved("grpo_loss", policy, 0.0) == 4 * 8 * 4


# ---- How it is timed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "samples"), [(1e-5, 20), (0.025, 8), (0.5, 2), (5.0, 2)])
def test_slow_calls_get_fewer_samples(seconds: float, samples: int) -> None:
    assert timing.share(100, 5, seconds) == samples


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    order: list[str] = []

    def full() -> None:
        order.append("b")
        raise torch.OutOfMemoryError

    calls = {"a": lambda: order.append("a"), "b": full, "c": lambda: time.sleep(0.006)}
    times = timing.measure("wall", calls, "cpu", large=False, rounds=3)
    assert times["b"] == "out of memory"
    assert order.count("b") == 1
    assert len(times["a"]) == len(times["c"]) == 3
    assert all(0.006 <= seconds < 0.1 for seconds in times["c"])
    assert [name for name, before in zip(order, ["", *order]) if name != before] == ["a", "b", "a"]  # noqa: B905


@pytest.mark.parametrize("large", [False, True])
def test_cuda_by_the_clock(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 calls to warm up and 100 that count, each waited for."""
    counts = {"calls": 0, "waits": 0}

    def count(name: str) -> None:
        counts[name] += 1

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: count("waits"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    times = timing.measure("wall", {"a": lambda: count("calls")}, "cuda", large, rounds=1)
    assert counts == {"calls": 120, "waits": 120}
    assert len(times["a"]) == 100


def test_do_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 ms in all, and every reading kept."""
    asked: list[tuple] = []

    def do_bench(call: Any, warmup: float, rep: float, return_mode: str) -> list[float]:
        asked.append((warmup, rep, return_mode))
        return [1.0, 2.0]

    monkeypatch.setitem(sys.modules, "triton.testing", SimpleNamespace(do_bench=do_bench))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    times = timing.measure("do_bench", {"a": lambda: None}, "cuda", large=False, rounds=1)
    assert times == {"a": 5 * [1e-3, 2e-3]}
    assert asked == 5 * [(5.0, 20.0, "all")]


class FakeGraph:
    """As much of torch.cuda as capturing needs, without a GPU."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.replay = self.reset = self.synchronize = self.record = lambda: None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 2.0


def test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be captured says why, and the others are timed."""
    for name in ("Stream", "stream", "CUDAGraph", "graph", "Event"):
        monkeypatch.setattr(torch.cuda, name, FakeGraph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *_, **__: empty(1))
    calls = {"a": 0, "b": 0, "c": 0}

    def call(name: str, error: Exception | None) -> None:
        calls[name] += 1
        if error and calls[name] == 2:  # the first is no capture yet
            raise error

    bound = {
        "a": partial(call, "a", None),
        "b": partial(call, "b", torch.OutOfMemoryError()),
        "c": partial(call, "c", RuntimeError("operation not permitted when stream is capturing\nat …")),
    }
    times = timing.measure("graph", bound, "cuda", large=False, rounds=1)
    assert times["a"] == 50 * [2e-3]
    assert times["b"] == "out of memory"
    assert times["c"] == "not captured: operation not permitted when stream is capturing"


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one case; an implementation that cannot be had says why, and ours must be had."""
    settings = measure.Settings(impls=("strop", "eager", "fused_backward", "liger"), rounds=2)
    case = {"dtype": "bf16", "beta": None, "methods": ["wall"]}
    (rows,) = measure.measure_case("reverse_kl", (1, 4, 64), case, settings)
    assert [row["impl"] for row in rows] == ["strop", "eager", "liger"]
    for row in rows[:2]:
        assert row["us"] > 0 and row["add_us"] > 0 and row["calls"] == 2
        assert row["us_best_and_quartiles"][0] <= row["us_best_and_quartiles"][2]
        assert row["bytes"] == 3 * 256 * 2 + 4
        assert {"kernel", "shape", "dtype", "beta", "impl", "method"} < set(row)
    if "liger_kernel" not in sys.modules and rows[2]["us"] is None:
        assert rows[2]["why"]
    monkeypatch.setattr(cases, "check", lambda *_: (_ for _ in ()).throw(AssertionError("wrong by 1")))
    with pytest.raises(AssertionError, match="wrong by 1"):
        list(measure.measure_case("reverse_kl", (1, 4, 64), case, settings))


# ---- Processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context() -> Any:
    return children.context("forkserver")


def job(*dtypes: str) -> dict:
    return {"kernel": "k", "shape": [1, 2], "cases": [{"dtype": dtype, "beta": None} for dtype in dtypes]}


def test_a_process_that_dies(context: Any) -> None:
    """It is reported, and the cases behind it go on in a new process."""
    seen: list[tuple[str, Any]] = []
    dead = children.run_job(
        context, benchmark_children.measure, job("a", "b", "c"), ["b"], lambda *message: seen.append(message)
    )
    rows = [what[0].split() for kind, what in seen if kind == "rows"]
    assert [row[1] for row in rows] == ["a", "c"]
    assert rows[0][2] != rows[1][2]
    assert len(dead) == 1 and "'b'" in dead[0] and "exit code 9" in dead[0]


def test_a_process_that_cannot_start(context: Any) -> None:
    dead = children.run_job(context, benchmark_children.die_at_once, job("a", "b"), None, lambda *_: None)
    assert dead == ["k (1, 2) before its first case: exit code 1"]
    with pytest.raises(SystemExit, match="exit code 1"):
        children.ask(context, benchmark_children.die_at_once, None, None)
    assert children.ask(context, benchmark_children.answer, 41) == 42


def test_together(context: Any, tmp_path: Path) -> None:
    """No more than allowed at once, by number and by memory; after the time is up those that run are ended."""
    needs = {"a": 6, "b": 5, "c": 1, "d": 1}
    jobs = [(need, (str(tmp_path), name, 0.3)) for name, need in needs.items()]
    assert sum(children.run_together(context, benchmark_children.leave_a_mark, jobs, 3, 10, None)) == 4
    spans = {path.name: tuple(map(float, path.read_text().split())) for path in tmp_path.iterdir()}
    assert spans["b"][0] >= spans["a"][1]
    for moment in [start for start, _ in spans.values()]:
        assert sum(start <= moment < end for start, end in spans.values()) <= 3
    start = time.time()
    jobs = [(1, (str(tmp_path), "e", 60.0))]
    assert sum(children.run_together(context, benchmark_children.leave_a_mark, jobs, 1, 10, time.time() + 0.2)) == 0
    assert time.time() - start < 30 and not (tmp_path / "e").exists()


def test_compile_first(context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each job and dtype; what it tunes goes nowhere, its share of the memory is by size."""
    monkeypatch.setattr(measure, "compile_only", benchmark_children.compile_only)
    command = ["--device", "cuda", "--compile-first", "2", "--kernels", "grpo_loss,reverse_kl"]
    options = losses.parse([*command, "--shapes", "16x64,8x1024x248320", "--dtypes", "fp32,bf16"])
    settings = measure.Settings("cuda", triton_cache=tmp_path)
    losses.compile_first(losses.list_jobs(options, {"rows": []}), options, settings, context, 80 * 2**30)
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(found) == {"grpo_loss-16-fp32", "grpo_loss-16-bf16", "reverse_kl-8-fp32", "reverse_kl-8-bf16"}
    assert all(one["there"] and not Path(one["inductor"]).exists() for one in found.values())
    assert found["grpo_loss-16-fp32"]["share"] == 2 / 80
    assert 0.5 < found["reverse_kl-8-bf16"]["share"] < 0.6


def test_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "record.json"
    command = ["--kernels", "grpo_loss,grpo_loss_autograd", "--shapes", "2x8", "--impl", "strop,eager,fused_backward"]
    command += ["--rounds", "1", "--threads", "1", "--output", str(path)]
    assert losses.main([*command, "--budget", "0"])["rows"] == []
    assert "2 cases are left" in capsys.readouterr().err
    first = losses.main(command)["rows"]
    assert [row["kernel"] for row in first] == 2 * ["grpo_loss"] + 3 * ["grpo_loss_autograd"]
    before = json.loads(path.read_text())
    assert before["rows"] == first
    assert before["limits"]["copy_gb_per_s"]
    after = losses.main([*command, "--dtypes", "fp32,bf16", "--kernels", "grpo_loss"])
    assert [row["dtype"] for row in after["rows"]] == 5 * ["fp32"] + 2 * ["bf16"]
    assert after["rows"][:5] == first
    with pytest.raises(SystemExit, match="another inputs"):
        losses.main([*command, "--mask", "ragged"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "wall,graph"], "graph: only with --device cuda"),
        (["--compile-first", "4"], "compiling first: only with --device cuda"),
        (["--kernels", "grpo"], "no grpo"),
        (["--shapes", "4"], "shapes have two lengths"),
    ],
)
def test_clear_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        losses.parse(arguments)
    assert message in capsys.readouterr().err


def test_jobs() -> None:
    options = losses.parse(
        ["--device", "cuda", "--method", "wall,do_bench", "--beta", "0,0.1", "--dtypes", "fp32,bf16"]
    )
    jobs = losses.list_jobs(options, {"rows": []})
    assert len(jobs) == 2 * (5 + 6 + 6)  # a process for each kernel and shape
    assert sum(len(job["cases"]) for job in jobs) == 2 * (5 * 4 + 6 * 4 + 6 * 2)
    rows = [
        {"kernel": "grpo_loss", "shape": [16, 1024], "dtype": "fp32", "beta": 0.0, "impl": impl, "method": "wall"}
        for impl in cases.impls_of("grpo_loss", options.impl)
    ]
    assert losses.list_jobs(options, {"rows": rows})[0]["cases"][0]["methods"] == ["do_bench"]
    assert losses.list_jobs(options, {"rows": rows[1:]})[0]["cases"][0]["methods"] == ["wall", "do_bench"]
    options = losses.parse(["--shapes", "4x4,2x2x9"])
    assert {tuple(job["shape"]) for job in losses.list_jobs(options, {"rows": []})} == {(4, 4), (2, 2, 9)}


# ---- Whole models ---------------------------------------------------------------------------------------------------


def test_batches() -> None:
    """As much padding as their names say, and a row without any."""
    for padding, share in {"none": 1.0, "real75": 0.75, "real50": 0.5}.items():
        batch = encoders.make_batch(32, 128, padding, "cpu")
        mask = batch["attention_mask"]
        assert {tuple(x.shape) for x in batch.values()} == {(32, 128)}
        assert abs(mask.float().mean().item() - share) < 0.01
        assert mask.sum(1).max() == 128 and mask.sum(1).min() >= 1
        assert (mask.diff() <= 0).all() and not batch["input_ids"][mask == 0].any()


def test_inference_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "minilm_folder", Path)
    monkeypatch.setattr(encoders, "sentence_ids", lambda count, longest: ((1,) * min(longest, 33),) * count)
    options = inference.parse(["--shapes", "1x16,4x16,4x33"])
    jobs = inference.list_jobs(options, {"rows": []})
    found = {(job["kernel"], *job["shape"]): [case["padding"] for case in job["cases"]] for job in jobs}
    assert found["minilm", 1, 16] == 3 * ["none"]  # a row has no padding: the first call, the clock, new shapes
    assert found["minilm", 4, 16] == ["none", "none", "real75", "real50", "none"]
    assert found["bert-base", 4, 33] == ["none", "none", "real75", "real50", "text", "none"]
    assert found["minilm", 1, 33] == 3 * ["text"]
    assert len(found) == len(jobs) == 2 * 4
    with pytest.raises(SystemExit):
        inference.parse(["--method", "host"])


def test_inference(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A tiny model, all of it; a run that was stopped goes on."""
    pytest.importorskip("transformers")
    path = tmp_path / "record.json"
    command = ["--models", "tiny", "--shapes", "2x9", "--padding", "none,real50", "--impl", "strop,eager"]
    command += ["--rounds", "2", "--threads", "1", "--output", str(path)]
    assert inference.main([*command, "--budget", "0"])["rows"] == []
    record = inference.main(command)
    cases = [(row["padding"], row["method"], row["impl"]) for row in record["rows"]]
    steps = [
        ("none", "first_call"),
        ("none", "wall"),
        ("real50", "wall"),
        ("none", "new_shape"),
        ("none", "next_shape"),
    ]
    assert cases == [(*step, impl) for step in steps for impl in ("strop", "eager")]
    assert all(row["ms"] > 0 and row["difference"] < 1e-5 for row in record["rows"])
    assert {"cpu", "versions", "commit", "limits", "rows"} == set(record)
    assert json.loads(path.read_text()) == record
    assert inference.main(command) == record  # nothing is left to do
    assert "vs eager" in capsys.readouterr().out


def test_wrong_models_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    build = encoders.build

    def wrong(impl: str, *arguments: Any) -> Any:
        function = build(impl, *arguments)
        return (lambda batch: 1.1 * function(batch)) if impl == spoiled else function

    monkeypatch.setattr(encoders, "build", wrong)
    settings = inference.Settings("cpu", ("strop", "eager"), None, 1, None)
    job = {"kernel": "tiny", "shape": [2, 5], "dtype": "fp32"}
    spoiled = "eager"
    with torch.no_grad():
        rows = inference.Runner(job, "none", settings).rows("none", "wall")
    assert rows[0]["ms"] > 0 and rows[1]["ms"] is None and "differs from eager fp32 by 0.1" in rows[1]["why"]
    spoiled = "strop"
    with torch.no_grad(), pytest.raises(AssertionError, match="differs from eager fp32"):
        inference.Runner(job, "none", settings).rows("none", "wall")


# ---- What is made of a record ---------------------------------------------------------------------------------------


def made_up(mask: str = "full", speed: float = 1.0) -> dict:
    """Two shapes; vs eager 20 and 5, vs compile 2 and 0.5."""
    times = {"strop": (10, 20), "eager": (200, 100), "compile_written": (20, 10), "compile_traced": (30, 12)}
    rows = [
        {"kernel": kernel, "shape": [2, 8 * 2**i], "dtype": "fp32", "beta": 0.1, "impl": impl, "method": "do_bench"}
        | {"us": speed * us[i], "add_us": 5.0, "bytes": 15_000_000 * (i + 1)}
        for kernel in ("grpo_loss", "grpo_loss_autograd")
        for impl, us in {**times, "fused_backward": (8, 16)}.items()
        if impl != "fused_backward" or kernel.endswith("autograd")
        for i in range(2)
    ]
    limits = {"threads": 1, "inputs": {"mask": cases.MASKS[mask]}, "copy_gb_per_s": {str(2**30): 3000.0}}
    return {"gpu": "GPU", "versions": {"torch": "2.11"}, "commit": "0" * 40, "limits": limits, "rows": rows}


def test_table() -> None:
    record = made_up()
    record["memory"] = [
        {"call": "reverse_kl", "shape": [1, 2, 3], "dtype": "bf16", "peak": 3 * 2**20, "beyond": 2**20},
        {"call": "eager", "shape": [1, 2, 3], "dtype": "bf16", "peak": None, "beyond": None},
    ]
    text = "\n\n".join(table.report([record, made_up("quarter", 0.8)]))
    assert (
        "| `grpo_loss` | 0.1 | fp32 | 10 (5 at 2×16) | **27** | 1 (**0.50** at 2×16) | **1.08** | 10 (2.0) | 50, 50 % |"
    ) in text
    assert "- `grpo_loss` 2×16 fp32, beta 0.1, do_bench: 0.50 × compile (20 µs against 10)" in text
    assert "| `grpo_loss_autograd` | 0.1 | fp32 | do_bench | 1.25 (1.25 at 2×8) |" in text
    assert "Mask: bool, a random quarter" in text
    assert "| `grpo_loss` | 0.1 | fp32 | do_bench | 0.80 (0.80 at 2×8) |" in text
    assert "| `reverse_kl` | 1×2×3 | bf16 | 3.0 | 1.0 |" in text
    assert "| out of memory | out of memory |" in text


def test_table_says_what_is_missing() -> None:
    record = made_up()
    for row in record["rows"]:
        if row["impl"] == "eager" and row["shape"] == [2, 16]:
            row["us"], row["why"] = None, "out of memory"
    assert "| 20 (20 at 2×8, 1 of 2 shapes) |" in "\n".join(table.report([record]))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/records").glob("*.json")), ids=lambda path: path.stem)
def test_kept_records(path: Path) -> None:
    record = json.loads(path.read_text())
    text = "\n".join(table.report([record]))
    for kernel, dtype in {(row["kernel"], row["dtype"]) for row in record["rows"]}:
        assert any(f"`{kernel}`" in line and dtype in line for line in text.splitlines())


def test_plots(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    path.write_text(records.as_json(made_up()))
    assert json.loads(path.read_text()) == made_up()
    drawn = plot.main([str(path), "--output", str(tmp_path / "plots")])
    names = ["made-grpo_loss-do_bench.png", "made-grpo_loss_autograd-do_bench.png"]
    assert [file.name for file in drawn] == names
    assert all(file.stat().st_size > 10_000 for file in drawn)


def test_memory_wants_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        memory.main([])
    assert "there is no CUDA device" in capsys.readouterr().err


def test_memory(cuda: str) -> None:
    rows = {row["call"]: row for row in memory.measure((2, 64, 4096), "bf16")}
    assert rows["reverse_kl"]["peak"] >= 2 * 64 * 4096 * 2
    assert rows["reverse_kl(inplace=True)"]["peak"] < 2**20
    assert rows["eager"]["beyond"] > rows["reverse_kl"]["beyond"]


def test_gpu_methods(cuda: str) -> None:
    """Each method on a GPU, the compiled forms left out."""
    settings = measure.Settings(device="cuda", impls=("strop", "eager", "fused_backward"))
    for kernel in ("grpo_loss", "grpo_loss_autograd"):
        case = {"dtype": "fp32", "beta": 0.1, "methods": losses.METHODS}
        for rows in measure.measure_case(kernel, (4, 256), case, settings):
            assert all(row["us"] > 0 for row in rows), rows
