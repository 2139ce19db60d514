"""The command line: `python -m strop doctor`, `python -m strop emu …`."""

from __future__ import annotations

import argparse
import sys

from strop._doctor import doctor
from strop._emu import emulate


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit status is 1 where `doctor` or `emu` finds something wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["emu"]:  # its arguments are the program's own
        return emulate(arguments[1:])
    parser = argparse.ArgumentParser(prog="strop", description="Fused kernels for PyTorch transformers.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what was built, what was found, which path each operation takes")
    commands.add_parser("emu", help="runs a kernel on the CPU and checks every access to memory", add_help=False)
    parser.parse_args(arguments)
    return 0 if doctor().ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
