"""`python -m strop emu …`: runs a loss's CUDA kernel on the CPU, in the emulator, and checks every access to memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def program() -> Path:
    """The command-line program of the emulator; it may not exist.

    It lies beside the compiled module, which an editable install keeps elsewhere than the Python files.
    """
    from strop import _C

    return Path(_C.__file__).parent / "bin" / "strop-emu"


def emulate(arguments: list[str]) -> int:
    """Runs the program with these arguments; they are described by `python -m strop emu --help`.

    Returns:
        Its exit status: 0 where all is well, 1 where it has found something, 2 for bad arguments, or where the package
        was built without it.
    """
    path = program()
    if not path.exists():
        print(
            f"strop emu: {path} is missing: build the package with -DSTROP_EMULATOR=ON (the default), on Linux",
            file=sys.stderr,
        )
        return 2
    sys.stdout.flush()
    return subprocess.run([str(path), *arguments]).returncode
