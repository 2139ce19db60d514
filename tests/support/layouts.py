"""The same values in other memory: slices, transposes, odd offsets. What lies between the values is poison."""

from __future__ import annotations

import torch


def _poison(shape: tuple[int, ...] | list[int], like: torch.Tensor) -> torch.Tensor:
    """Memory that must not be read: NaN for floats, and what a mask would call valid for the others."""
    t = torch.empty(shape, dtype=like.dtype, device=like.device)
    return t.fill_(torch.nan if like.dtype.is_floating_point else 1)


def contiguous(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous()


def prefix(t: torch.Tensor) -> torch.Tensor:
    """x[..., :-1]: rows are not aligned."""
    out = _poison([*t.shape[:-1], t.shape[-1] + 1], t)[..., :-1]
    return out.copy_(t)


def suffix(t: torch.Tensor) -> torch.Tensor:
    """x[..., 3:]: nor is the first."""
    out = _poison([*t.shape[:-1], t.shape[-1] + 3], t)[..., 3:]
    return out.copy_(t)


def offset(t: torch.Tensor) -> torch.Tensor:
    """Contiguous, but one element into its storage."""
    out = _poison([t.numel() + 1], t)[1:].view(t.shape)
    return out.copy_(t)


def next_token(t: torch.Tensor) -> torch.Tensor:
    """x[:, :-1], as in logits[:, :-1]."""
    if t.dim() < 2:
        return prefix(t)
    out = _poison([t.shape[0], t.shape[1] + 1, *t.shape[2:]], t)[:, :-1]
    return out.copy_(t)


def every_other_row(t: torch.Tensor) -> torch.Tensor:
    out = _poison([2 * t.shape[0], *t.shape[1:]], t)[::2]
    return out.copy_(t)


def transposed(t: torch.Tensor) -> torch.Tensor:
    """The last dimension is the slowest."""
    out = _poison(list(reversed(t.shape)), t).permute(*reversed(range(t.dim())))
    return out.copy_(t)


def swapped_rows(t: torch.Tensor) -> torch.Tensor:
    """(N, C, V) kept as (C, N, V): the last dimension is contiguous, the others are not in order."""
    if t.dim() < 3:
        return transposed(t)
    out = _poison([t.shape[1], t.shape[0], *t.shape[2:]], t).transpose(0, 1)
    return out.copy_(t)


def step(t: torch.Tensor) -> torch.Tensor:
    """x[..., ::2]."""
    out = _poison([*t.shape[:-1], 2 * t.shape[-1]], t)[..., ::2]
    return out.copy_(t)


# Layouts whose last dimension has stride 1 are read in place; the others need only be right.
UNIT_STRIDE = (contiguous, prefix, suffix, offset, next_token, every_other_row)
ANY_STRIDE = (*UNIT_STRIDE, transposed, swapped_rows, step)
