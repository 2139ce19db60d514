"""The command line: `python -m strop doctor`."""

from __future__ import annotations

import argparse

from strop._doctor import doctor


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit status is 1 where `doctor` finds something wrong."""
    parser = argparse.ArgumentParser(prog="strop", description="Fused kernels for PyTorch transformers.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what was built, what was found, which path each operation takes")
    parser.parse_args(arguments)
    return 0 if doctor().ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
