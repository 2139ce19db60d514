"""Plan files: what C++ runs of a saved model is what PyTorch gives, and a file says what is wrong with it."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import strop
import torch
import torch.nn.functional as F
from strop import _C
from support.cases import generator
from support.models import ARCHITECTURES, make, mask, tokens
from torch import Tensor, nn

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("transformers", "safetensors")),
        reason="transformers or safetensors is not installed",
    ),
    pytest.mark.filterwarnings("ignore"),
]
BOUND = 1e-5  # of the largest value of each output
PLANS = [name for name in ARCHITECTURES if not name.startswith("DeBERTa")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def worst(given: dict[str, Tensor], wanted: Any, real: Tensor | None = None) -> float:
    """The largest difference, relative to each output's largest value, of real tokens alone where `real` is given."""
    assert list(given) == list(wanted.keys())
    found = 0.0
    for a, b in zip(given.values(), wanted.to_tuple(), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous() and not a.isnan().any()
        if real is not None and a.shape[:2] == real.shape:
            a, b = (t.masked_fill((real == 0).view(*real.shape, *[1] * (t.dim() - 2)), 0) for t in (a, b))
        found = max(found, float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30)))
    return found


# ---- Models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_cpp_gives_what_pytorch_gives(name: str, tmp_path: Path) -> None:
    """Every mask, sizes drawn from a seed, the plain model as well as the optimized one."""
    model = make(name, "Model", 2)
    g = generator("file", name)
    saved = strop.save_plan(model, tmp_path / "model.safetensors", **tokens(3, 7, g, mask("right", 3, 7, g)))
    assert "forward" not in model.__dict__  # it is not optimized by that
    assert (saved.why_padded == "") == (name != "MPNet"), saved.why_padded
    fast = strop.optimize_model(make(name, "Model", 2))
    for kind in ("right", "left", "holes", "empty row"):
        for batch, length in ((1, 1), (5, 1), (2, 30), *torch.randint(1, 24, (2, 2), generator=g).tolist()):
            inputs = tokens(batch, length, g, mask(kind, batch, length, g))
            got = saved(**inputs)
            with torch.no_grad():
                if kind != "empty row":  # PyTorch gives such a row something else than 0
                    assert worst(got, model(**inputs), inputs["attention_mask"]) <= BOUND, (kind, batch, length)
                assert worst(got, fast(**inputs)) <= BOUND, (kind, batch, length)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM", "ForTokenClassification"])
def test_heads(head: str, tmp_path: Path) -> None:
    model = make("BERT", head, 2)
    g = generator("heads", head)
    saved = strop.save_plan(model, tmp_path / "model.safetensors", **tokens(2, 5, g, mask("right", 2, 5, g)))
    assert saved.outputs == ("logits",)
    inputs = tokens(3, 9, g, mask("right", 3, 9, g))
    with torch.no_grad():
        assert worst(saved(**inputs), model(**inputs), inputs["attention_mask"]) <= BOUND


def test_without_a_mask_and_with_more_inputs(tmp_path: Path) -> None:
    model, g = make("BERT", "Model", 1), generator("inputs")
    plain = strop.save_plan(model, tmp_path / "plain.safetensors", torch.randint(3, 90, (2, 5), generator=g))
    ids = torch.randint(3, 90, (4, 8), generator=g)
    assert plain.inputs == ("input_ids",) and "mask" not in plain.why_padded.replace("no input says", "")
    types = torch.randint(0, 2, (4, 8), generator=g)
    real = mask("right", 4, 8, g)
    given = {"input_ids": ids, "attention_mask": real, "token_type_ids": types}
    whole = strop.save_plan(model, tmp_path / "whole.safetensors", **given)
    with torch.no_grad():
        assert worst(plain(input_ids=ids), model(ids)) <= BOUND
        assert worst(whole(**given), model(**given), real) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """An optimized model is saved as it computes: in its dtype, which halves the file."""
    model, g = make("BERT", "Model", 2), generator("half", str(dtype))
    real = mask("right", 3, 9, g)
    assert real is not None
    inputs = tokens(3, 9, g, real)
    full = strop.save_plan(model, tmp_path / "full.safetensors", **inputs)
    strop.optimize_model(model, dtype=dtype)
    half = strop.save_plan(model, tmp_path / "half.safetensors", **inputs)
    assert os.path.getsize(half.path) < 0.75 * os.path.getsize(full.path)  # the text of the programs is a part of both
    got, wanted = half(**inputs), full(**inputs)
    for name in half.outputs:
        assert got[name].dtype == dtype
        assert float((got[name].float() - wanted[name]).abs().max() / wanted[name].abs().max()) < 0.05
    with torch.no_grad():
        assert worst(got, model(**inputs)) < 0.02


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    """Outputs by position or key; plain arguments are fixed."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 16)
            self.up = nn.Linear(16, 64)

        def forward(self, ids: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
            x = self.table(ids)
            return x, {"up": F.gelu(self.up(x)) * scale, "ids": ids}

    model, ids = Own().eval(), torch.randint(0, 50, (4, 3))
    saved = strop.save_plan(model, tmp_path / "own.safetensors", torch.randint(0, 50, (2, 5)), scale=2.0)
    assert saved.inputs == ("ids",) and saved.outputs == ("0", "1.up", "1.ids")
    with torch.no_grad():
        x, more = model(ids, scale=2.0)
    got = saved(ids=ids)
    assert torch.equal(got["0"], x) and torch.equal(got["1.ids"], ids)
    assert torch.allclose(got["1.up"], more["up"], rtol=1e-5, atol=1e-6)
    ids.zero_()  # a result is no view of an input
    assert got["1.ids"].any()


# ---- The file -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "bert.safetensors"
    g = generator("bert")
    strop.save_plan(make("BERT", "Model", 2), path, **tokens(3, 7, g, mask("right", 3, 7, g)))
    return path


def test_weights_have_the_modules_names(bert: Path) -> None:
    """Each once, whichever programs have it; another module's weights of the same names take their place."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    model = make("BERT", "Model", 2)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    weights = load_file(bert)
    assert set(weights) <= set(own) and set(dict(model.named_parameters())) <= set(weights)
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights.items())
    with safe_open(bert, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["strop_plan"])["strop"] == strop.__version__
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    other = bert.with_name("other.safetensors")
    save_file({name: own[name].detach().clone() for name in weights}, other, metadata=metadata)
    g = generator("other")
    inputs = tokens(2, 6, g, mask("right", 2, 6, g))
    with torch.no_grad():
        assert worst(strop.load_plan(other)(**inputs), model(**inputs), inputs["attention_mask"]) <= BOUND


def test_it_is_written_whole_and_alike(bert: Path, tmp_path: Path) -> None:
    g = generator("bert")
    again = tmp_path / "again.safetensors"
    strop.save_plan(make("BERT", "Model", 2), again, **tokens(3, 7, g, mask("right", 3, 7, g)))
    assert again.read_bytes() == bert.read_bytes()
    assert os.listdir(tmp_path) == ["again.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(again.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_no_file_is_left_where_it_fails(tmp_path: Path) -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(9, 8), nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.layer(self.table(ids).transpose(1, 2)).norm(dim=1)

    with pytest.raises(RuntimeError, match=r"operations that need PyTorch: aten.*conv1d") as error:
        strop.save_plan(Convolution().eval(), tmp_path / "x.safetensors", torch.randint(0, 9, (2, 5)))
    assert "norm" in str(error.value)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="training mode"):
        strop.save_plan(make("BERT", "Model", 1).train(), tmp_path / "x", torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="no tensor"):
        strop.save_plan(make("BERT", "Model", 1), tmp_path / "x")
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module"):
        strop.save_plan(torch.ones(2), tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="cannot be captured: output_attentions"):
        ids = torch.ones(2, 5, dtype=torch.int64)
        strop.save_plan(make("BERT", "Model", 1), tmp_path / "x", ids, output_attentions=True)
    with pytest.raises(FileNotFoundError):
        strop.save_plan(make("BERT", "Model", 1), tmp_path / "none/x", torch.ones(2, 5, dtype=torch.int64))
    assert os.listdir(tmp_path) == []


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        strop.save_plan(make("BERT", "Model", 1), tmp_path / "x", torch.ones(2, 5, dtype=torch.int64))


def test_damaged_files_are_refused(bert: Path, tmp_path: Path) -> None:
    """A part of a file, and any byte of its header another: an error, or a plan that is whole all the same."""
    data = bert.read_bytes()
    header = int.from_bytes(data[:8], "little")
    path = tmp_path / "damaged.safetensors"
    for size in (0, 7, 8, 100, 8 + header, 8 + header + 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="damaged.safetensors: .*(bytes|header)"):
            strop.load_plan(path)
    with pytest.raises(RuntimeError, match="cannot be opened"):
        strop.load_plan(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="without a plan: strop.save_plan"):
        strop.load_plan(path)
    g = generator("damaged")
    inputs = tuple(tokens(2, 6, g, mask("right", 2, 6, g)).values())
    for at in torch.randint(8, 8 + header, (300,), generator=g).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(torch.randint(0, 7, (1,), generator=g))
        path.write_bytes(changed)
        try:
            _C.model_run(_C.model_load(str(path)), inputs)
        except (ValueError, TypeError, RuntimeError) as error:
            assert str(error)


def test_calls_that_do_not_fit(bert: Path) -> None:
    saved, ids = strop.load_plan(bert), torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(TypeError, match="expected input_ids, attention_mask, got input_ids"):
        saved(input_ids=ids)
    with pytest.raises(TypeError, match="attention_mask: expected int64, got bool"):
        saved(input_ids=ids, attention_mask=ids.bool())
    with pytest.raises(ValueError, match="attention_mask: expected a batch of 2 in dimension 0"):
        saved(input_ids=ids, attention_mask=ids[:1])
    with pytest.raises(ValueError, match="input_ids: expected at least 1 and at most 64 in dimension 1, got 65"):
        saved(input_ids=ids[:, :1].expand(2, 65), attention_mask=ids[:, :1].expand(2, 65))
    with pytest.raises(ValueError, match="input_ids: expected at least 1 in dimension 0, got 0"):
        saved(input_ids=ids[:0], attention_mask=ids[:0])
    with pytest.raises(ValueError, match="1000"):
        saved(input_ids=ids * 1000, attention_mask=ids)


def test_threads_share_a_file(bert: Path) -> None:
    saved, g = strop.load_plan(bert), generator("threads")
    cases = []
    for batch, length in torch.randint(1, 20, (12, 2), generator=g).tolist():
        inputs = tokens(batch, length, g, mask("right", batch, length, g))
        cases.append((inputs, saved(**inputs)))
    wrong: list[Any] = []

    def work(start: int) -> None:
        try:
            for i in range(60):
                inputs, wanted = cases[(start + i * 5) % len(cases)]
                wrong.extend(k for k, v in saved(**inputs).items() if not torch.equal(v, wanted[k]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]


def test_the_examples_python_half_compares(tmp_path: Path) -> None:
    """It must not call equal what is not."""
    script = Path(__file__).resolve().parent.parent / "examples/cpp_encoder/export.py"
    (tmp_path / "expected.txt").write_text("0.5 0.25\n1.0 0.0\n")
    for text, status in (
        ("0.5 0.250001\n1 0\n", 0), ("0.5 0.2501\n1 0\n", 1), ("0.5 nan\n1 0\n", 1), ("0.5 0.25\n", 1), ("", 1),
    ):  # fmt: skip
        given = tmp_path / "given.txt"
        given.write_text(text)
        done = subprocess.run([sys.executable, script, tmp_path, "--compare", given], capture_output=True, text=True)
        assert done.returncode == status, (text, done.stdout, done.stderr)
