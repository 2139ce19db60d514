"""The operators that a rewritten model calls, each with an implementation in plain PyTorch.

They say what the kernels have to compute. A kernel registered for CPU or CUDA (bindings/torch/inference) takes
the place of the one here, which stays as the fallback of every other device and for what the kernel does not take:
float64, and what `kernel_refuses` lists. All are functional but those with an argument named …out: no argument is
written, no result shares an argument's memory. Inputs may have any strides. Where nothing else is said, a result has
the dtype of the first argument and is contiguous, and sums are taken in float32 or better.

In float16 and bfloat16 the implementations here round where a model does: after a residual's addition, after each of a
rotary embedding's products, before a weight. Kernels stay in float32 from the first load to the last store, and round
once. What they give is closer to the formula, and not the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import add_op_namespace_prefix, ops

__all__ = ["ACTIVATIONS", "kernel_refuses", "ops"]

_library = torch.library.Library(add_op_namespace_prefix("").removesuffix("::"), "FRAGMENT")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_SIZED = {
    *_FLOATS, torch.float64, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16,
    torch.uint32, torch.uint64,
}  # fmt: skip
_refusals: dict[str, Callable[..., str]] = {}  # of operators with a kernel: why it leaves a call to PyTorch, or ""


def kernel_refuses(operator: torch._ops.OpOverload, device: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Why an operator runs on its implementation in PyTorch on a device, as far as dtypes and sizes tell; "" if not.

    Arguments may be without contents. Layouts that a kernel cannot see as what it wants are not looked at: they depend
    on the call.
    """
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    if key is None or not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key):
        return f"there is no kernel for {device.upper()}"
    refusal = _refusals.get(operator._schema.name.split("::")[1])
    return refusal(*args, **kwargs) if refusal else ""


def _refuses_dtypes(*args: Any, **kwargs: Any) -> str:
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    for t in leaves:
        if isinstance(t, Tensor) and t.is_floating_point() and t.dtype not in _FLOATS:
            return f"the kernel does not take {str(t.dtype).removeprefix('torch.')}"
    return ""


def _refuses_sizes(x: Tensor, *_: Any, **__: Any) -> str:
    return "" if x.dtype in _SIZED else f"the kernel does not take {str(x.dtype).removeprefix('torch.')}"


def _refuses_rows(x: Tensor, *_: Any, **__: Any) -> str:
    return "the kernel does not take rows of no element" if 0 in x.shape[1:] else _refuses_sizes(x)


def _define(
    schema: str, fake: Callable[..., Any], refuses: Callable[..., str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers an operator with its schema, its implementation and what it returns for fake tensors.

    One with a kernel says what it refuses; its implementation has a name of its own as well, by which the kernel hands
    that on.
    """
    name, _, rest = schema.partition("(")
    if refuses:
        _refusals[name] = refuses

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        for called in (name, f"{name}_plain") if refuses else (name,):
            _library.define(f"{called}({rest}")
            _library.impl(called, implementation, "CompositeExplicitAutograd")
            torch.library.register_fake(add_op_namespace_prefix(called), fake, lib=_library)
        return implementation

    return register


def _like_first(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _wider(x: Tensor) -> Tensor:
    """In the dtype that sums are taken in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# ---- Attention ------------------------------------------------------------------------------------------------------


def _fake_attention_mask(
    padding: Tensor | None, batch: int, queries: int, keys: int, *_: Any, device: torch.device, **__: Any
) -> Tensor:
    return torch.empty((batch, 1, queries, keys), dtype=torch.bool, device=device)


@_define(
    "attention_mask(Tensor? padding, SymInt batch, SymInt queries, SymInt keys, SymInt query_offset=0, "
    "SymInt key_offset=0, int window_left=-1, int window_right=-1, *, Device device) -> Tensor",
    _fake_attention_mask,
)
def attention_mask(
    padding: Tensor | None,
    batch: int,
    queries: int,
    keys: int,
    query_offset: int = 0,
    key_offset: int = 0,
    window_left: int = -1,
    window_right: int = -1,
    *,
    device: torch.device,
) -> Tensor:
    """Which keys each query attends to: bool (batch, 1, queries, keys), true where it does.

    Query i stands at position i + query_offset, key j at j + key_offset. Query position p sees key position s where
    p - window_left <= s <= p + window_right; -1 is no bound on that side, so causal is window_right = 0. padding, bool
    of (batch or 1, key positions), is true for real tokens; positions that it does not reach are padding.
    """
    p = torch.arange(queries, device=device).unsqueeze(1) + query_offset
    s = torch.arange(keys, device=device) + key_offset
    seen = torch.ones((queries, keys), dtype=torch.bool, device=device)
    if window_left >= 0:
        seen = seen & (s >= p - window_left)
    if window_right >= 0:
        seen = seen & (s <= p + window_right)
    seen = seen.expand(batch, 1, queries, keys)
    if padding is not None:
        real = padding[:, key_offset : key_offset + keys]
        if real.shape[1] < keys:
            real = F.pad(real, (0, keys - real.shape[1]), value=False)
        seen = seen & real[:, None, None, :]
    return seen.contiguous()


def _refuses_attention(query: Tensor, key: Tensor, value: Tensor, *more: Any, **kwargs: Any) -> str:
    size = query.shape[-1]
    if size % 8 != 0 or not 8 <= size <= 256:
        return f"the kernel does not take heads of {size} elements"
    if value.shape[-1] != size:
        return "the kernel takes keys and values of one head size"
    return _refuses_dtypes(query, key, value, *more, **kwargs)


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    batch, heads, queries, _size = query.shape
    return query.new_empty((batch, queries, heads, value.shape[3])).transpose(1, 2)


@_define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, Tensor? padding=None, float? scale=None, "
    "int window_left=-1, int window_right=-1, SymInt query_offset=0) -> Tensor",
    _fake_attention,
    _refuses_attention,
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    query_offset: int = 0,
) -> Tensor:
    """softmax(query keyᵀ · scale + mask) value, (batch, heads, queries, value size).

    query is (batch, heads, queries, size), key (batch, key heads, keys, size), value (batch, key heads, keys, value
    size), all of one dtype; heads is a multiple of key heads, of which each serves consecutive query heads. scale is
    1/√size where it is None. Softmax and sums are in float32.

    A key counts where all of these let it: mask, broadcastable to (batch, heads, queries, keys), either bool (true:
    attend) or of query's dtype, which is added; padding, bool (batch, keys), true for real tokens; and the window, as
    in attention_mask with key_offset 0. A query that no key counts for, by false or by −inf, gives 0. One whose keys
    are all masked by a finite value, however low, gets the plain softmax.

    In memory the result is (batch, queries, heads, value size), so that heads side by side, what a layer goes on with,
    is a view of it.
    """
    if 0 in (*query.shape, key.shape[2]):  # for which PyTorch has no kernel everywhere
        shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        return query.new_zeros(shape).transpose(1, 2)
    if padding is not None or window_left >= 0 or window_right >= 0:
        batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        bounds = (query_offset, 0, window_left, window_right)
        seen = attention_mask(padding, batch, queries, keys, *bounds, device=query.device)
        if mask is None:
            mask = seen
        elif mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = mask.masked_fill(~seen, float("-inf"))
    if mask is not None and mask.dim() < 2:
        mask = torch.atleast_2d(mask)
    grouped = query.shape[1] != key.shape[1]
    if mask is not None and mask.shape[-1] == 1 < key.shape[2]:
        mask = mask.expand(*mask.shape[:-1], key.shape[2]).contiguous()  # PyTorch's kernels on CUDA misread it
    out = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=grouped)
    if mask is not None:
        any_key = (mask if mask.dtype == torch.bool else mask > float("-inf")).any(-1, keepdim=True)
        out = out.masked_fill(~any_key, 0)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _fake_attention_packed(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty(query.shape)


@_define(
    "attention_packed(Tensor query, Tensor key, Tensor value, Tensor cu, SymInt longest, float? scale=None, "
    "int window_left=-1, int window_right=-1) -> Tensor",
    _fake_attention_packed,
    _refuses_attention,
)
def attention_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu: Tensor,
    longest: int,
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
) -> Tensor:
    """attention within sequences that lie one behind the other, (tokens, heads, size).

    query is (tokens, heads, size), key and value (tokens, key heads, size). Sequence b has rows cu[b] to cu[b + 1], of
    integers (batch + 1) that do not sink; none has more than longest. scale and windows are those of attention, the
    window within the sequence. Rows behind the last sequence are finite, whatever they are.
    """
    batch, tokens, heads = cu.shape[0] - 1, query.shape[0], query.shape[1]
    places = cu[:-1, None] + torch.arange(longest, device=cu.device)
    real = places < cu[1:, None]
    places = torch.where(real, places, -1).flatten()
    q, k, v = (scatter_rows(x, places).unflatten(0, (batch, longest)).transpose(1, 2) for x in (query, key, value))
    out = attention(q, k, v, None, real, scale, window_left, window_right)
    rows = torch.arange(tokens, device=cu.device, dtype=cu.dtype)
    sequence = torch.searchsorted(cu[1:], rows, right=True)
    back = sequence * longest + rows - cu[sequence.clamp(max=max(batch - 1, 0))]
    out = out.transpose(1, 2).reshape(batch * longest, heads, query.shape[2])
    return scatter_rows(out, torch.where(rows < cu[-1], back, -1))


def _fake_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@_define("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor", _fake_rotary, _refuses_dtypes)
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves: x · cos + (−x₂, x₁) · sin, where x = (x₁, x₂) along the last dimension.

    x is (…, size) with an even size; cos and sin, of x's dtype or wider, broadcast to it. The result's strides are
    those of torch.empty_like(x): heads that lie side by side stay so. Rounded once, from float32 at least.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    first, second = wide.chunk(2, -1)
    return torch.empty_like(x).copy_(wide * cos + torch.cat((-second, first), -1) * sin)


# ---- Linear ---------------------------------------------------------------------------------------------------------


def _refuses_linear(x: Tensor, weight: Tensor, *more: Any, **kwargs: Any) -> str:
    if 0 in weight.shape:
        return "the kernel does not take weights of no element"
    return _refuses_dtypes(x, weight, *more, **kwargs)


def _fake_linear_act(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_define(
    'linear_act(Tensor x, Tensor weight, Tensor? bias=None, str activation="none", Tensor? residual=None) -> Tensor',
    _fake_linear_act,
    _refuses_linear,
)
def linear_act(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", residual: Tensor | None = None
) -> Tensor:
    """activation(x weightᵀ + bias) + residual, (…, n).

    x is (…, k), weight (n, k), bias (n) and residual (…, n), of the result's shape. activation: none, relu, gelu (by
    erf), gelu_tanh, silu or tanh.
    """
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    return y if residual is None else y + residual


def _fake_gated(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


@_define(
    'linear_gated(Tensor x, Tensor weight, Tensor? bias=None, str activation="silu") -> Tensor',
    _fake_gated,
    _refuses_linear,
)
def linear_gated(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "silu") -> Tensor:
    """activation(a) · b, (…, n), where (a, b) = x weightᵀ + bias are the first and the second n columns.

    x is (…, k), weight (2n, k), bias (2n); activation as in linear_act.
    """
    a, b = F.linear(x, weight, bias).chunk(2, -1)
    return ACTIVATIONS[activation](a) * b


def _fake_gated_pair(x: Tensor, gate: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


@_define(
    "linear_gated_pair(Tensor x, Tensor gate_weight, Tensor? gate_bias, Tensor up_weight, Tensor? up_bias, "
    'str activation="silu") -> Tensor',
    _fake_gated_pair,
    _refuses_linear,
)
def linear_gated_pair(
    x: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    activation: str = "silu",
) -> Tensor:
    """activation(x gate_weightᵀ + gate_bias) · (x up_weightᵀ + up_bias), (…, n): two weights (n, k)."""
    return ACTIVATIONS[activation](F.linear(x, gate_weight, gate_bias)) * F.linear(x, up_weight, up_bias)


# ---- Norms ----------------------------------------------------------------------------------------------------------


def _fake_pair(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return _like_first(x), _like_first(x)


@_define(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor? residual=None) -> Tensor",
    _like_first,
    _refuses_dtypes,
)
def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor:
    """(s − mean(s)) / √(var(s) + eps) · weight + bias over the last dimension, s = x + residual.

    x and residual are (…, n), weight and bias (n); the variance is the biased one.
    """
    s = x if residual is None else x + residual
    return F.layer_norm(s, s.shape[-1:], weight, bias, eps).contiguous()


@_define(
    "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor)",
    _fake_pair,
    _refuses_dtypes,
)
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """layer_norm with a residual, and the sum x + residual as well: what pre-norm layers carry on."""
    s = (x + residual).contiguous()
    return F.layer_norm(s, s.shape[-1:], weight, bias, eps), s


def _rms(s: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = _wider(s)
    y = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(s.dtype)
    return (y if weight is None else (y * weight).to(s.dtype)).contiguous()


@_define("rms_norm(Tensor x, Tensor? weight, float eps, Tensor? residual=None) -> Tensor", _like_first, _refuses_dtypes)
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, residual: Tensor | None = None) -> Tensor:
    """s / √(mean(s²) + eps), rounded to x's dtype, · weight, over the last dimension, s = x + residual.

    x and residual are (…, n), weight (n).
    """
    return _rms(x if residual is None else x + residual, weight, eps)


@_define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps) -> (Tensor, Tensor)",
    _fake_pair,
    _refuses_dtypes,
)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """rms_norm with a residual, and the sum x + residual as well."""
    s = (x + residual).contiguous()
    return _rms(s, weight, eps), s


# ---- What comes first and last --------------------------------------------------------------------------------------


def _refuses_embeddings(tables: Sequence[Tensor], ids: Sequence[Tensor], *more: Any, **kwargs: Any) -> str:
    if len(tables) > 3:
        return f"the kernel does not take {len(tables)} tables"
    return _refuses_dtypes(tables, ids, *more, **kwargs)


def _fake_embed_norm(tables: Sequence[Tensor], ids: Sequence[Tensor], *_: Any) -> Tensor:
    shape = torch.broadcast_shapes(*(i.shape for i in ids))
    return tables[0].new_empty((*shape, tables[0].shape[1]))


@_define(
    "embed_norm(Tensor[] tables, Tensor[] ids, Tensor? weight, Tensor? bias, float eps) -> Tensor",
    _fake_embed_norm,
    _refuses_embeddings,
)
def embed_norm(
    tables: Sequence[Tensor], ids: Sequence[Tensor], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """layer_norm of the sum of tables[t][ids[t]], taken from the left, (…, n).

    Tables are (entries, n); ids are integers of shapes that broadcast to one another. An id outside its table is an
    error; the kernel for CUDA, where that would have to be waited for, gives a row of NaN.
    """
    s = F.embedding(ids[0], tables[0])
    for table, i in zip(tables[1:], ids[1:], strict=True):
        s = s + F.embedding(i, table)
    return F.layer_norm(s, s.shape[-1:], weight, bias, eps)


def _refuses_pooling(x: Tensor, *_: Any, **__: Any) -> str:
    if x.shape[-1] == 0:
        return "the kernel does not take tokens of no element"
    return _refuses_dtypes(x)


def _refuses_mean_pool(x: Tensor, mask: Tensor, *_: Any, **__: Any) -> str:
    if mask.shape != x.shape[:2]:
        return "the kernel takes one weight a token"
    return _refuses_pooling(x) or _refuses_sizes(mask)


def _fake_mean_pool(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2]))


@_define("mean_pool(Tensor x, Tensor mask, float least=1e-09) -> Tensor", _fake_mean_pool, _refuses_mean_pool)
def mean_pool(x: Tensor, mask: Tensor, least: float = 1e-9) -> Tensor:
    """Σ x · mask / max(Σ mask, least) over the tokens, (batch, n).

    x is (batch, tokens, n), mask (batch, tokens), of any dtype: 1 for real tokens and 0 for padding, or other weights.
    An empty row gives 0.
    """
    wide = _wider(x)
    weights = mask.to(wide.dtype).unsqueeze(-1)
    return ((wide * weights).sum(1) / weights.sum(1).clamp(min=least)).to(x.dtype)


# ---- Real tokens alone ----------------------------------------------------------------------------------------------


def _fake_token_index(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length = mask.shape
    sizes = ((batch + 1, torch.int32), (batch * length, torch.int32), (batch * length, torch.int32), (4, torch.int64))
    cu, rows, where, summary = (mask.new_empty((size,), dtype=dtype) for size, dtype in sizes)
    return cu, rows, where, summary


@_define(
    "token_index(Tensor mask) -> (Tensor cu, Tensor rows, Tensor where, Tensor summary)",
    _fake_token_index,
    _refuses_sizes,
)
def token_index(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the real tokens of a padded batch are, sequence after sequence: what packing and unpacking need.

    mask is (batch, length) of any dtype, other than 0 for real tokens, of which there are T. Given are
    cu, int32 (batch + 1): how many real tokens there are before each sequence, and T;
    rows, int32 (batch · length): of each real token its position b · length + l, and 0 behind the T-th;
    where, int32 (batch · length): the reverse, of each position its token, or −1;
    summary, int64 (4): T, the longest sequence's real tokens, 1 if some sequence begins with padding (an empty one
    does), 1 if padding lies between the real tokens of some sequence.
    """
    real = mask != 0
    lengths, flat = real.sum(1), real.flatten()
    positions = flat.shape[0]
    cu = F.pad(lengths.cumsum(0), (1, 0))
    where = torch.where(flat, flat.cumsum(0) - 1, -1)
    # Padding goes behind the end, and is cut off.
    rows = torch.zeros(positions + 1, dtype=torch.int64, device=mask.device)
    rows.scatter_(0, torch.where(flat, where, positions), torch.arange(positions, device=mask.device))
    first = F.pad(real, (0, 1))[:, 0]  # also where the length is 0
    begins = (real & ~F.pad(real, (1, 0))[:, :-1]).sum(1)
    summary = torch.stack((cu[-1], F.pad(lengths, (0, 1)).max(), (~first).any().long(), (begins > 1).any().long()))
    return cu.int(), rows[:-1].int(), where.int(), summary


def _fake_rows(x: Tensor, index: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((index.shape[0], *x.shape[1:]))


def _fake_nothing(*_: Any, **__: Any) -> None:
    return None


@_define("gather_rows(Tensor x, Tensor rows, bool repeated=False) -> Tensor", _fake_rows, _refuses_rows)
def gather_rows(x: Tensor, rows: Tensor, repeated: bool = False) -> Tensor:
    """x[rows], (T, …): x is (N, …), rows (T) of int32 or int64 from 0 to N − 1.

    With `repeated` x goes on without end, x[rows % N]: what has one row a position, the same for all sequences.
    """
    return x.index_select(0, rows % x.shape[0] if repeated and x.shape[0] else rows)


@_define(
    "gather_rows_out(Tensor x, Tensor rows, Tensor(a!) out, bool repeated=False) -> ()", _fake_nothing, _refuses_rows
)
def gather_rows_out(x: Tensor, rows: Tensor, out: Tensor, repeated: bool = False) -> None:
    """gather_rows into the first T rows of `out`, of which there are at least as many; the others stay as they are."""
    out[: rows.shape[0]].copy_(gather_rows(x, rows, repeated))


@_define(
    "pack_starts(Tensor cu, SymInt count, Tensor(a!) cu_out, Tensor(b!) first_out) -> ()",
    _fake_nothing,
    lambda *_, **__: "",
)
def pack_starts(cu: Tensor, count: int, cu_out: Tensor, first_out: Tensor) -> None:
    """Where the sequences of a batch begin, into memory for at least as many.

    cu is (batch + 1), as in attention_packed, of `count` tokens. cu_out, int32 (S + 1), gets cu, and `count` behind;
    first_out, int32 (S), each sequence's first token, count − 1 at most, and 0 behind the batch.
    """
    batch = cu.shape[0] - 1
    cu_out[: batch + 1].copy_(cu)
    cu_out[batch + 1 :].fill_(count)
    first_out[:batch].copy_(cu[:-1].clamp(max=count - 1))
    first_out[batch:].zero_()


@_define("scatter_rows(Tensor x, Tensor where) -> Tensor", _fake_rows, _refuses_rows)
def scatter_rows(x: Tensor, where: Tensor) -> Tensor:
    """x[where], and 0 where that is negative, (N, …): x is (T, …), where (N) of int32 or int64 below T.

    T may be 0.
    """
    zero = x.new_zeros((1, *x.shape[1:]))
    return torch.cat((x, zero)).index_select(0, torch.where(where < 0, x.shape[0], where))


def _fake_mean_pool_packed(x: Tensor, cu: Tensor, least: float = 1e-9) -> Tensor:
    return x.new_empty((cu.shape[0] - 1, x.shape[1]))


@_define("mean_pool_packed(Tensor x, Tensor cu, float least=1e-09) -> Tensor", _fake_mean_pool_packed, _refuses_pooling)
def mean_pool_packed(x: Tensor, cu: Tensor, least: float = 1e-9) -> Tensor:
    """Σ x / max(number, least) over the rows of each sequence, (batch, n); 0 for an empty one.

    x is (tokens, n), cu (batch + 1) as in attention_packed; rows behind the last sequence do not count.
    """
    lengths = cu.diff()
    sums = torch.segment_reduce(_wider(x), "sum", lengths=lengths.long(), axis=0, unsafe=True, initial=0.0)
    return (sums / lengths.to(sums.dtype).clamp(min=least).unsqueeze(1)).to(x.dtype)
