"""optimize_model on transformers' encoders: what eager fp32 gives; every attention, linear layer and norm replaced;
padding not computed; plans that are their graphs.

Random weights and small sizes, but everything of the architecture: two layers with both kinds of attention where there
are two, each output head, both spellings of attention.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest
import strop
import torch
from support.cases import generator
from support.models import ARCHITECTURES, HEADS, MASKS, make, mask, tokens, worst
from support.plans import agree, all_of_it_is_plans, body_agrees, captured_by
from torch import Tensor, nn

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]

BOUND = 1e-5  # relative, of float32
SHAPES = ((3, 11), (1, 1), (1, 9), (5, 1), (2, 2), (2, 33))


def check(model: nn.Module, eager: nn.Module, name: str, kinds: tuple[str, ...] = MASKS, shapes=SHAPES) -> None:
    for kind in kinds:
        for batch, length in shapes:
            g = generator(name, kind, batch, length)
            inputs = tokens(batch, length, g, mask(kind, batch, length, g))
            with torch.no_grad():
                given, wanted = model(**inputs), eager(**inputs)
            assert worst(given, wanted, inputs.get("attention_mask")) <= BOUND, (kind, batch, length)


def pair(name: str, head: str, layers: int, attention: str = "sdpa") -> tuple[nn.Module, nn.Module]:
    return strop.optimize_model(make(name, head, layers, attention)), make(name, head, layers, attention)


def assert_all_replaced(model: nn.Module, name: str, layers: int, graphs: int, halves: bool = False) -> None:
    report = strop.report(model)
    assert [g.why_eager for g in report.graphs] == [""] * graphs and not report.eager, str(report)
    assert not report.left("linear", "norm"), str(report)
    if name.startswith("DeBERTa"):
        assert report.left("product") and report.left("softmax")
    else:
        assert not report.left("product", "softmax", "attention"), str(report)
        assert report.replaced("attention") == layers * graphs, str(report)
        # Of halves a plan may have Python call PyTorch for single operations, which the report says.
        notes = [note for g in report.graphs for note in g.notes]
        assert not notes or (halves and all(note.startswith("calls Python") for note in notes)), str(report)


@dataclass
class Optimized:
    name: str
    head: str
    model: nn.Module
    eager: nn.Module
    weights: dict[str, tuple[Tensor, Tensor]]  # as they were: the parameters, and copies

    @property
    def whole(self) -> bool:
        """The model itself, of two layers and with all that is asked of an architecture; heads have one."""
        return self.head == "Model"

    @property
    def packed(self) -> bool:
        return not self.name.startswith(("DeBERTa", "MPNet"))


@pytest.fixture(scope="module", params=[(n, h) for n in ARCHITECTURES for h in HEADS], ids="-".join)
def optimized(request: pytest.FixtureRequest) -> Optimized:
    """Captures are most of the time, so one is for all of the tests below: with a mask and, of whole models, without.

    The one with a mask comes first, whichever of the tests run.
    """
    name, head = request.param
    model, eager = pair(name, head, 2 if head == "Model" else 1)
    weights = {key: (value, value.clone()) for key, value in model.state_dict().items()}
    return Optimized(name, head, model, eager, weights)


def test_outputs_are_those_of_eager(optimized: Optimized) -> None:
    """Padding at either end, holes, an empty row, no mask; odd lengths, batch 1, length 1; two captures for it all."""
    model, name, whole = optimized.model, optimized.name, optimized.whole
    if whole:
        check(model, optimized.eager, name)
    else:
        check(model, optimized.eager, name + optimized.head, ("right", "holes"), ((3, 7), (1, 5)))
    assert_all_replaced(model, name, 2 if whole else 1, graphs=2 if whole else 1)
    for key, value in model.state_dict().items():
        before, contents = optimized.weights[key]
        assert value.data_ptr() == before.data_ptr() and torch.equal(value, contents), key


def test_padding_is_zero_and_the_rest_is_eager(optimized: Optimized) -> None:
    """Where real tokens alone are computed; where padding is as well, the report says so."""
    before = [graph.padded_calls for graph in strop.report(optimized.model).graphs[:1]]
    for batch, length in ((3, 11), (5, 4), (2, 33)):
        g = generator(optimized.name, optimized.head, batch, length)
        real = mask("right", batch, length, g)
        real[0, -1] = 0  # some padding for certain
        inputs = tokens(batch, length, g, real)
        with torch.no_grad():
            given, wanted = optimized.model(**inputs), optimized.eager(**inputs)
        assert worst(given, wanted, real) <= BOUND
        graph = strop.report(optimized.model).graphs[0]
        if not optimized.packed:
            assert not graph.ragged and "padding is computed as well" in graph.layout, graph.layout
            continue
        for value in given.to_tuple():
            if value.shape[:2] == real.shape:
                assert not value[real == 0].any() and value[real == 1].any()
        assert graph.ragged and graph.padded_calls == sum(before), str(graph)


def test_plans_are_their_graphs(optimized: Optimized) -> None:
    """The padded layout's graph as a plan, at sizes drawn from a seed; nothing needs Python."""
    g = generator("plan", optimized.name, optimized.head)
    sizes = [(1, 1), (3, 7), *torch.randint(1, 24, (6 if optimized.whole else 3, 2), generator=g).tolist()]
    for graph, kind in enumerate(("holes", "none") if optimized.whole else ("right",)):
        optimized.model(**tokens(3, 7, g, mask(kind, 3, 7, g)))
        captured = captured_by(optimized.model)[graph]
        assert captured.plan.why_python == []
        for batch, length in sizes:
            inputs = list(tokens(batch, length, g, mask(kind, batch, length, g)).values())
            with torch.no_grad():
                agree(captured.plan(*inputs), list(captured.module(*inputs)), (kind, batch, length))


def test_packed_bodies_are_their_graphs(optimized: Optimized) -> None:
    """What computes something on real tokens alone is a plan and needs no Python; for any number of tokens."""
    if not optimized.packed:
        pytest.skip("padding is computed as well")
    g = generator("packed", optimized.name, optimized.head)
    optimized.model(**tokens(3, 7, g, mask("right", 3, 7, g)))
    program = next(iter(optimized.model.forward.programs.values()))
    assert program.packed is not None, program.why_padded
    notes = strop.report(optimized.model).graphs[0].notes
    assert not any("node by node" in note or "Python" in note for note in notes), notes
    assert all_of_it_is_plans(program.packed)
    for batch, length in ((1, 1), (3, 7), *torch.randint(1, 24, (4, 2), generator=g).tolist()):
        inputs = list(tokens(batch, length, g, mask("right", batch, length, g)).values())
        body_agrees(program.packed, inputs, (batch, length))


@pytest.mark.parametrize("name", ["BERT", "ModernBERT"])
def test_attention_spelled_out(name: str) -> None:
    """attn_implementation="eager": products, masks with the lowest finite value, softmax. An empty row is no 0 then."""
    model, eager = pair(name, "Model", 2, attention="eager")
    check(model, eager, name, ("right", "empty row"), ((3, 11), (1, 1)))
    assert_all_replaced(model, name, 2, graphs=1)


def test_all_shapes_by_one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty random sizes after the first call: torch.export is not called again, and no guard of Dynamo's is there."""
    model, eager = pair("BERT", "Model", 1)
    g = generator("many shapes")
    first = tokens(2, 5, g, mask("right", 2, 5, g))
    model(**first)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr(torch.export, "export", never)
    sizes = torch.randint(1, 33, (40, 2), generator=g).tolist()
    for batch, length in sizes:
        inputs = tokens(batch, length, g, mask("right", batch, length, g))
        with torch.no_grad():
            assert worst(model(**inputs), eager(**inputs), inputs["attention_mask"]) <= BOUND
    assert strop.report(model).graphs[0].calls == 41


def test_other_inputs_are_other_graphs() -> None:
    """Token types, positions of one row for all, embeddings in the place of tokens, results as a tuple."""
    model, eager = pair("BERT", "Model", 1)
    g = generator("inputs")
    inputs = tokens(3, 7, g, mask("right", 3, 7, g))
    inputs |= {"token_type_ids": torch.randint(0, 2, (3, 7), generator=g), "position_ids": torch.arange(7)[None] + 2}
    with torch.no_grad():
        assert worst(model(**inputs), eager(**inputs), inputs["attention_mask"]) <= BOUND
        embeddings = {"inputs_embeds": torch.randn((2, 6, 32), generator=g)}
        assert worst(model(**embeddings), eager(**embeddings)) <= BOUND
        given, wanted = model(inputs["input_ids"], return_dict=False), eager(inputs["input_ids"], return_dict=False)
    assert type(given) is tuple and torch.allclose(given[0], wanted[0], rtol=BOUND, atol=BOUND)
    report = strop.report(model)
    assert len(report.graphs) == 3 and not report.eager, str(report)


def test_what_is_not_captured_runs_as_before() -> None:
    """Attentions, hidden states, training, a gradient of the input, a mask of another kind: right, and reported."""
    model, eager = pair("BERT", "Model", 1, attention="eager")
    g = generator("eager")
    inputs = tokens(2, 5, g)
    for option in ("output_attentions", "output_hidden_states"):
        given, wanted = model(**inputs, **{option: True}), eager(**inputs, **{option: True})
        name = option.removeprefix("output_")
        assert torch.equal(given[name][0], wanted[name][0])
    embeddings = torch.randn((2, 5, 32), generator=g, requires_grad=True)
    model(inputs_embeds=embeddings).last_hidden_state.sum().backward()
    assert embeddings.grad is not None
    model.train()
    model(**inputs)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    reasons = " ".join(strop.report(model).eager)
    for word in ("output_attentions", "output_hidden_states", "gradient of an input", "training", "autocast"):
        assert word in reasons, reasons
    assert not any(graph.replaced for graph in strop.report(model).graphs)


def test_too_long_an_input_is_the_models_own_error() -> None:
    model, eager = pair("BERT", "Model", 1)
    model(**tokens(2, 5, generator("short")))
    long = tokens(2, 65, generator("long"))  # one more than there are positions
    with pytest.raises(Exception) as wanted:
        eager(**long)
    with pytest.raises(type(wanted.value)):
        model(**long)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtype_computes_on_a_copy(dtype: torch.dtype) -> None:
    """Results are as near to fp32 as PyTorch's in that dtype, 1.1 times; weights stay, and a change is noticed."""
    model, eager = make("BERT", "Model", 1), make("BERT", "Model", 1)
    half = make("BERT", "Model", 1).to(dtype)
    strop.optimize_model(model, dtype=dtype)
    g = generator("dtype")
    inputs = tokens(3, 9, g, mask("right", 3, 9, g))
    with torch.no_grad():
        given, wanted, theirs = (m(**inputs).last_hidden_state for m in (model, eager, half))
    assert given.dtype == dtype and all(p.dtype == torch.float32 for p in model.parameters())
    real = inputs["attention_mask"].bool()  # at padding ours is 0
    error, plain = ((t.double() - wanted.double())[real].pow(2).mean().sqrt() for t in (given, theirs))
    assert error <= 1.1 * plain
    with torch.no_grad():
        model.encoder.layer[0].output.LayerNorm.weight.mul_(2)
        eager.encoder.layer[0].output.LayerNorm.weight.mul_(2)
        again, wanted = model(**inputs).last_hidden_state, eager(**inputs).last_hidden_state
    assert float((again - wanted)[real].abs().max() / wanted.abs().max()) < 0.05
    assert "float16" in str(strop.report(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_halves_of_every_architecture(name: str, dtype: torch.dtype) -> None:
    """As near to fp32 as PyTorch's own run in that dtype, 1.1 times, and on the same kernels as in fp32."""
    model, eager, half = make(name, "Model", 2), make(name, "Model", 2), make(name, "Model", 2).to(dtype)
    strop.optimize_model(model, dtype=dtype)
    g = generator("halves", name)
    squares = torch.zeros(2, dtype=torch.float64)
    for batch, length in ((5, 13), (3, 31), (8, 24)):
        inputs = tokens(batch, length, g, mask("right", batch, length, g))
        real = inputs["attention_mask"].bool()  # at padding ours is 0
        with torch.no_grad():
            given, wanted, theirs = (m(**inputs).last_hidden_state[real].double() for m in (model, eager, half))
        squares += torch.stack([(t - wanted).pow(2).sum() for t in (given, theirs)])
    ours, plain = squares.sqrt().tolist()
    assert ours <= 1.1 * plain, (ours, plain)
    assert_all_replaced(model, name, 2, graphs=1, halves=True)
    report = strop.report(model)
    assert ("real tokens alone" in str(report)) == (name != "MPNet" and not name.startswith("DeBERTa")), str(report)


def test_without_transformers_strop_imports() -> None:
    """Nothing of transformers is imported by strop, nor by rewriting what is not its."""
    import subprocess
    import sys

    code = """if True:
        import sys, torch, strop
        assert "strop.rewrite" not in sys.modules
        model = strop.optimize_model(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval())
        model(torch.randn(2, 4))
        assert strop.report(model).replaced("linear_act") == 1, str(strop.report(model))
        assert not any(name.partition(".")[0] == "transformers" for name in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
