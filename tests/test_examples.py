"""The examples run: what a newcomer types first must work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
