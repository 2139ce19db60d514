"""TRL's GRPOTrainer with strop's losses, one call: python examples/trl_grpo.py (needs trl, but no network and no GPU)

Trains a tiny model twice from the same seed, with TRL's own loss and with strop's, and compares the two runs step by
step. Each batch of completions is used for two updates, so that ratios leave 1 and clipping takes place.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # model and tokenizer are made here

import argparse  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from strop.integrations import trl as strop_trl  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

LETTERS = "abcdefghijklmnop"
# What TRL logs of the loss; the reward, logged with each new batch, shows that both runs sampled the same.
CLIPPED = tuple(f"clip_ratio/{name}" for name in ("low_mean", "low_min", "high_mean", "high_max", "region_mean"))
COMPARED = ("loss", "grad_norm", "reward", "kl", "entropy", *CLIPPED)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def share_of_a(completions: list[str], **_: object) -> list[float]:
    """The toy reward: the share of a's among 16 letters."""
    return [completion.split().count("a") / 16 for completion in completions]


def make_trainer(folder: str, steps: int, **settings: object) -> GRPOTrainer:
    set_seed(0)
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)  # TRL loads the reference model from where the policy came from
    config = GRPOConfig(
        output_dir=folder,
        **{
            "loss_type": "grpo",
            "beta": 0.05,
            "use_bias_correction_kl": False,  # TRL's default weighs the KL penalty by the ratio, strop's losses do not
            "num_iterations": 2,
            "num_generations": 8,
            "per_device_train_batch_size": 16,
            "max_completion_length": 16,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "max_steps": steps,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "seed": 0,
            **settings,
        },
    )
    return GRPOTrainer(
        model=folder,
        reward_funcs=share_of_a,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [f"{x} {y}" for x in LETTERS for y in LETTERS]}),
        processing_class=tokenizer,
    )


def train(steps: int, patched: bool, **settings: object) -> tuple[list[dict[str, float]], float]:
    """What was logged at each step, and the seconds that training took."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, steps, **settings)
        trainer.remove_callback(PrinterCallback)  # what it prints is compared below
        if patched:
            strop_trl.patch(trainer)  # this trainer alone; patch() is for all
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    return [entry for entry in trainer.state.log_history if "loss" in entry], seconds


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]], name: str) -> float:
    """Relative to the curve's largest value: single losses pass through 0."""
    logged = ([entry[name] for entry in run if name in entry] for run in (one, other))
    a, b = (torch.tensor(values, dtype=torch.float64) for values in logged)
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss-type", choices=("grpo", "bnpo"), default="grpo")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()

    warnings.simplefilter("ignore", FutureWarning)  # of TRL about transformers
    disable_progress_bar()
    torch.set_num_threads(1)  # more only get in each other's way here
    train(1, patched=False)  # what is done once a process belongs to neither run's time
    own, own_seconds = train(given.steps, patched=False, loss_type=given.loss_type)
    ours, our_seconds = train(given.steps, patched=True, loss_type=given.loss_type)

    print(f"\nstep   TRL's loss   strop's loss   clipped\n{'-' * 42}")
    for step, (a, b) in enumerate(zip(own, ours, strict=True), 1):
        print(f"{step:>4}   {a['loss']:>+10.6f}   {b['loss']:>+12.6f}   {b['clip_ratio/region_mean']:>7.3f}")
    print("\nlargest difference between the two runs, relative to the curve's largest value:")
    differences = {name: largest_difference(own, ours, name) for name in COMPARED}
    for name, difference in differences.items():
        print(f"  {name:<22} {difference:.1e}")
    print(f"{given.steps} steps took {own_seconds:.1f} s with TRL's loss, {our_seconds:.1f} s with strop's.")
    print("That is generation, mostly: a batch this small shows that the losses agree, not which one is faster.")
    agree = max(differences.values()) < 1e-4
    print("The curves agree to 1e-4." if agree else "The curves DIFFER by more than 1e-4.")
    return 0 if agree else 1


if __name__ == "__main__":
    raise SystemExit(main())
