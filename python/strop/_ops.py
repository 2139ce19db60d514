"""The operators of this build and the namespace they are in.

A Hub build has a file of its own in place of this one, with a namespace that no other version has.
"""

from __future__ import annotations

import torch

from . import _C  # noqa: F401  (loading it defines the operators)

ops = torch.ops.strop


def add_op_namespace_prefix(op_name: str) -> str:
    """The name of an operator as torch.library wants it."""
    return f"strop::{op_name}"
