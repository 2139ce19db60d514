"""What the operators of a rewritten model compute, by their kernels and by their implementations in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from strop.rewrite.ops import kernel_refuses, ops
from support.cases import generator
from torch import Tensor


def draw(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Zero-mean, the same for all dtypes and devices but for rounding."""
    return torch.randn(shape, generator=generator("x", shape), dtype=torch.float64).to(device, dtype)


# ---- Real tokens alone ----------------------------------------------------------------------------------------------

MASKS = {
    "right padding": [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]],
    "left padding": [[0, 0, 1], [1, 1, 1]],
    "holes": [[1, 0, 1, 1, 0], [0, 1, 1, 0, 0]],
    "hole at the end of one": [[1, 1, 1], [1, 0, 1]],
    "an empty row": [[1, 1], [0, 0], [1, 0]],
    "nothing": [[0, 0], [0, 0]],
    "one token": [[1]],
}


def mask_of(kind: str, device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    if kind == "no batch":
        return torch.zeros((0, 4), dtype=dtype, device=device)
    if kind == "no length":
        return torch.zeros((2, 0), dtype=dtype, device=device)
    return torch.tensor(MASKS[kind], device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [*MASKS, "no batch", "no length"])
def test_token_index(kind: str, dtype: torch.dtype, device: str) -> None:
    mask = mask_of(kind, device, dtype)
    batch, length = mask.shape
    cu, rows, where, summary = ops.token_index(mask)
    assert [t.dtype for t in (cu, rows, where, summary)] == [torch.int32] * 3 + [torch.int64]
    real = [[bool(x) for x in row] for row in mask.tolist()]
    tokens = [b * length + p for b in range(batch) for p in range(length) if real[b][p]]
    assert rows.tolist() == tokens + [0] * (batch * length - len(tokens))
    assert where.tolist() == [tokens.index(p) if p in tokens else -1 for p in range(batch * length)]
    lengths = [sum(row) for row in real]
    assert cu.tolist() == [sum(lengths[:b]) for b in range(batch + 1)]
    padded_left = any(not any(row[:1]) for row in real)
    holes = any("10" in "".join(str(int(x)) for x in row).rstrip("0") for row in real)
    assert summary.tolist() == [len(tokens), max(lengths, default=0), padded_left, holes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("rest", [(), (5,), (3, 8)], ids=str)
def test_rows_there_and_back(dtype: torch.dtype, rest: tuple[int, ...], device: str) -> None:
    mask = mask_of("holes", device)
    _, rows, where, summary = ops.token_index(mask)
    x = (draw(mask.numel(), *rest) * 9).to(device, dtype)
    packed = ops.gather_rows(x, rows[: summary[0]])
    assert torch.equal(packed, x[mask.flatten() == 1])
    kept = (mask.flatten() == 1).reshape(-1, *[1] * len(rest))
    assert torch.equal(ops.scatter_rows(packed, where), torch.where(kept, x, torch.zeros_like(x)))
    strided = torch.stack((x, x + 1), 1)[:, 1]
    assert torch.equal(ops.gather_rows(strided, rows.long()), (x + 1)[rows.long()])
    nothing = ops.scatter_rows(packed[:0], torch.full_like(where, -1))
    assert nothing.shape == x.shape and not nothing.any()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.uint8, torch.float8_e5m2], ids=str)
def test_rows_of_any_dtype_and_strides(dtype: torch.dtype, device: str) -> None:
    """By the kernel or, where it does not know the dtype, by PyTorch."""
    x = (draw(4, 6, 5).abs() * 9).to(device).to(dtype)
    rows, where = torch.tensor([3, 0, 3], device=device), torch.tensor([1, -1, 0], dtype=torch.int32, device=device)
    wide = x.to(torch.complex64) if dtype.is_complex else x.double()
    for view in (lambda t: t, lambda t: t.transpose(1, 2), lambda t: t[:, ::2], lambda t: t.transpose(0, 1),
                 lambda t: t[:, :, :0], lambda t: t[:, 0, 0], lambda t: t[:, :1].expand(4, 3, 5)):  # fmt: skip
        taken = ops.gather_rows(view(x), rows)
        assert taken.is_contiguous() and torch.equal(taken.to(wide.dtype), view(wide)[rows])
        if dtype != torch.float8_e5m2:  # which torch.cat does not take
            spread = ops.scatter_rows(view(x), where)
            assert torch.equal(spread.to(wide.dtype), ops.scatter_rows_plain(view(wide), where))
    assert ops.gather_rows(x, rows[:0]).shape == (0, 6, 5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_rows_into_memory_that_is_there(dtype: torch.dtype, device: str) -> None:
    x = (draw(4, 6, 5) * 9).to(device).to(dtype)
    rows = torch.tensor([3, 0, 3, 11], dtype=torch.int32, device=device)
    for seen in (x, x.transpose(1, 2), x[:, ::2], x[:, :, :0], x[:, 0, 0]):
        taken = seen[rows.long() % 4]
        assert torch.equal(ops.gather_rows(seen, rows, True), taken)
        for operator in (ops.gather_rows_out, ops.gather_rows_out_plain):
            out = torch.full((7, *seen.shape[1:]), 7, dtype=dtype, device=device)
            operator(seen, rows, out, True)
            assert torch.equal(out[:4], taken) and out[4:].eq(7).all()
            operator(seen, rows[:2], out)
            assert torch.equal(out[:4], taken) and out[4:].eq(7).all()
            operator(seen, rows[:0], out)
            every_second = torch.full((7, *seen.shape[1:], 2), 7, dtype=dtype, device=device)[..., 0]
            operator(seen, rows, every_second, True)
            assert torch.equal(every_second[:4], taken) and every_second[4:].eq(7).all()


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_pack_starts(kind: torch.dtype, device: str) -> None:
    cu = torch.tensor([0, 3, 3, 7, 7], dtype=kind, device=device)
    for operator in (ops.pack_starts, ops.pack_starts_plain):
        for most in (4, 6, 300):
            cu_out, first = (torch.full((n,), -9, dtype=torch.int32, device=device) for n in (most + 1, most))
            operator(cu, 7, cu_out, first)
            assert cu_out.tolist() == [0, 3, 3, 7, 7] + [7] * (most - 4)
            assert first.tolist() == [0, 3, 3, 6] + [0] * (most - 4)


def test_token_index_of_strided_masks(device: str) -> None:
    mask = torch.tensor(MASKS["right padding"], device=device)
    for seen in (mask.T, mask[:, ::2], mask[:1].expand(3, 4), mask.to(torch.complex64)):
        for a, b in zip(ops.token_index(seen), ops.token_index(seen.contiguous()), strict=True):
            assert torch.equal(a, b)


def test_no_row_of_a_packed_tensor_reaches_padding(device: str) -> None:
    """0 where there is no token, also where the rows that there are hold NaN."""
    x = torch.full((2, 3), torch.nan, device=device)
    given = ops.scatter_rows(x, torch.tensor([0, -1, 1, -1], dtype=torch.int32, device=device))
    assert given[[1, 3]].eq(0).all() and given[[0, 2]].isnan().all()


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("lengths", [[3, 7, 1], [0, 5, 0], [4], [0, 0], []], ids=str)
def test_attention_packed_is_attention_of_each_sequence(
    lengths: list[int], window: tuple[int, int], device: str
) -> None:
    tokens = sum(lengths)
    cu = torch.tensor([sum(lengths[:b]) for b in range(len(lengths) + 1)], dtype=torch.int32, device=device)
    q, k, v = (draw(tokens + 3, heads, 8, device=device) + heads / 9 for heads in (4, 2, 2))
    out = ops.attention_packed(q, k, v, cu, max(lengths, default=0), 0.4, *window)
    assert out.shape == q.shape and out.isfinite().all()
    for b, length in enumerate(lengths):
        part = slice(int(cu[b]), int(cu[b]) + length)
        alone = ops.attention(*(x[part].transpose(0, 1)[None] for x in (q, k, v)), None, None, 0.4, *window)
        torch.testing.assert_close(out[part], alone[0].transpose(0, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mean_pool_packed_is_the_mean_of_each_sequence(dtype: torch.dtype, device: str) -> None:
    lengths = [3, 0, 9, 1]
    cu = torch.tensor([0, 3, 3, 12, 13], dtype=torch.int32, device=device)
    x = draw(15, 7, dtype=dtype, device=device)  # two rows that are no sequence's
    given = ops.mean_pool_packed(x, cu)
    parts = x.double().split([*lengths, 2])[:-1]
    wanted = [part.mean(0) if n else part.sum(0) for n, part in zip(lengths, parts, strict=True)]
    # At most nine additions and a division in float32 or better, then one rounding; means of zero-mean values lie
    # below the largest of them.
    bound = 10 * torch.finfo(torch.float32).eps / 2 * (dtype != torch.float64) + torch.finfo(dtype).eps * 5
    assert given.dtype == dtype
    assert (given.double() - torch.stack(wanted)).abs().max() <= bound * x.double().abs().max()
    half = ops.mean_pool_packed(x, cu, 18.0)[2].double()  # nine rows, divided by 18
    assert (half - wanted[2] / 2).abs().max() <= bound * x.double().abs().max()


# ---- Kernels against their implementations in PyTorch ---------------------------------------------------------------
# A case makes an operator's arguments from normal numbers, with strides and sizes as models have them. `bounds` says
# what the arithmetic in float32 may be off by, element by element; a result's own rounding comes on top of that.

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
Draw = Callable[..., Tensor]
Args = tuple[Any, ...]


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, L, H · D) as models look at it: (B, H, L, D)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def one_of_three(x: Tensor, heads: int, which: int) -> Tensor:
    """Query, key or value of one product, as ModernBERT cuts it."""
    return x.unflatten(2, (3, heads, -1)).transpose(3, 1).unbind(2)[which]


def outliers(x: Tensor) -> Tensor:
    """One column a hundred times the others', as residual streams have it, and a mean that is not 0."""
    x = x * 2 + 1
    x[..., 3] *= 100
    return x


NORMS: dict[str, Callable[[Draw], tuple[str, Args]]] = {
    "layer_norm": lambda d: ("layer_norm", (d(3, 5, 48), d(48), d(48), 1e-5)),
    "layer_norm, outliers": lambda d: ("layer_norm", (outliers(d(3, 5, 96)), d(96), d(96), 1e-12)),
    "layer_norm, no weight": lambda d: ("layer_norm", (d(3, 5, 48), None, None, 1e-5)),
    "layer_norm, odd": lambda d: ("layer_norm", (d(7, 33), d(33), None, 1e-3)),
    "layer_norm, residual": lambda d: ("layer_norm", (d(2, 5, 48), d(48), d(48), 1e-5, d(2, 5, 48))),
    "layer_norm, a vector": lambda d: ("layer_norm", (d(48), d(48), d(48), 1e-5)),
    "layer_norm, five dimensions": lambda d: ("layer_norm", (d(2, 3, 2, 2, 16), d(16), d(16), 1e-5)),
    "layer_norm, transposed": lambda d: ("layer_norm", (d(5, 3, 48).transpose(0, 1), d(48), d(48), 1e-5)),
    "layer_norm, first token": lambda d: ("layer_norm", (d(4, 7, 48)[:, 0], d(48), d(48), 1e-5)),
    "layer_norm, of columns": lambda d: ("layer_norm", (d(48, 6).T, d(48), d(48), 1e-5)),
    "layer_norm, one residual for all": lambda d: (
        "layer_norm", (d(3, 5, 48), d(48), d(48), 1e-5, d(1, 5, 48).expand(3, 5, 48))),
    "layer_norm, nothing": lambda d: ("layer_norm", (d(0, 5, 48), d(48), d(48), 1e-5)),
    "layer_norm, wide": lambda d: ("layer_norm", (d(2, 5000), d(5000), d(5000), 1e-5)),
    "add_layer_norm": lambda d: ("add_layer_norm", (d(3, 5, 48), d(3, 5, 48) * 3, d(48), d(48), 1e-5)),
    "add_layer_norm, strided": lambda d: (
        "add_layer_norm", (d(5, 3, 48).transpose(0, 1), d(3, 5, 64)[..., :48], d(48), None, 1e-5)),
    "rms_norm": lambda d: ("rms_norm", (d(3, 5, 48), d(48), 1e-6)),
    "rms_norm, residual, no weight": lambda d: ("rms_norm", (outliers(d(3, 5, 48)), None, 1e-6, d(3, 5, 48))),
    "rms_norm, heads": lambda d: ("rms_norm", (heads_of(d(2, 5, 64), 4), d(16), 1e-6)),
    "add_rms_norm": lambda d: ("add_rms_norm", (d(3, 5, 48), d(3, 5, 48) * 3, d(48), 1e-5)),
}  # fmt: skip


def ids(rows: int, *shape: int) -> Tensor:
    return torch.randint(0, rows, shape, generator=generator("ids", shape))


EMBEDDINGS: dict[str, Callable[[Draw], tuple[str, Args]]] = {
    "BERT": lambda d: (
        "embed_norm",
        ([d(97, 48), d(64, 48), d(2, 48)], [ids(97, 3, 7), torch.arange(7)[None], ids(2, 3, 7)], d(48), d(48), 1e-12),
    ),
    "one type for all": lambda d: (
        "embed_norm",
        ([d(97, 48), d(2, 48)], [ids(97, 3, 7), torch.zeros(3, 1, dtype=torch.int64).expand(3, 7)], d(48), d(48), 1e-5),
    ),
    "one table": lambda d: ("embed_norm", ([d(97, 40)], [ids(97, 5).int()], None, None, 1e-5)),
    "strided ids": lambda d: ("embed_norm", ([d(97, 40)], [ids(97, 6, 4).T], d(40), None, 1e-5)),
    "a single id": lambda d: ("embed_norm", ([d(9, 40), d(9, 40)], [ids(9, 2, 3), ids(9, 1)], d(40), d(40), 1e-5)),
    "one id of no dimension": lambda d: ("embed_norm", ([d(9, 40)], [torch.tensor(4)], d(40), d(40), 1e-5)),
    "nothing": lambda d: ("embed_norm", ([d(9, 40)], [ids(9, 0, 3)], d(40), d(40), 1e-5)),
}

ROTARY: dict[str, Callable[[Draw], tuple[str, Args]]] = {
    "Llama": lambda d: ("rotary", (heads_of(d(3, 5, 64), 4), d(1, 1, 5, 16), d(1, 1, 5, 16))),
    "own positions": lambda d: ("rotary", (heads_of(d(3, 5, 64), 4), d(3, 1, 5, 16), d(3, 1, 5, 16))),
    "one sequence": lambda d: ("rotary", (heads_of(d(1, 5, 64), 4), d(1, 1, 5, 16), d(1, 1, 5, 16))),
    "one token": lambda d: ("rotary", (heads_of(d(3, 1, 64), 4), d(1, 1, 1, 16), d(1, 1, 1, 16))),
    "expanded": lambda d: (
        "rotary", (heads_of(d(3, 5, 64), 4), *(d(1, 1, 5, 16).expand(3, 1, 5, 16) * 1 for _ in "cs"))),
    "stride 0": lambda d: (
        "rotary", (heads_of(d(3, 5, 64), 4), *(d(1, 1, 5, 16).expand(3, 1, 5, 16) for _ in "cs"))),
    "ModernBERT": lambda d: ("rotary", (one_of_three(d(3, 5, 192), 4, 1), d(1, 1, 5, 16), d(1, 1, 5, 16))),
    "heads first in memory": lambda d: ("rotary", (d(3, 4, 5, 16), d(1, 1, 5, 16), d(1, 1, 5, 16))),
    "heads last": lambda d: ("rotary", (d(3, 5, 4, 16), d(1, 5, 1, 16), d(1, 5, 1, 16))),
    "packed": lambda d: ("rotary", (d(11, 4, 16), d(11, 1, 16), d(11, 1, 16))),
    "packed, of three": lambda d: ("rotary", (d(11, 3, 4, 16)[:, 1], d(11, 1, 16), d(11, 1, 16))),
    "no heads": lambda d: ("rotary", (d(3, 5, 6), d(3, 5, 6), d(3, 5, 6))),
    "one angle": lambda d: ("rotary", (d(3, 5, 8), d(8), d(8))),
    "nothing": lambda d: ("rotary", (heads_of(d(0, 5, 64), 4), d(1, 1, 5, 16), d(1, 1, 5, 16))),
    "no view: heads first and own positions": lambda d: (
        "rotary", (d(3, 4, 5, 16), d(3, 1, 5, 16), d(3, 1, 5, 16))),
}  # fmt: skip


def qkv(d: Draw, batch: int = 3, queries: int = 7, keys: int = 9, heads: int = 4, groups: int = 4, size: int = 16):
    return tuple(heads_of(d(batch, n, h * size), h) for n, h in ((queries, heads), (keys, groups), (keys, groups)))


def bools(*shape: int) -> Tensor:
    return torch.rand(shape, generator=generator("bools", shape)) < 0.6


def additive(d: Draw, *shape: int) -> Tensor:
    """A mask that is added: finite values, some of them as low as they get, and −inf."""
    x = d(*shape)
    return x.masked_fill(x > 0.9, float("-inf")).masked_fill(x < -0.9, torch.finfo(torch.float16).min)


def empty_row() -> Tensor:
    padding = bools(3, 9)
    padding[1] = False
    return padding


ATTENTION: dict[str, Callable[[Draw], tuple[str, Args]]] = {
    "no mask": lambda d: ("attention", qkv(d)),
    "long": lambda d: ("attention", qkv(d, 2, 70, 150)),
    "one query, many keys": lambda d: ("attention", qkv(d, 1, 1, 1500)),
    "contiguous": lambda d: ("attention", tuple(x.contiguous() for x in qkv(d))),
    "of one product": lambda d: ("attention", tuple(one_of_three(d(3, 9, 192) + w / 3, 4, w) for w in range(3))),
    "scale": lambda d: ("attention", (*qkv(d), None, None, 0.7)),
    "grouped": lambda d: ("attention", (*qkv(d, heads=6, groups=2), None, None, None, -1, 0)),
    "of 256": lambda d: ("attention", qkv(d, 2, 33, 50, 2, 2, 256)),
    "padding": lambda d: ("attention", (*qkv(d), None, bools(3, 9))),
    "padding of one": lambda d: ("attention", (*qkv(d), None, bools(1, 9))),
    "padding, wider than the keys": lambda d: ("attention", (*qkv(d), None, bools(3, 12))),
    "padding, an empty row": lambda d: ("attention", (*qkv(d), None, empty_row())),
    "padding, causal": lambda d: ("attention", (*qkv(d, keys=7), None, bools(3, 7), None, -1, 0)),
    "bool (B, 1, Q, K)": lambda d: ("attention", (*qkv(d), bools(3, 1, 7, 9))),
    "bool (B, H, Q, K)": lambda d: ("attention", (*qkv(d), bools(3, 4, 7, 9))),
    "bool (B, 1, 1, K)": lambda d: ("attention", (*qkv(d), bools(3, 1, 1, 9))),
    "bool (Q, K)": lambda d: ("attention", (*qkv(d), bools(7, 9))),
    "bool (1, 1, Q, 1)": lambda d: ("attention", (*qkv(d), bools(1, 1, 7, 1))),
    "bool, expanded": lambda d: ("attention", (*qkv(d), bools(3, 1, 1, 9).expand(3, 4, 7, 9))),
    "bool and padding": lambda d: ("attention", (*qkv(d), bools(3, 1, 7, 9), bools(3, 9))),
    "bool (Q, K) and padding": lambda d: ("attention", (*qkv(d), bools(7, 9), bools(3, 11))),
    "added (B, 1, Q, K)": lambda d: ("attention", (*qkv(d), additive(d, 3, 1, 7, 9))),
    "added (1, H, Q, K)": lambda d: ("attention", (*qkv(d), d(1, 4, 7, 9))),
    "added (B, 1, 1, K)": lambda d: ("attention", (*qkv(d), additive(d, 3, 1, 1, 9))),
    "added (K)": lambda d: ("attention", (*qkv(d), d(9))),
    "added and padding": lambda d: ("attention", (*qkv(d), d(1, 4, 7, 9), empty_row())),
    "added, padding and window": lambda d: ("attention", (*qkv(d), d(1, 4, 7, 9), empty_row(), None, 3, 1)),
    "all −inf": lambda d: ("attention", (*qkv(d), torch.full((3, 1, 7, 9), -torch.inf).to(d(1)))),
    "all low": lambda d: ("attention", (*qkv(d), torch.full((3, 1, 7, 9), -60000.0).to(d(1)))),
    "all false": lambda d: ("attention", (*qkv(d), torch.zeros(3, 1, 7, 9, dtype=torch.bool))),
    "causal": lambda d: ("attention", (*qkv(d, keys=7), None, None, None, -1, 0)),
    "causal, more keys": lambda d: ("attention", (*qkv(d), None, None, None, -1, 0)),
    "causal with a cache": lambda d: ("attention", (*qkv(d), None, None, None, -1, 0, 2)),
    "window": lambda d: ("attention", (*qkv(d, keys=7), None, None, None, 2, 2)),
    "window of one side": lambda d: ("attention", (*qkv(d), None, None, None, 2, -1)),
    "window beyond the keys": lambda d: ("attention", (*qkv(d, queries=9, keys=3), None, None, None, 1, 0)),
    "window with an offset of its own": lambda d: ("attention", (*qkv(d), None, None, None, 3, 1, 4)),
    "offset without a window": lambda d: ("attention", (*qkv(d), None, None, None, -1, -1, 4)),
    "no batch": lambda d: ("attention", qkv(d, 0)),
    "no queries": lambda d: ("attention", qkv(d, queries=0)),
    "no keys": lambda d: ("attention", qkv(d, keys=0)),
    "odd heads": lambda d: ("attention", (*qkv(d, size=12), None, bools(3, 9))),
    "values of another size": lambda d: (
        "attention", (*qkv(d)[:2], qkv(d, size=24)[2], None, bools(3, 9), None, -1, 0)),
    "packed": lambda d: (
        "attention_packed", (*(d(17, 4, 16) + w / 3 for w in range(3)), torch.tensor([0, 4, 4, 15]).int(), 11)),
    "packed, windows, groups": lambda d: (
        "attention_packed",
        (d(17, 4, 16), d(17, 2, 16), d(17, 2, 3, 16)[:, :, 1], torch.tensor([0, 4, 17]), 13, 0.4, 2, 1)),
    "packed, odd heads": lambda d: (
        "attention_packed", (*(d(9, 4, 12) + w / 3 for w in range(3)), torch.tensor([0, 4, 9]), 5)),
    "packed, nothing": lambda d: ("attention_packed", (*(d(0, 4, 16) for _ in "qkv"), torch.tensor([0, 0]), 0)),
}  # fmt: skip

POOLING: dict[str, Callable[[Draw], tuple[str, Args]]] = {
    "padding": lambda d: ("mean_pool", (d(3, 9, 48), bools(3, 9).long())),
    "bool": lambda d: ("mean_pool", (d(3, 9, 48), bools(3, 9))),
    "an empty row": lambda d: ("mean_pool", (d(3, 9, 48), empty_row().float())),
    "long": lambda d: ("mean_pool", (d(2, 700, 40) + 1, bools(2, 700).int())),
    "weights of its dtype": lambda d: ("mean_pool", (d(3, 9, 33), d(3, 9).abs())),
    "least": lambda d: ("mean_pool", (d(3, 9, 48), bools(3, 9), 20.0)),
    "strided": lambda d: ("mean_pool", (d(9, 3, 64).transpose(0, 1)[..., ::2], bools(9, 3).T)),
    "one mask for all": lambda d: ("mean_pool", (d(3, 9, 48), bools(1, 9).expand(3, 9))),
    "no tokens": lambda d: ("mean_pool", (d(3, 0, 48), bools(3, 0))),
    "nothing": lambda d: ("mean_pool", (d(0, 9, 48), bools(0, 9))),
    "a mask that is broadcast": lambda d: ("mean_pool", (d(3, 9, 48), bools(1, 9))),
    "no elements": lambda d: ("mean_pool", (d(3, 9, 0), bools(3, 9))),
    "packed": lambda d: ("mean_pool_packed", (d(17, 48), torch.tensor([0, 4, 4, 15]).int())),
    "packed, long numbers": lambda d: ("mean_pool_packed", (d(900, 33), torch.tensor([0, 800, 900]))),
    "packed, strided": lambda d: ("mean_pool_packed", (d(48, 17).T, torch.arange(8).int()[::2])),
    "packed, least": lambda d: ("mean_pool_packed", (d(17, 48), torch.tensor([0, 4, 4, 15]).int(), 9.0)),
    "packed, nothing": lambda d: ("mean_pool_packed", (d(0, 48), torch.tensor([0, 0]).int())),
    "packed, no sequence": lambda d: ("mean_pool_packed", (d(0, 48), torch.tensor([0]).int())),
}  # fmt: skip

LINEAR: dict[str, Callable[[Draw], tuple[str, Args]]] = {
    "one product": lambda d: ("linear_act", (d(3, 5, 48), d(40, 48), d(40))),
    "one product, no bias": lambda d: ("linear_act", (d(3, 5, 48), d(40, 48))),
    "many rows": lambda d: ("linear_act", (d(2, 65, 48), d(40, 48), d(40), "gelu", d(2, 65, 40))),
    **{
        activation: lambda d, a=activation: ("linear_act", (d(3, 5, 48), d(40, 48) / 4, d(40), a))
        for activation in ("relu", "gelu", "gelu_tanh", "silu", "tanh")
    },
    "residual": lambda d: ("linear_act", (d(3, 5, 48), d(40, 48), d(40), "none", d(3, 5, 40))),
    "residual, activated, no bias": lambda d: ("linear_act", (d(3, 5, 48), d(40, 48), None, "silu", d(3, 5, 40))),
    "residual, strided": lambda d: (
        "linear_act", (d(3, 5, 48), d(40, 48), d(40), "none", d(5, 3, 40).transpose(0, 1))),
    "residual, one for all": lambda d: (
        "linear_act", (d(3, 5, 48), d(40, 48), d(40), "none", d(1, 5, 40).expand(3, 5, 40))),
    "odd": lambda d: ("linear_act", (d(7, 33), d(5, 33), d(5), "tanh", d(7, 5))),
    "a vector": lambda d: ("linear_act", (d(48), d(40, 48), d(40), "gelu", d(40))),
    "first token": lambda d: ("linear_act", (d(4, 7, 48)[:, 0], d(40, 48), d(40), "tanh")),
    "transposed": lambda d: ("linear_act", (d(5, 3, 48).transpose(0, 1), d(40, 48), d(40), "relu")),
    "columns": lambda d: ("linear_act", (d(48, 6).T, d(48, 40).T, d(80)[::2], "gelu", d(40, 6).T)),
    "every second column": lambda d: ("linear_act", (d(2, 3, 96)[..., ::2], d(40, 96)[:, ::2], d(40), "silu")),
    "one row for all": lambda d: ("linear_act", (d(1, 48).expand(9, 48), d(40, 48), d(40), "silu")),
    "five dimensions": lambda d: ("linear_act", (d(2, 3, 2, 2, 16), d(8, 16), d(8), "gelu")),
    "one row": lambda d: ("linear_act", (d(1, 1, 48), d(40, 48), d(40), "gelu")),
    "nothing": lambda d: ("linear_act", (d(0, 5, 48), d(40, 48), d(40), "gelu")),
    "no columns": lambda d: ("linear_act", (d(3, 5, 48), d(0, 48), d(0), "gelu")),
    "nothing to sum": lambda d: ("linear_act", (d(3, 5, 0), d(40, 0), d(40), "gelu")),
    "residual that is broadcast": lambda d: ("linear_act", (d(3, 5, 48), d(40, 48), d(40), "none", d(40))),
    "gated": lambda d: ("linear_gated", (d(3, 5, 48), d(80, 48) / 4, d(80))),
    "gated, gelu, no bias": lambda d: ("linear_gated", (d(3, 5, 48), d(80, 48) / 4, None, "gelu")),
    "gated, many rows": lambda d: ("linear_gated", (d(70, 48), d(66, 48) / 4, d(66), "gelu_tanh")),
    "gated, a vector": lambda d: ("linear_gated", (d(48), d(80, 48), d(80))),
    "gated, strided": lambda d: ("linear_gated", (d(5, 3, 48).transpose(0, 1), d(48, 80).T, d(80), "none")),
    "gated, nothing": lambda d: ("linear_gated", (d(0, 48), d(80, 48), d(80))),
    "pair": lambda d: ("linear_gated_pair", (d(3, 5, 48), d(40, 48) / 4, None, d(40, 48), None)),
    "pair, biases": lambda d: ("linear_gated_pair", (d(3, 5, 48), d(40, 48) / 4, d(40), d(40, 48), d(40), "gelu")),
    "pair, one bias": lambda d: ("linear_gated_pair", (d(3, 5, 48), d(33, 48) / 4, None, d(33, 48), d(33), "relu")),
    "pair, many rows": lambda d: ("linear_gated_pair", (d(70, 48), d(40, 48) / 4, d(40), d(40, 48), None)),
    "pair, strided": lambda d: ("linear_gated_pair", (d(4, 7, 48)[:, 0], d(48, 40).T, None, d(80, 48)[::2], None)),
    "pair, nothing": lambda d: ("linear_gated_pair", (d(2, 0, 48), d(40, 48), d(40), d(40, 48), d(40))),
}  # fmt: skip

CASES = {
    f"{family}: {name}": case
    for family, cases in (("norm", NORMS), ("embed", EMBEDDINGS), ("rotary", ROTARY), ("attention", ATTENTION),
                          ("pool", POOLING), ("linear", LINEAR))
    for name, case in cases.items()
}  # fmt: skip


# What the kernels leave to PyTorch.
HANDED_ON = {
    "rotary: no view: heads first and own positions",
    "attention: window with an offset of its own",
    "attention: odd heads",
    "attention: values of another size",
    "attention: packed, odd heads",
    "pool: a mask that is broadcast",
    "pool: no elements",
    "linear: no columns",
    "linear: nothing to sum",
    "linear: residual that is broadcast",
}


def made(name: str, device: str, dtype: torch.dtype) -> tuple[str, Args]:
    """An operator and its arguments; the same numbers for each dtype, but for their rounding."""
    count = iter(range(100))

    def numbers(*shape: int) -> Tensor:
        g = generator("made", name, next(count))
        return torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype)

    operator, args = CASES[name](numbers)
    # Tensors keep their strides on the way to a device: all but ids and masks are there already.
    return operator, pytree.tree_map_only(Tensor, lambda t: t if t.device.type == device else t.to(device), args)


def called(operator: str, args: Args) -> list[Tensor]:
    result = getattr(ops, operator)(*args)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def exactly(operator: str, args: Args) -> list[Tensor]:
    """By the implementation in PyTorch, in float64."""
    return called(
        f"{operator}_plain",
        pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, args),
    )


def norm_bounds(args: dict[str, Any], parts: Tensor, s: Tensor, centred: bool) -> list[Tensor]:
    """Of (s − mean) / σ · weight + bias, in units of float32, where s is the sum of parts.

    With m the largest of a row's parts, s is off by m, and a mean by 1 + n / 4 + 8 of m: the sum runs over vectors of
    at least four. The difference adds 2 m; it may be off by 14 + n / 4 of m then. 1 / σ comes of a sum of squares, off
    by n / 4 + 8 relatively, of which the root takes half, and by twice what the difference is off by, of which it takes
    half as well; four roundings more. The quotient is at most 2 m / σ. Last weight and bias, a rounding each.
    """
    n = s.shape[-1]
    m = parts.amax(-1, keepdim=True)
    deviation = (s - s.mean(-1, keepdim=True) if centred else s).pow(2).mean(-1, keepdim=True).sqrt()
    one, nothing = torch.ones((), dtype=s.dtype, device=s.device), torch.zeros((), dtype=s.dtype, device=s.device)
    weight = one if args["weight"] is None else args["weight"].abs()
    bias = nothing if args.get("bias") is None else args["bias"].abs()
    return [(2 * (14 + n / 4) + 2 * (n / 8 + 8) + 2) * m / deviation * weight + bias, parts]


def attention_bounds(args: dict[str, Any], device: str, dtype: torch.dtype) -> list[Tensor]:
    """In units of float32. A score is a sum of size products and may be off by size + 2 of the sum of their magnitudes,
    and by one of the mask; a weight relatively by twice that (the sum of weights is off as well), the two exponentials
    and the sums over keys by one a key and eight. The result is a mean of values. On CUDA the weights are rounded to
    their dtype."""
    q, k, v = args["query"], args["key"], args["value"]
    if v.numel() == 0 or q.numel() == 0:
        return [torch.zeros((), device=device)]
    size, keys = q.shape[-1], k.shape[-2] if k.dim() == 4 else int(args["longest"])
    scale = args["scale"] or size**-0.5
    score = q.norm(dim=-1).max() * k.norm(dim=-1).max() * scale  # at least every sum of magnitudes
    mask = args.get("mask")
    if mask is not None and mask.dtype != torch.bool:
        # Only what weighs something counts, and that is what lies near a row's largest.
        near = mask.isfinite() & (mask > mask.amax(-1, keepdim=True) - 2 * score - 50)
        score = score + torch.where(near, mask.abs(), 0).max() / (size + 2)
    rounding = UNIT[dtype] / UNIT[torch.float32] if device == "cuda" and dtype != torch.float32 else 0
    return [(2 * (size + 2) * score + keys + 8 + rounding) * v.abs().max()]


def linear_bounds(operator: str, args: dict[str, Any], device: str, dtype: torch.dtype) -> Tensor:
    """In units of float32. A product is a sum of k products and a bias, and may be off by as many of the sum of
    magnitudes; a library rounds it to its dtype. On CUDA PyTorch lets cuBLAS add parts of a sum in that dtype, which it
    does where a pair's products go into halves of one tensor: two parts, each rounded. No activation is steeper than
    1.13, and its own evaluation is off by ten at most. Then the other half's product, or a residual."""
    rounding = UNIT[dtype] / UNIT[torch.float32]

    def product(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        size = F.linear(args["x"].abs(), weight.abs(), None if bias is None else bias.abs())
        parts = rounding * size if device == "cuda" and operator == "linear_gated_pair" else 0
        return F.linear(args["x"], weight, bias), (weight.shape[1] + 2) * size + parts

    if operator == "linear_gated_pair":
        a, off_a = product(args["gate_weight"], args["gate_bias"])
        b, off_b = product(args["up_weight"], args["up_bias"])
    else:
        a, off_a = product(args["weight"], args["bias"])
        if operator == "linear_gated":
            (a, b), (off_a, off_b) = a.chunk(2, -1), off_a.chunk(2, -1)
    if operator == "linear_act":
        added = 0 if args["residual"] is None else args["residual"].abs()
        return 1.13 * (off_a + rounding * a.abs()) + 10 * a.abs() + added
    off_a, off_b = 1.13 * (off_a + rounding * a.abs()) + 10 * a.abs(), off_b + rounding * b.abs()
    return off_a * b.abs() + off_b * a.abs() + off_a * off_b * UNIT[torch.float32]


def pool_bounds(args: dict[str, Any], packed: bool) -> Tensor:
    """In units of float32: an addition a token above and one below, each weight's rounding and product, a division, of
    the sum of magnitudes."""
    x, least = args["x"].abs(), args["least"]
    if packed:
        return (args["cu"].diff().max() + 4 if len(args["cu"]) > 1 else 0) * ops.mean_pool_packed_plain(
            x, args["cu"], least
        )
    return (2 * x.shape[1] + 4) * ops.mean_pool_plain(x, args["mask"].double().abs(), least)


def bounds(operator: str, args: Args, device: str, dtype: torch.dtype) -> list[Tensor]:
    """What each result may be off by, before it is rounded, in units of float32."""
    schema = getattr(ops, operator).default._schema.arguments
    given = dict(zip([a.name for a in schema], [*args, *(a.default_value for a in schema[len(args) :])], strict=True))
    wide = {n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in given.items()}
    if operator.startswith("attention"):
        return attention_bounds(wide, device, dtype)
    if operator == "rotary":  # two products and a sum
        x, cos, sin = wide["x"].abs(), wide["cos"].abs(), wide["sin"].abs()
        return [2 * (x * cos + x.roll(x.shape[-1] // 2, -1) * sin)]
    if operator.startswith("linear"):
        return [linear_bounds(operator, wide, device, dtype)]
    if operator.startswith("mean_pool"):
        return [pool_bounds(wide, operator.endswith("packed"))]
    if operator == "embed_norm":
        found = [t.double()[i] for t, i in zip(given["tables"], given["ids"], strict=True)]
    else:
        found = [t for t in (wide["x"], wide["residual"]) if t is not None]
    # One rounding a term after the first; as many as there are, for the sum that the second result is.
    return norm_bounds(wide, sum(t.abs() for t in found), sum(found), "rms" not in operator)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel(case: str, dtype: torch.dtype, device: str) -> None:
    """Within what its arithmetic allows, and no further from the truth than PyTorch in the same dtype."""
    operator, args = made(case, device, dtype)
    if case in HANDED_ON:
        for a, b in zip(called(operator, args), called(f"{operator}_plain", args), strict=True):
            assert a.stride() == b.stride() and torch.equal(a, b)
        return
    given, own, exact = called(operator, args), called(f"{operator}_plain", args), exactly(operator, args)
    for a, p, e, bound in zip(given, own, exact, bounds(operator, args, device, dtype), strict=False):
        assert a.dtype == dtype and a.shape == e.shape and (a.stride() == p.stride() or not a.numel())
        if operator == "attention_packed":  # what lies behind the last sequence may be anything finite
            assert a.isfinite().all()
            last = int(args[3][-1])
            a, p, e = a[:last], p[:last], e[:last]
        if not a.numel():
            continue
        error = (a.double() - e).abs()
        rounded = UNIT[dtype] * e.abs() * (1 + 2**-8)
        smallest = torch.finfo(dtype).smallest_normal * UNIT[dtype]  # half of what a subnormal number can be off by
        assert (error <= UNIT[torch.float32] * bound + rounded + smallest).all()
        # In the mean, as the largest of few errors is luck. PyTorch's may be 0 by chance, but not less than a rounding
        # for many numbers. In float32 the order of sums decides, also where weights are rounded.
        others = operator.startswith("attention") or operator == "linear_gated_pair"  # linear_bounds says of it
        near = 2 if dtype == torch.float32 or (others and device == "cuda") else 1.1
        assert rms(error) <= near * max(rms(p.double() - e), UNIT[dtype] * rms(e))


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def test_cases_reach_kernels() -> None:
    """Were all calls handed on to PyTorch, the test above would see no difference to it."""
    differ = set()
    for case, dtype in itertools.product(CASES, (torch.bfloat16, torch.float32)):
        operator, args = made(case, "cpu", dtype)
        same = zip(called(operator, args), called(f"{operator}_plain", args), strict=True)
        if not all(torch.equal(a, b) for a, b in same):
            assert case not in HANDED_ON
            differ.add(operator)
    assert differ == {"layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm", "embed_norm", "rotary", "attention",
                      "attention_packed", "mean_pool", "mean_pool_packed", "linear_act", "linear_gated",
                      "linear_gated_pair"}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_float64_is_pytorchs(case: str, device: str) -> None:
    operator, args = made(case, device, torch.float64)
    for a, b in zip(called(operator, args), called(f"{operator}_plain", args), strict=True):
        assert a.dtype == torch.float64 and torch.equal(a, b)


@pytest.mark.parametrize("mixed", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_weights_of_another_dtype(mixed: tuple[torch.dtype, torch.dtype], device: str) -> None:
    """As models keep norms, cosines and sines in float32."""
    kind, other = mixed
    x, weight = draw(3, 5, 48, dtype=kind, device=device), draw(48, dtype=other, device=device)
    exact = ops.rms_norm(x.double(), weight.double(), 1e-6)
    given = ops.rms_norm(x, weight, 1e-6)
    assert given.dtype == kind
    assert ((given.double() - exact).abs() <= (UNIT[kind] + 64 * UNIT[torch.float32]) * exact.abs()).all()
    q, cos = heads_of(draw(3, 5, 64, dtype=kind, device=device), 4), draw(1, 1, 5, 16, dtype=other, device=device)
    exact = ops.rotary(q.double(), cos.double(), cos.double())
    error = (ops.rotary(q, cos, cos).double() - exact).abs()
    assert (error <= UNIT[kind] * exact.abs() + 4 * UNIT[torch.float32] * q.double().abs().max() * 8).all()


def test_weights_that_want_gradients(device: str) -> None:
    """They change nothing, also where the epilogue writes over a product."""
    for case in ("linear: one product", "linear: gelu", "linear: residual", "linear: gated", "linear: pair, biases"):
        operator, args = made(case, device, torch.float32)
        wanted = called(operator, args)[0]
        given = called(operator, pytree.tree_map_only(Tensor, lambda t: t.requires_grad_(), args))[0]
        assert torch.is_grad_enabled() and torch.equal(given, wanted), case


def test_linear_under_autocast_is_pytorchs(device: str) -> None:
    for case in ("linear: gelu", "linear: gated", "linear: residual"):
        operator, args = made(case, device, torch.float32)
        with torch.autocast(device, torch.bfloat16):
            assert torch.equal(*(called(name, args)[0] for name in (operator, f"{operator}_plain"))), case


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_queries_without_keys_are_zero(dtype: torch.dtype, device: str) -> None:
    _, (*args, padding) = made("attention: padding, an empty row", device, dtype)
    for mask in (None, padding[:, None, None, :], torch.where(padding, 0.0, -torch.inf)[:, None, None, :].to(dtype)):
        out = ops.attention(*args[:3], mask, padding)
        assert out.isfinite().all() and not out[1].any() and out[0].any()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_heads_side_by_side_are_a_view(dtype: torch.dtype, device: str) -> None:
    _, args = made("attention: padding", device, dtype)
    out = ops.attention(*args)
    assert out.transpose(1, 2).reshape(3, 7, 64).data_ptr() == out.data_ptr()


@pytest.mark.parametrize("case", CASES)
def test_tracing(case: str) -> None:
    """Schema, shapes and strides of fake tensors, and tracing with sizes as symbols agree with what is computed."""
    operator, args = made(case, "cpu", torch.float32)
    torch.library.opcheck(getattr(ops, operator).default, args)


@pytest.mark.parametrize("operator", ["token_index", "gather_rows", "scatter_rows", "mean_pool_packed"])
def test_tracing_of_packing(operator: str) -> None:
    x, index = draw(6, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
    args = (mask_of("holes", "cpu"),) if operator == "token_index" else (x, index)
    torch.library.opcheck(getattr(ops, operator).default, args)


def test_tracing_of_what_is_written() -> None:
    x, index, out = draw(6, 8), torch.tensor([0, 2, 5], dtype=torch.int32), draw(7, 8)
    torch.library.opcheck(ops.gather_rows_out.default, (x, index, out))
    starts = torch.zeros(6, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    torch.library.opcheck(ops.pack_starts.default, (index, 5, *starts))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "weight's size": (lambda: ops.layer_norm(draw(3, 8).float(), draw(7).float(), None, 1e-5), "ValueError: weight"),
    "eps": (lambda: ops.rms_norm(draw(3, 8).float(), None, -1.0), "ValueError: eps"),
    "heads": (lambda: ops.attention(*(draw(2, h, 3, 8).float() for h in (3, 2, 2))), "ValueError: q: expected heads"),
    "batch": (lambda: ops.attention(*(draw(b, 2, 3, 8).float() for b in (2, 3, 3))), "ValueError: k"),
    "mask": (
        lambda: ops.attention(*(draw(2, 2, 3, 8).float() for _ in "qkv"), torch.ones(2, 1, 4, 3).bool()),
        "ValueError: mask: expected a shape that broadcasts",
    ),
    "id": (
        lambda: ops.embed_norm([draw(5, 8).float()], [torch.tensor([1, 5])], None, None, 1e-5),
        r"ValueError: ids\[0\]: expected ids from 0 to 4",
    ),
    "activation": (
        lambda: ops.linear_act(draw(3, 8).float(), draw(4, 8).float(), None, "swish"),
        'ValueError: activation: expected none, relu, .*, got "swish"',
    ),
    "weight's columns": (lambda: ops.linear_act(draw(3, 8).float(), draw(4, 7).float()), "shapes cannot be multiplied"),
    "bias's size": (lambda: ops.linear_gated(draw(3, 8).float(), draw(4, 8).float(), draw(2).float()), "size"),
    "two dtypes": (lambda: ops.linear_act(draw(3, 8).float(), draw(4, 8).bfloat16()), "dtype"),
    "two sizes": (
        lambda: ops.linear_gated_pair(draw(3, 8).float(), draw(4, 8).float(), None, draw(5, 8).float(), None), "size"),
    "mask's rank": (lambda: ops.token_index(torch.ones(4)), "ValueError: mask: expected shape"),
    "row": (
        lambda: ops.gather_rows(draw(3, 8), torch.tensor([0, 3])),
        "ValueError: rows: expected numbers from 0 to 2, the rows of x, got 3 at 1",
    ),
    "row, negative": (lambda: ops.gather_rows(draw(3), torch.tensor([0, -1])), "ValueError: rows: expected numbers"),
    "rows that are too many": (
        lambda: ops.gather_rows_out(draw(3, 8), torch.zeros(4, dtype=torch.int32), draw(3, 8)), "size"),
    "rows' own memory": (
        lambda: (lambda x: ops.gather_rows_out(x, torch.tensor([0, 1]), x))(draw(3, 8)),
        "ValueError: out: expected memory of its own",
    ),
    "repeated, negative": (
        lambda: ops.gather_rows(draw(3, 8), torch.tensor([4, -1]), True),
        "ValueError: rows: expected numbers from 0 on",
    ),
    "starts": (
        lambda: ops.pack_starts(torch.zeros(3).int(), 4, torch.zeros(2).int(), torch.zeros(1).int()),
        "ValueError: cu_out: expected at least cu's 3 numbers, got 2",
    ),
    "place": (
        lambda: ops.scatter_rows(draw(3, 2, 4).bfloat16(), torch.tensor([-1, 3]).int()),
        "ValueError: where: expected numbers below 3",
    ),
    "rows' dtype": (lambda: ops.gather_rows(draw(3, 8), torch.ones(2)), "TypeError: rows: expected int32 or int64"),
    "ends": (
        lambda: ops.mean_pool_packed(draw(3, 8).float(), torch.tensor([0, 4])),
        "ValueError: cu: expected numbers that do not decrease",
    ),
    "least": (lambda: ops.mean_pool(draw(1, 3, 8).float(), torch.ones(1, 3), -1.0), "ValueError: least"),
    "PyTorch's own": (lambda: ops.rotary(draw(3, 7).double(), draw(5).double(), draw(5).double()), "RuntimeError"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what: str) -> None:
    call, message = BAD[what]
    with pytest.raises(RuntimeError, match=message):
        call()


def test_results_do_not_depend_on_what_shares_the_batch(device: str) -> None:
    for case in ("attention: padding", "norm: layer_norm", "rotary: own positions", "pool: long"):
        operator, args = made(case, device, torch.float32)
        whole = getattr(ops, operator)(*args)
        alone = pytree.tree_map_only(Tensor, lambda t: t[1:2] if t.dim() > 1 else t, args)
        assert torch.equal(whole[1:2], getattr(ops, operator)(*alone)), case


REFUSED = [
    ("norm: layer_norm", torch.float32, ""),
    ("norm: layer_norm", torch.float64, "float64"),
    ("embed: BERT", torch.float64, "float64"),
    ("attention: padding", torch.bfloat16, ""),
    ("attention: odd heads", torch.float32, "heads of 12"),
    ("attention: values of another size", torch.float32, "one head size"),
    ("attention: packed, odd heads", torch.float16, "heads of 12"),
    ("linear: gelu", torch.bfloat16, ""),
    ("linear: gelu", torch.float64, "float64"),
    ("linear: gated", torch.float16, ""),
    ("linear: gated", torch.float64, "float64"),
    ("linear: pair", torch.float32, ""),
    ("linear: pair", torch.float64, "float64"),
    ("linear: nothing to sum", torch.float32, "no element"),
    ("pool: padding", torch.bfloat16, ""),
    ("pool: padding", torch.float64, "float64"),
    ("pool: a mask that is broadcast", torch.float32, "one weight a token"),
    ("pool: no elements", torch.float32, "no element"),
    ("pool: packed", torch.float16, ""),
    ("pool: packed", torch.float64, "float64"),
]


@pytest.mark.parametrize(("case", "dtype", "why"), REFUSED, ids=str)
def test_what_the_report_says_of_a_kernel(case: str, dtype: torch.dtype, why: str) -> None:
    operator, args = made(case, "cpu", dtype)
    told = kernel_refuses(getattr(ops, operator).default, "cpu", args, {})
    assert why in told and bool(why) == bool(told)
    own = [torch.equal(a, b) for a, b in zip(called(operator, args), called(f"{operator}_plain", args), strict=True)]
    assert all(own) or not told  # what it refuses is PyTorch's to the last bit
    assert "no kernel for CPU" in kernel_refuses(ops.attention_mask.default, "cpu", (), {})


def test_what_the_report_says_of_packing() -> None:
    rows = torch.tensor([0, 1])
    for operator in (ops.gather_rows.default, ops.scatter_rows.default):
        assert not kernel_refuses(operator, "cpu", (draw(3, 8), rows), {})
        assert "complex64" in kernel_refuses(operator, "cpu", (draw(3, 8).to(torch.complex64), rows), {})
        assert "no element" in kernel_refuses(operator, "cpu", (draw(3, 0), rows), {})
    assert not kernel_refuses(ops.token_index.default, "cpu", (draw(3, 8) > 0,), {})
    assert "complex128" in kernel_refuses(ops.token_index.default, "cpu", (draw(3, 8).to(torch.complex128),), {})
