"""The replacements that a rewriting makes, in their order: users' first, then those of strop/rewrite/fusions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from .patterns import Pattern, PatternError, Where, find, operation, replace


@dataclass(frozen=True, eq=False)
class Rule:
    """A pattern and what comes in its place. `where` may refuse a match, by False or by the reason as text."""

    name: str
    pattern: Pattern
    replacement: Callable[..., Any]
    where: Where | None = None
    shared: bool = False  # see patterns.find

    def remove(self) -> None:
        """Ends a rule of replace_pattern. Models captured with it are captured anew when they are next called."""
        global _version
        if self in _users:
            _users.remove(self)
            _version += 1


_users: list[Rule] = []
_version = 0


def version() -> int:
    """Changes whenever the rules do."""
    return _version


def has_user_rules() -> bool:
    """Whether there are rules of replace_pattern."""
    return bool(_users)


def replace_pattern(
    pattern: Callable[..., Any],
    replacement: Callable[..., Any],
    *,
    where: Where | None = None,
    name: str | None = None,
) -> Rule:
    """Has every model of :func:`strop.optimize_model` compute a replacement where a pattern is found.

    Both are functions of plain PyTorch with the same parameters. A parameter of the pattern stands for whatever is in
    its place in the model: a tensor, or a value such as an eps, which the replacement gets as a number. The page "How
    the rewriting works" says what counts as equal, and has an example with a kernel of one's own.

    Args:
        pattern: what to look for; it is traced once, and never run. It may return several of its tensors, the last
            computed first.
        replacement: what to compute instead, with as many results. It may have fewer parameters.
        where: takes a match; False, or the reason as text, refuses it. `match["eps"]` is what a parameter stands for,
            `match.val("x")` a tensor without contents that has its shape and dtype.
        name: for :func:`strop.report`; the pattern's own name where it is left out.

    Returns:
        The rule, whose `remove()` ends it.

    Rules apply in the order of their registration and before those of strop, to models that are already optimized as
    well: they are captured anew when they are next called.
    """
    global _version
    rule = Rule(name or getattr(pattern, "__name__", "pattern"), Pattern(pattern), replacement, where)
    _users.append(rule)
    _version += 1
    return rule


@dataclass
class Outcome:
    """What the rules did to a graph."""

    made: dict[str, int]  # rule's name: how often
    refused: dict[str, str]  # node's name: which rule did not apply, and why


def rules() -> list[Rule]:
    from . import fusions

    return [*_users, *fusions.rules()]


def rewrite(graph: fx.Graph) -> Outcome:
    """Applies every rule everywhere, in order."""
    outcome = Outcome({}, {})
    for rule in rules():
        for node in list(graph.nodes):
            if node.op != "call_function" or operation(node.target) != rule.pattern.anchor or node._erased:
                continue
            match, reason = find(rule.pattern, node, rule.where, rule.shared)
            if match is None:
                if reason:
                    outcome.refused[node.name] = f"{rule.name}: {reason}"
                continue
            try:
                replace(match, rule.replacement)
            except PatternError as error:
                outcome.refused[node.name] = f"{rule.name}: {error}"
                continue
            except Exception as error:
                raise RuntimeError(f"the replacement {rule.name} failed: {type(error).__name__}: {error}") from error
            outcome.made[rule.name] = outcome.made.get(rule.name, 0) + 1
    graph.eliminate_dead_code()
    graph.lint()
    return outcome
