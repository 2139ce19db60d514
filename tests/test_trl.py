"""strop.integrations.trl: GRPOTrainer trains alike with TRL's loss and strop's; what is not covered is an error."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from strop.integrations import trl as strop_trl

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "trl_grpo.py"
TIMES = {"step_time", "learning_rate", "epoch", "step"}  # logged, and not of the loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of TRL about transformers
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setenv("HF_HUB_OFFLINE", "1")
        spec = importlib.util.spec_from_file_location("trl_grpo", EXAMPLE)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def made(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return example.make_trainer(str(tmp_path_factory.mktemp("trl")), steps=1)


@pytest.fixture
def trainer(made: Any) -> Iterator[Any]:
    """One for all tests, as making it takes seconds; whatever a test patches is undone."""
    yield made
    for patched in (None, made):
        strop_trl.unpatch(patched)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The loss types that strop has computed."""
    seen: list[str] = []
    for name, function in list(strop_trl._LOSSES.items()):

        def counted(*args: Any, name: str = name, function: Any = function, **kwargs: Any) -> torch.Tensor:
            seen.append(name)
            return function(*args, **kwargs)

        monkeypatch.setitem(strop_trl._LOSSES, name, counted)
    return seen


# ---- The same numbers -----------------------------------------------------------------------------------------------


@needs_trl
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
@pytest.mark.parametrize(
    "settings", [{}, {"beta": 0.0, "epsilon_high": 0.28, "gradient_accumulation_steps": 2, "steps_per_generation": 2}]
)
def test_trains_alike(example: ModuleType, calls: list[str], loss_type: str, settings: dict[str, Any]) -> None:
    own, _ = example.train(3, patched=False, loss_type=loss_type, **settings)
    assert not calls
    ours, _ = example.train(3, patched=True, loss_type=loss_type, **settings)
    assert calls == [loss_type] * 3 * settings.get("gradient_accumulation_steps", 1)
    for one, other in zip(own, ours, strict=True):
        assert one.keys() == other.keys() >= {"loss", "grad_norm", "entropy", *example.CLIPPED}
        for name in one.keys() - TIMES:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6, nan_ok=True), name


@needs_trl
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo"])
@pytest.mark.parametrize("length", [7, 1])  # TRL treats metrics of a single column otherwise
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_loss_alike(
    trainer: Any,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    loss_type: str,
    length: int,
    per_token: bool,
    mode: str,
) -> None:
    """Loss, gradient and metrics of one batch: tool tokens, a completion without a valid token, clipping."""
    draw = torch.Generator().manual_seed(0)
    rows = 6
    lengths = torch.randint(1, length + 1, (rows, 1), generator=draw)
    tool_mask = (torch.rand(rows, length, generator=draw) < 0.8).long()
    tool_mask[2] = 0
    inputs = {
        "prompt_ids": torch.randint(3, 19, (rows, 2), generator=draw),
        "prompt_mask": torch.ones(rows, 2, dtype=torch.long),
        "completion_ids": torch.randint(3, 19, (rows, length), generator=draw),
        "completion_mask": (torch.arange(length) < lengths).long(),
        "tool_mask": tool_mask,
        "advantages": torch.randn((rows, length) if per_token else (rows,), generator=draw),
        "old_per_token_logps": -2.9 + 0.5 * torch.randn(rows, length, generator=draw),
        "ref_per_token_logps": -2.9 + 0.5 * torch.randn(rows, length, generator=draw),
    }
    monkeypatch.setattr(trainer, "loss_type", loss_type)
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 4, raising=False)
    trainer.model.train(mode == "train")

    def compute() -> tuple[torch.Tensor, list[torch.Tensor], dict[str, list[float]]]:
        metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        monkeypatch.setattr(trainer, "_metrics", metrics)
        loss = trainer.compute_loss(trainer.model, inputs)
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        return loss.detach(), list(torch.autograd.grad(loss, parameters)), dict(metrics[mode])

    own = compute()
    strop_trl.patch(trainer)
    ours = compute()
    assert calls == [loss_type]
    torch.testing.assert_close(ours[0], own[0])
    torch.testing.assert_close(ours[1], own[1], rtol=1e-4, atol=1e-6)
    assert list(ours[2]) == list(own[2]) and "kl" in ours[2]
    for name, values in own[2].items():
        assert ours[2][name] == values, name  # the same arithmetic
    assert own[2]["clip_ratio/region_mean"] != [0.0]


@needs_trl
def test_example() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(EXAMPLE), "--steps", "2", "--loss-type", "bnpo"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The curves agree" in done.stdout


# ---- Patching and unpatching ----------------------------------------------------------------------------------------


@needs_trl
def test_unpatch_restores(trainer: Any) -> None:
    from trl import GRPOTrainer

    own = GRPOTrainer.__dict__["_compute_loss"]
    for _ in range(2):
        assert strop_trl.patch() is GRPOTrainer
        assert strop_trl.patch() is GRPOTrainer  # twice is once
        assert GRPOTrainer._compute_loss is strop_trl._compute_loss
        assert strop_trl.unpatch() is GRPOTrainer
        assert GRPOTrainer.__dict__["_compute_loss"] is own
    assert strop_trl.unpatch() is GRPOTrainer  # nothing to undo
    assert GRPOTrainer.__dict__["_compute_loss"] is own

    assert strop_trl.patch(trainer) is trainer
    assert trainer._compute_loss.__func__ is strop_trl._compute_loss
    assert GRPOTrainer._compute_loss is own  # others are as they were
    strop_trl.patch()
    strop_trl.unpatch()
    assert trainer._compute_loss.__func__ is strop_trl._compute_loss
    strop_trl.unpatch(trainer)
    assert "_compute_loss" not in vars(trainer) and trainer._compute_loss.__func__ is own


@needs_trl
def test_subclasses() -> None:
    from trl import GRPOTrainer

    class Inherits(GRPOTrainer):
        pass

    class Overrides(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            return super()._compute_loss(model, inputs)

    strop_trl.patch(Inherits)
    assert Inherits._compute_loss is strop_trl._compute_loss is not GRPOTrainer._compute_loss
    strop_trl.unpatch(Inherits)
    assert "_compute_loss" not in vars(Inherits)
    with pytest.raises(TypeError, match="Overrides overrides _compute_loss"):
        strop_trl.patch(Overrides)
    with pytest.raises(TypeError, match="trainer_or_class: expected trl.GRPOTrainer.*got Linear"):
        strop_trl.patch(torch.nn.Linear(1, 1))


@needs_trl
@pytest.mark.parametrize("version", ["1.14.2", "1.17.0", "2.0.0", "unknown"])
def test_unknown_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import trl

    own = trl.GRPOTrainer._compute_loss
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(RuntimeError, match=rf"supports trl 1\.15\.x and 1\.16\.x; installed is {version}"):
        strop_trl.patch()
    assert trl.GRPOTrainer._compute_loss is own


def test_without_trl() -> None:
    """The module imports; patching says what is missing. `import strop` brings none of it."""
    script = """
import sys
import strop
assert not any(name.startswith("strop.integrations") for name in sys.modules)
sys.modules["trl"] = None
from strop.integrations import trl
try:
    trl.patch()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("strop.integrations.trl supports trl 1.15.x and 1.16.x"), done.stderr


# ---- Settings -------------------------------------------------------------------------------------------------------


@needs_trl
@pytest.mark.parametrize(
    ("name", "value", "also"),
    [
        *(("loss_type", value, {}) for value in ("dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")),
        ("importance_sampling_level", "sequence", {}),
        ("delta", 4.0, {}),
        ("top_entropy_quantile", 0.2, {}),
        ("off_policy_mask_threshold", 0.5, {}),
        ("vllm_importance_sampling_correction", True, {"use_vllm": True}),
        ("use_bias_correction_kl", True, {}),
        ("entropy_coef", 0.01, {"_entropy_bonus_enabled": True}),
        ("use_adaptive_entropy", True, {"_entropy_bonus_enabled": True}),
        ("router_aux_loss_coef", 0.001, {"aux_loss_enabled": True}),
    ],
)
def test_settings_that_are_not_covered(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, also: dict[str, Any]
) -> None:
    """An error when the trainer is patched, and where its class was, when it computes a loss."""
    assert hasattr(trainer.args, name)
    monkeypatch.setattr(trainer.args, name, value)
    for attribute, set_to in {name: value, **also}.items():
        if hasattr(trainer, attribute):
            monkeypatch.setattr(trainer, attribute, set_to)
    with pytest.raises(ValueError, match=f"^{name}: strop's loss does not cover {value!r}; set "):
        strop_trl.patch(trainer)
    assert "_compute_loss" not in vars(trainer)
    strop_trl.patch()
    with pytest.raises(ValueError, match=f"^{name}: "):
        trainer.compute_loss(trainer.model, {})


@needs_trl
def test_settings_that_do_nothing_are_covered(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "beta", 0.0)
    monkeypatch.setattr(trainer.args, "use_bias_correction_kl", True)
    assert trainer.vllm_importance_sampling_correction and not trainer.use_vllm
    strop_trl.patch(trainer)
