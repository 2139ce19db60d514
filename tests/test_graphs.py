"""CUDA graphs: buckets, what a graph's memory holds between calls, how many are kept; on CUDA, replays themselves.

Without a GPU a recording stands in that computes anew from the graph's own inputs into its own outputs, as replays do.
"""

from __future__ import annotations

import gc
import importlib.util
import threading
from typing import Any

import pytest
import strop
import torch
from strop.rewrite.graphs import Graphs, Replay, bucket
from strop.rewrite.model import Forward, forward_of
from support.cases import generator
from support.models import make, mask, tokens, worst
from torch import nn

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]
BOUND = 1e-5


class Again:
    def __init__(self, compute: Any, inputs: Any, outputs: Any) -> None:
        self.compute, self.inputs, self.outputs = compute, inputs, outputs

    def replay(self) -> None:
        for own, new in zip(self.outputs, self.compute(self.inputs), strict=True):
            own.copy_(new)


class Pretended(Graphs):
    def _record(self, inputs: Any, compute: Any) -> Replay:
        outputs = [torch.full_like(t, float("nan")) for t in compute(inputs)]
        self.recorded += 1
        return Replay(Again(compute, inputs, outputs), inputs, outputs)

    def enter(self) -> None:
        pass

    def recording(self) -> bool:
        return False


def pretend(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Pretended:
    graphs = Pretended(torch.device("cpu"), **options)
    monkeypatch.setattr(Forward, "_graphs_of", lambda self, device: self.graphs_by_device.setdefault(device, graphs))
    return graphs


def run(model: nn.Module, eager: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        assert worst(model(**inputs), eager(**inputs), inputs.get("attention_mask")) <= BOUND


def test_buckets_hold_what_they_are_for() -> None:
    g = generator("buckets")
    for _ in range(2000):
        batch = int(torch.randint(1, 300, (), generator=g))
        lengths = torch.randint(1, 600, (batch,), generator=g)
        count, longest = int(lengths.sum()), int(lengths.max())
        t, b, most = bucket(count, batch, longest)
        assert t >= count and b >= batch and most >= longest and t % 16 == 0
        assert t <= max(16, count * 9 / 8 + 16) and b < 2 * batch and most < max(32, 2 * longest)
    for count, batch, length in ((16, 1, 16), (128, 1, 128), (4096, 8, 512), (8192, 32, 256)):
        assert bucket(count, batch, length) == (count, batch, length)  # what needs no rounding is not rounded


@pytest.mark.parametrize("name, head", [("BERT", "Model"), ("RoBERTa", "ForMaskedLM"), ("ModernBERT", "Model"),
                                        ("DistilBERT", "ForSequenceClassification"), ("MPNet", "Model")])  # fmt: skip
def test_replays_of_many_sizes(name: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier and larger call left in a graph's memory reaches no later result."""
    graphs = pretend(monkeypatch, at_once=True)
    layers = 2 if name == "ModernBERT" else 1  # one of each kind
    model, eager = strop.optimize_model(make(name, head, layers)), make(name, head, layers)
    g = generator("replays", name)
    for kind in ("right", "none", "right", "empty row"):
        for batch, length in ((5, 13), (3, 11), (2, 16), (1, 1), (3, 12), (5, 12)):
            run(model, eager, tokens(batch, length, g, mask(kind, batch, length, g)))
    assert graphs.recorded and graphs.replayed >= 24 and not graphs.broken
    if name != "MPNet":
        assert graphs.recorded < 22  # several sizes share a graph


def test_recorded_when_met_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = pretend(monkeypatch)
    model, eager = strop.optimize_model(make("BERT", "Model", 1)), make("BERT", "Model", 1)
    g = generator("again")
    recorded = []
    for _ in range(3):
        run(model, eager, tokens(2, 8, g))
        recorded.append((graphs.recorded, graphs.replayed))
    # Capture checks the packed graph on sizes of its own, once each.
    assert recorded[0][1] == 0 and recorded[1] == (1, 1) and recorded[2] == (1, 2)


def test_masks_of_floats_are_of_the_models_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated call gives what the first one did, and in its dtype, whatever the mask's."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = make("BERT", "Model", 1)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.body(input_ids=input_ids, attention_mask=attention_mask)[0]
            return hidden * attention_mask[..., None]

    graphs = pretend(monkeypatch, at_once=True)
    model = strop.optimize_model(Masked().eval(), dtype=torch.bfloat16)
    g = generator("float masks")
    inputs = {n: t for n, t in tokens(3, 8, g, mask("right", 3, 8, g)).items() if n in ("input_ids", "attention_mask")}
    inputs["attention_mask"] = inputs["attention_mask"].float()
    with torch.no_grad():
        results = [model(**inputs) for _ in range(3)]
    assert all(r.dtype == torch.bfloat16 and torch.equal(r, results[0]) for r in results), graphs.replayed


def test_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, at_once=True)
    model = strop.optimize_model(make("BERT", "Model", 1))
    g = generator("stay")
    with torch.no_grad():
        for real in (None, mask("right", 3, 8, g)):
            first = model(**tokens(3, 8, g, real))
            kept = [v.clone() for v in first.to_tuple()]
            model(**tokens(3, 8, g, real))
            assert all(torch.equal(a, b) for a, b in zip(first.to_tuple(), kept, strict=True))


def test_the_least_recently_used_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = pretend(monkeypatch, at_once=True, most=3)
    model, eager = strop.optimize_model(make("DistilBERT", "Model", 1)), make("DistilBERT", "Model", 1)
    g = generator("evicted")
    for length in (16, 32, 48, 16, 64):
        run(model, eager, tokens(1, length, g))
    assert len(graphs.replays) == 3
    before = graphs.recorded
    run(model, eager, tokens(1, 16, g))
    assert graphs.recorded == before  # it was used again before another came
    run(model, eager, tokens(1, 32, g))
    assert graphs.recorded == before + 1


def test_other_weights_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = pretend(monkeypatch, at_once=True)
    model, eager = strop.optimize_model(make("BERT", "Model", 1)), make("BERT", "Model", 1)
    g = generator("weights")
    inputs = tokens(2, 8, g)
    run(model, eager, inputs)
    for m in (model, eager):
        m.pooler.dense.weight = nn.Parameter(torch.zeros_like(m.pooler.dense.weight))
    run(model, eager, inputs)
    (program,) = forward_of(model).programs.values()
    assert [key[0] for key in graphs.replays] == [program.packed]


def test_what_cannot_be_recorded_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = pretend(monkeypatch, at_once=True)

    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "_record", refuse)
    model, eager = strop.optimize_model(make("BERT", "Model", 1)), make("BERT", "Model", 1)
    run(model, eager, tokens(2, 8, generator("refused")))
    assert graphs.broken == "operation not permitted when stream is capturing"


# ---- On CUDA --------------------------------------------------------------------------------------------------------


def on_cuda(name: str, head: str = "Model", dtype: Any = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    model = make(name, head, 2).cuda()
    return strop.optimize_model(model, dtype=dtype, **options), make(name, head, 2).cuda()


def call(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.cuda() for name, t in inputs.items()}


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "DistilBERT", "ELECTRA", "ModernBERT", "MPNet", "DeBERTa-v3"])
def test_cuda_is_eager(name: str, graphs: bool, cuda: str) -> None:
    model, eager = on_cuda(name, graphs=graphs)
    g = generator("cuda", name)
    for kind in ("right", "none", "left", "holes", "empty row"):
        for batch, length in ((5, 13), (3, 11), (1, 1), (3, 12)):
            inputs = call(tokens(batch, length, g, mask(kind, batch, length, g)))
            with torch.no_grad():
                given, wanted = model(**inputs), eager(**inputs)
            assert worst(given, wanted, inputs.get("attention_mask")) <= 2e-5, (kind, batch, length)
    programs = forward_of(model).programs.values()
    assert all(p.captured is not None and p.captured.plan is not None for p in programs), "node by node in Python"
    assert all("body" in p.packed.plans for p in programs if p.packed is not None), "node by node in Python"
    if graphs:
        assert " replays" in str(strop.report(model)) and "none any more" not in str(strop.report(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "DistilBERT", "ModernBERT"])
def test_cuda_halves_are_as_near_as_pytorch(name: str, dtype: torch.dtype, cuda: str) -> None:
    model, eager = on_cuda(name, dtype=dtype)
    half = make(name, "Model", 2).cuda().to(dtype)
    g = generator("halves", name)
    errors = torch.zeros(2, dtype=torch.float64)
    for batch, length in ((5, 13), (3, 31), (8, 40), (3, 31)):
        inputs = call(tokens(batch, length, g, mask("right", batch, length, g)))
        real = inputs["attention_mask"][..., None].double()
        with torch.no_grad():
            given, wanted, theirs = (m(**inputs).last_hidden_state.double() for m in (model, eager, half))
        errors += torch.stack([((t - wanted) * real).pow(2).sum() for t in (given, theirs)]).cpu()
    ours, plain = errors.sqrt().tolist()
    assert ours <= 1.1 * plain, (ours, plain)


def test_cuda_memory_is_bounded(cuda: str) -> None:
    """200 sizes: no capture anew, and after the first half no more memory than a few graphs' outputs."""
    model, _ = on_cuda("BERT")
    g = generator("bounded")
    used = []
    for i in range(200):
        batch, length = (int(torch.randint(1, most, (), generator=g)) for most in (17, 64))
        inputs = call(tokens(batch, length, g, mask("right", batch, length, g)))
        with torch.no_grad():
            model(**inputs)
        if i in (100, 199):
            gc.collect()
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_reserved())
    assert used[1] - used[0] <= 64 << 20, used
    assert len(strop.report(model).graphs) == 1


def test_cuda_threads_and_streams(cuda: str) -> None:
    """Four threads, each with a stream of its own, one model: each gets its own results."""
    model, eager = on_cuda("BERT", graphs=True)
    wrong: list[str] = []
    g = generator("threads")
    work = []
    for i in range(4):
        calls = [call(tokens(2 + i % 2, 12 + j, g, mask("right", 2 + i % 2, 12 + j, g))) for j in range(3)]
        with torch.no_grad():
            work.append([(c, eager(**c)) for c in calls])
    with torch.no_grad():
        model(**work[0][0][0])
    torch.cuda.synchronize()

    def loop(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for _ in range(20):
                for inputs, wanted in work[i]:
                    given = model(**inputs)
                    torch.cuda.current_stream().synchronize()
                    if worst(given, wanted, inputs["attention_mask"]) > 2e-5:
                        wrong.append(f"thread {i}")

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_cuda_within_a_recording_of_the_users(cuda: str) -> None:
    model, eager = on_cuda("BERT")
    g = generator("users")
    inputs = call(tokens(2, 9, g, mask("right", 2, 9, g)))
    with torch.no_grad():
        model(**inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(**inputs)
        graph.replay()
        torch.cuda.synchronize()
        assert worst(out, eager(**inputs), inputs["attention_mask"]) <= 2e-5
