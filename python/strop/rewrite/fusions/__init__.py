"""Strop's own replacements, one file a fusion. The order matters: what is in a larger one comes before its parts."""

from __future__ import annotations

import functools

from ..registry import Rule
from . import attention, embedding, linear, norm, pooling, residual, rotary

_FILES = (embedding, pooling, rotary, attention, linear, norm, residual)


@functools.cache
def rules() -> tuple[Rule, ...]:
    return tuple(rule for file in _FILES for rule in file.rules())
