"""Small random transformers of the listed architectures, and inputs for them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from support.cases import generator

VOCABULARY = 97
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")
_SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
_DISTILBERT = {"dim": 32, "n_heads": 4, "hidden_dim": 40, "vocab_size": VOCABULARY, "num_labels": 3}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "type_vocab_size": 0,
    "pos_att_type": ["c2p", "p2c"],
}
# What each architecture is called, and what it takes beyond the sizes. DeBERTa-v3 is v2 with what v3's models set.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", {}),
    "RoBERTa": ("Roberta", {}),
    "CamemBERT": ("Camembert", {}),
    "XLM-R": ("XLMRoberta", {}),
    "DistilBERT": ("DistilBert", {}),
    "MPNet": ("MPNet", {}),
    "ELECTRA": ("Electra", {"embedding_size": 24}),
    "ModernBERT": ("ModernBert", {"local_attention": 8, "global_attn_every_n_layers": 2, **_SPECIAL}),
    "DeBERTa-v2": ("DebertaV2", {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "DeBERTa-v3": ("DebertaV2", {**_DEBERTA, "share_att_key": True}),
}


def make(architecture: str, head: str = "Model", layers: int = 2, attention: str = "sdpa", **more: Any) -> nn.Module:
    """A model with weights that make every part of it matter: biases and norms are not what they begin with."""
    name, options = ARCHITECTURES[architecture]
    head = {"DistilBert": "DistilBert", "ModernBert": "ModernBert"}.get(name, name) + head
    # From their own modules: transformers' lazy imports would look at all models.
    package = {"Bert": "bert", "Roberta": "roberta", "Camembert": "camembert", "XLMRoberta": "xlm_roberta",
               "DistilBert": "distilbert", "MPNet": "mpnet", "Electra": "electra", "ModernBert": "modernbert",
               "DebertaV2": "deberta_v2"}[name]  # fmt: skip
    models = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    configs = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    sizes = {**_DISTILBERT, "n_layers": layers} if name == "DistilBert" else {**_SIZES, "num_hidden_layers": layers}
    config = getattr(configs, f"{name}Config")(**sizes, **options, **more)
    config._attn_implementation = attention if name not in ("DebertaV2", "MPNet") else "eager"  # all that they have
    model = getattr(models, head)(config).eval()
    g = generator("model", architecture, head, layers)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # scores with a deviation of about 1: a softmax that is neither flat nor a maximum
                parameter.copy_(torch.randn(parameter.shape, generator=g) / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.3)
    return model


MASKS = ("right", "left", "holes", "empty row", "none")


def mask(kind: str, batch: int, length: int, g: torch.Generator) -> Tensor | None:
    """Which tokens are real; None where the call gives no mask."""
    if kind == "none":
        return None
    lengths = torch.randint(1, length + 1, (batch, 1), generator=g)
    positions = torch.arange(length)
    if kind == "right" or kind == "empty row":
        real = positions < lengths
    elif kind == "left":
        real = positions >= length - lengths
    else:
        real = torch.rand((batch, length), generator=g) < 0.6
        real[:, length // 2] = True
    if kind == "empty row":
        real[batch // 2] = False
    return real.long()


def tokens(batch: int, length: int, g: torch.Generator, real: Tensor | None = None) -> dict[str, Tensor]:
    """Inputs of a call; padding has token 1, which RoBERTa's positions skip."""
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=g)
    if real is None:
        return {"input_ids": ids}
    return {"input_ids": torch.where(real.bool(), ids, 1), "attention_mask": real}


def worst(given: Any, wanted: Any, real: Tensor | None = None) -> float:
    """The largest difference between two results, relative to the largest value of each tensor.

    At padding a result of tokens may be 0 altogether, as it is where real tokens alone were computed.
    """
    assert type(given) is type(wanted)
    pairs = list(zip(given.to_tuple(), wanted.to_tuple(), strict=True))
    assert list(given.keys()) == list(wanted.keys()) and pairs
    for i, (a, b) in enumerate(pairs):
        assert a.shape == b.shape and a.dtype == b.dtype and not a.isnan().any() and not b.isnan().any()
        if real is not None and a.shape[:2] == real.shape and not a[real == 0].any():
            pairs[i] = (a, b.masked_fill((real == 0).view(*real.shape, *[1] * (b.dim() - 2)), 0))
    return max(
        (float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs if b.numel()), default=0.0
    )
