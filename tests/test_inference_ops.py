"""What the operators of a rewritten model compute, by their kernels and by their implementations in PyTorch."""

from __future__ import annotations

import pytest
import torch
from strop.rewrite.ops import ops
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
