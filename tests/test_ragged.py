"""Computing on real tokens alone: what is computed, on how many rows, and when the padded layout is needed still."""

from __future__ import annotations

import importlib.util

import pytest
import strop
import torch
from strop._ops import ops
from support.cases import generator
from support.models import ARCHITECTURES, make, mask, tokens, worst
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]
BOUND = 1e-5
PACKED = [name for name in ARCHITECTURES if not name.startswith(("DeBERTa", "MPNet"))]


class Rows(TorchDispatchMode):
    """Rows of every product that runs, each named by how many columns it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("strop::linear_act", "strop::linear_gated", "strop::linear_gated_pair"):
            self.seen.append(out.numel() // out.shape[-1])
        return out


def pair(name: str, head: str = "Model", layers: int = 1) -> tuple[nn.Module, nn.Module]:
    return strop.optimize_model(make(name, head, layers)), make(name, head, layers)


@pytest.fixture(scope="module")
def bert() -> tuple[nn.Module, nn.Module]:
    """Captured once for the tests of masks: it packs tokens whatever their places."""
    return pair("BERT", "ForTokenClassification")


@pytest.fixture(scope="module")
def pooled() -> tuple[nn.Module, nn.Module]:
    """The same with a pooler, which wants the first position of each sequence."""
    return pair("BERT")


def padded_calls(model: nn.Module) -> int:
    return sum(graph.padded_calls for graph in strop.report(model).graphs)


Pair = tuple[nn.Module, nn.Module]


def run(model: nn.Module, eager: nn.Module, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert worst(model(**inputs), eager(**inputs), inputs.get("attention_mask")) <= BOUND


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "ELECTRA"])
def test_products_have_as_many_rows_as_there_are_tokens(name: str) -> None:
    model, eager = pair(name, "ForTokenClassification")
    g = generator("rows", name)
    real = torch.zeros((4, 16), dtype=torch.long)
    for row, n in enumerate((16, 3, 1, 7)):
        real[row, :n] = 1
    inputs = tokens(4, 16, g, real)
    run(model, eager, inputs)
    with Rows() as rows, torch.no_grad():
        model(**inputs)
    assert set(rows.seen) == {27}, rows.seen
    with Rows() as rows, torch.no_grad():
        strop.optimize_model(model, ragged=False)(**inputs)
        rows.seen.clear()
        model(**inputs)
    assert set(rows.seen) == {64}, rows.seen


@pytest.mark.parametrize("kind", ["left", "holes", "empty row"])
def test_any_mask(kind: str, bert: Pair, pooled: Pair) -> None:
    """Left padding and holes take first positions away, which the pooler wants: then the padded graph runs. Without a
    pooler tokens are packed all the same, whatever their places."""
    g = generator("any", kind)
    inputs = tokens(4, 9, g, mask(kind, 4, 9, g))
    inputs["attention_mask"][1, 0] = 0
    for (model, eager), padded in ((pooled, 1), (bert, 0)):
        before = padded_calls(model)
        run(model, eager, inputs)
        assert padded_calls(model) - before == padded


def test_holes_move_a_window() -> None:
    """ModernBERT's windows are counted in positions: with a hole within a sequence its tokens are not packed."""
    model, eager = pair("ModernBERT", layers=2)  # the second has the window
    g = generator("window")
    real = mask("left", 3, 20, g)
    run(model, eager, tokens(3, 20, g, real))
    assert strop.report(model).graphs[0].padded_calls == 0
    real[:] = 1
    real[1, 5] = 0
    run(model, eager, tokens(3, 20, g, real))
    assert strop.report(model).graphs[0].padded_calls == 1


def test_all_padding_and_no_padding(bert: Pair) -> None:
    model, eager = bert
    g = generator("all")
    before = padded_calls(model)
    run(model, eager, tokens(3, 7, g, torch.zeros((3, 7), dtype=torch.long)))
    assert padded_calls(model) - before == 1
    for real in (torch.ones((3, 7), dtype=torch.long), None):
        run(model, eager, tokens(3, 7, g, real))
    assert padded_calls(model) - before == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_masks_of_any_dtype(dtype: torch.dtype, bert: Pair) -> None:
    model, eager = bert
    g = generator("dtype")
    inputs = tokens(3, 7, g, mask("right", 3, 7, g))
    inputs["attention_mask"] = inputs["attention_mask"].to(dtype)
    run(model, eager, inputs)


def test_what_mixes_tokens_afterwards_stays_padded() -> None:
    """A loss over labels counts padding, if it is told to: then the whole model stays in the padded layout."""
    model, eager = pair("BERT", "ForTokenClassification")
    g = generator("loss")
    inputs = tokens(3, 7, g, mask("right", 3, 7, g)) | {"labels": torch.randint(0, 3, (3, 7), generator=g)}
    with torch.no_grad():
        given, wanted = model(**inputs), eager(**inputs)
    assert torch.allclose(given.loss, wanted.loss, rtol=BOUND) and torch.allclose(
        given.logits, wanted.logits, atol=1e-5
    )
    assert not strop.report(model).graphs[0].ragged and "padded layout" in str(strop.report(model))


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    """Bitwise the same result alone, among others and in another place of the batch, up to how products are blocked."""
    model, _ = pair("DistilBERT")
    g = generator("neighbours")
    ids = torch.randint(3, 90, (6, 12), generator=g)
    real = mask("right", 6, 12, g)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=real).last_hidden_state
        turned = model(input_ids=ids.flip(0), attention_mask=real.flip(0)).last_hidden_state.flip(0)
    assert torch.allclose(together, turned, rtol=0, atol=2e-6)


def test_operators_take_an_empty_batch() -> None:
    cu, rows, where, summary = ops.token_index(torch.zeros((0, 5), dtype=torch.bool))
    assert cu.tolist() == [0] and rows.numel() == 0 and where.numel() == 0 and summary[0] == 0
