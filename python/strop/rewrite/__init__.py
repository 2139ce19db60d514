"""Rewrites a transformer into one that calls strop's operators. docs/rewriting.md says how it works."""

from __future__ import annotations

from .model import optimize_model, restore
from .registry import Rule, replace_pattern
from .report import Report, report
from .save import SavedPlan, load_plan, save_plan

__all__ = [
    "Report",
    "Rule",
    "SavedPlan",
    "load_plan",
    "optimize_model",
    "replace_pattern",
    "report",
    "restore",
    "save_plan",
]
