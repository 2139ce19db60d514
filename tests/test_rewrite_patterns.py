"""The pattern engine, and each fusion: every spelling that it is for, and neighbours that it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import strop
import torch
import torch.nn.functional as F
from strop.rewrite.patterns import Pattern, PatternError
from support.cases import generator
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


class Body(nn.Module):
    """A function as a module, with weights of a layer from 8 to 8 columns and from 8 to 16."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        g = generator("weights")

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=g) / 2)

        self.w, self.b, self.v, self.c = parameter(8, 8), parameter(8), parameter(8, 8), parameter(8)
        self.wide, self.wide_b = parameter(16, 8), parameter(16)
        self.norm, self.shift = parameter(8), parameter(8)
        self.table, self.table2 = parameter(11, 8), parameter(11, 8)

    def forward(self, x: Tensor, y: Tensor = None, z: Tensor = None, u: Tensor = None) -> Any:
        return self.function(self, *(t for t in (x, y, z, u) if t is not None))


def made(function: Callable[..., Any], *args: Tensor) -> dict[str, int]:
    """How often each operator of strop's is called in the place of a function, whose results must stay the same."""
    plain, model = Body(function).eval(), rewritten(function, *args)
    with torch.no_grad():
        given, wanted = model(*args), plain(*args)
    torch.testing.assert_close(given, wanted, rtol=2e-5, atol=2e-6)
    report = strop.report(model)
    assert len(report.graphs) == 1 and not report.eager, str(report)
    assert all(note.startswith("calls Python") for note in report.graphs[0].notes), str(report)
    return {line.operation.removeprefix("strop::"): line.count for line in report.graphs[0].replaced}


_last: tuple[Any, nn.Module] = (None, nn.Module())


def rewritten(function: Callable[..., Any], *args: Tensor) -> nn.Module:
    """A function's rewritten module after a call; that of the function before is kept."""
    global _last
    if _last[0] is not function:
        _last = function, strop.optimize_model(Body(function).eval())
        _last[1](*args)
    return _last[1]


def left(function: Callable[..., Any], *args: Tensor) -> str:
    model = rewritten(function, *args)
    return "\n".join(f"{line.operation}: {line.note}" for line in strop.report(model).graphs[0].left)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("x", shape))


X = draw(3, 5, 8)
Q, K, V = draw(3, 2, 5, 4), draw(3, 2, 5, 4) * 1.5, draw(3, 2, 5, 4) - 0.5
ADDED = torch.where(draw(3, 1, 5, 5) > -0.8, 0.0, torch.finfo(torch.float32).min)

# ---- Attention ------------------------------------------------------------------------------------------------------

ATTENTION: dict[str, Callable[..., Tensor]] = {
    "sdpa": lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k, v),
    "sdpa, mask and scale": lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, a, scale=0.3),
    "sdpa, bool": lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, a == 0),
    "sdpa, causal": lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "sdpa, grouped": lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
    "scores * scale": lambda m, q, k, v, a: ((q @ k.transpose(-1, -2)) * 0.4 + a).softmax(-1) @ v,
    "scores / scale": lambda m, q, k, v, a: ((q @ k.transpose(2, 3)) / math.sqrt(4) + a).softmax(3) @ v,
    "mask first": lambda m, q, k, v, a: torch.softmax(a + torch.matmul(q, k.mT) * 0.4, dim=-1) @ v,
    "queries scaled": lambda m, q, k, v, a: F.softmax((q * 0.4) @ k.permute(0, 1, 3, 2), -1) @ v,
    "keys scaled": lambda m, q, k, v, a: F.softmax(q @ (k.transpose(-1, -2) / 3), -1) @ v,
    "no scale, no mask": lambda m, q, k, v, a: F.dropout(F.softmax(q @ k.transpose(-1, -2), -1), 0.1, m.training) @ v,
    "two masks": lambda m, q, k, v, a: F.softmax(q @ k.transpose(-1, -2) / 2 + a[:, :, :1] + a, -1) @ v,
    "softmax in float32": lambda m, q, k, v, a: F.softmax(q @ k.mT / 2, -1, dtype=torch.float32).to(q.dtype) @ v,
}  # fmt: skip
NO_ATTENTION: dict[str, Callable[..., Tensor]] = {
    "softmax over queries": lambda m, q, k, v, a: F.softmax(q @ k.transpose(-1, -2) / 2, -2) @ v,
    "not of a batch of heads": lambda m, q, k, v, a: F.softmax(q[0] @ k[0].transpose(-1, -2) / 2, -1) @ v[0],
    "sigmoid": lambda m, q, k, v, a: torch.sigmoid(q @ k.transpose(-1, -2) / 2) @ v,
}


@pytest.mark.parametrize("spelling", ATTENTION)
def test_attention(spelling: str) -> None:
    assert made(ATTENTION[spelling], Q, K, V, ADDED) == {"attention": 1}


@pytest.mark.parametrize("spelling", NO_ATTENTION)
def test_no_attention(spelling: str) -> None:
    assert made(NO_ATTENTION[spelling], Q, K, V, ADDED) == {}


def test_attention_whose_probabilities_are_wanted_is_left() -> None:
    def both(m: Body, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        p = F.softmax(q @ k.transpose(-1, -2) / 2, -1)
        return p @ v, p

    assert made(both, Q, K, V) == {}
    assert "used elsewhere" in left(both, Q, K, V)


# ---- Linear ---------------------------------------------------------------------------------------------------------


def new_gelu(y: Tensor) -> Tensor:
    return 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * torch.pow(y, 3.0))))


def gelu_fast(y: Tensor) -> Tensor:
    return 0.5 * y * (1.0 + torch.tanh(y * 0.7978845608 * (1.0 + 0.044715 * y * y)))


ACTIVATED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "gelu": (F.gelu, "gelu"),
    "erf, divided": (lambda y: y * 0.5 * (1.0 + torch.erf(y / math.sqrt(2.0))), "gelu"),
    "erf, multiplied": (lambda y: 0.5 * y * (1.0 + torch.erf(y * math.sqrt(0.5))), "gelu"),
    "tanh gelu": (lambda y: F.gelu(y, approximate="tanh"), "gelu_tanh"),
    "gpt2's gelu": (new_gelu, "gelu_tanh"),
    "relu": (F.relu, "relu"),
    "silu": (F.silu, "silu"),
    "silu by sigmoid": (lambda y: y * torch.sigmoid(y), "silu"),
    "tanh": (torch.tanh, "tanh"),
}
NOT_ACTIVATED: dict[str, Callable[[Tensor], Tensor]] = {
    "other constant": lambda y: 0.5 * y * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.05 * torch.pow(y, 3.0)))),
    "quick gelu": lambda y: y * torch.sigmoid(1.702 * y),
    "other power": lambda y: (
        0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * torch.pow(y, 2.0))))
    ),
    "leaky": lambda y: F.leaky_relu(y, 0.1),
}


def activation_of(function: Callable[..., Any], *args: Tensor) -> list[str]:
    """The activations of the linear layers in a rewritten graph."""
    model = rewritten(function, *args)
    (program,) = model.forward.programs.values()
    nodes = [n for n in program.captured.module.graph.nodes if "linear" in str(n.target)]
    position = {"linear_act": 3, "linear_gated": 3, "linear_gated_pair": 5}
    return [(*n.args, *["none"] * 6)[position[n.target._schema.name.split("::")[1]]] for n in nodes]


@pytest.mark.parametrize("spelling", ACTIVATED)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_with_activation(spelling: str, bias: bool) -> None:
    activation, name = ACTIVATED[spelling]

    def layer(m: Body, x: Tensor) -> Tensor:
        return activation(F.linear(x, m.w, m.b if bias else None))

    assert made(layer, X) == {"linear_act": 1}
    assert left(layer, X) == ""
    assert activation_of(layer, X) == [name]


@pytest.mark.parametrize("spelling", NOT_ACTIVATED)
def test_linear_with_what_is_no_activation_of_ours(spelling: str) -> None:
    def layer(m: Body, x: Tensor) -> Tensor:
        return NOT_ACTIVATED[spelling](F.linear(x, m.w, m.b))

    assert made(layer, X) == {"linear_act": 1}
    assert left(layer, X) != ""
    assert activation_of(layer, X) == ["none"]


@pytest.mark.parametrize("cut", ["chunk", "split", "sizes", "slices"])
def test_gate_in_one_weight(cut: str) -> None:
    def layer(m: Body, x: Tensor) -> Tensor:
        y = F.linear(x, m.wide, m.wide_b)
        cuts = {
            "chunk": lambda: y.chunk(2, dim=-1),
            "split": lambda: y.split(8, dim=-1),
            "sizes": lambda: y.split([8, 8], dim=-1),
            "slices": lambda: (y[..., :8], y[..., 8:]),
        }
        a, b = cuts[cut]()
        return F.silu(a) * b

    expected = {"linear_act": 1} if cut == "slices" else {"linear_gated": 1}
    assert made(layer, X) == expected


def test_gate_of_unequal_parts_and_of_the_second_half_is_left() -> None:
    def second(m: Body, x: Tensor) -> Tensor:
        a, b = F.linear(x, m.wide, m.wide_b).chunk(2, dim=-1)
        return a * F.gelu(b)

    def unequal(m: Body, x: Tensor) -> Tensor:
        a, b = F.linear(x, m.wide, m.wide_b).split([1, 15], dim=-1)
        return F.gelu(a) * b

    assert made(second, X) == made(unequal, X) == {"linear_act": 1}


def test_gate_in_two_weights() -> None:
    assert made(lambda m, x: F.silu(F.linear(x, m.w)) * F.linear(x, m.v), X) == {"linear_gated_pair": 1}
    assert made(lambda m, x: F.linear(x, m.v, m.c) * new_gelu(F.linear(x, m.w, m.b)), X) == {"linear_gated_pair": 1}
    assert made(lambda m, x: F.silu(F.linear(x, m.w)) * F.linear(x + 1, m.v), X) == {"linear_act": 2}


def test_linear_with_residual() -> None:
    assert made(lambda m, x: x + F.linear(x, m.w, m.b), X) == {"linear_act": 1}
    assert left(lambda m, x: x + F.linear(x, m.w, m.b), X) == ""
    assert left(lambda m, x: x + F.gelu(F.linear(x, m.w)), X) == ""
    assert "another shape" in left(lambda m, x: m.c + F.linear(x, m.w), X)
    assert "aten::add" in left(lambda m, x: torch.add(x, F.linear(x, m.w), alpha=2), X)


def test_conv1d_as_gpt2_has_it() -> None:
    def layer(m: Body, x: Tensor) -> Tensor:
        return new_gelu(torch.addmm(m.wide_b, x.view(-1, x.size(-1)), m.wide.t().clone()).view(x.size()[:-1] + (16,)))

    assert made(layer, X)["linear_act"] == 1
    assert activation_of(layer, X) == ["gelu_tanh"]


# ---- Norms ----------------------------------------------------------------------------------------------------------


def rms(x: Tensor, w: Tensor | None, eps: float, squares: Callable[[Tensor], Tensor]) -> Tensor:
    y = x * torch.rsqrt(squares(x).mean(-1, keepdim=True) + eps)
    return y if w is None else w * y


def wide_rms(x: Tensor, w: Tensor) -> Tensor:
    """As Llama has it."""
    y = x.to(torch.float32)
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
    return w * y.to(x.dtype)


def test_layer_norm_and_its_sum() -> None:
    norm = lambda m, x: F.layer_norm(x, (8,), m.norm, m.shift, 1e-3)  # noqa: E731
    assert made(norm, X) == {"layer_norm": 1}
    assert made(lambda m, x: F.layer_norm(x, (8,)), X) == {"layer_norm": 1}
    postnorm = lambda m, x: norm(m, x + torch.sin(x))  # noqa: E731
    assert made(postnorm, X) == {"layer_norm": 1} and left(postnorm, X).startswith("aten::sin")

    def prenorm(m: Body, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.sin(x) + x
        return norm(m, total), total

    assert made(prenorm, X) == {"add_layer_norm": 1}
    assert "another shape" in str(strop.report(rewritten(lambda m, x: norm(m, x + m.c), X)))
    assert made(lambda m, x: F.layer_norm(x, x.shape[1:]), draw(2, 4, 8)) == {}


@pytest.mark.parametrize("squares", [lambda x: x.pow(2), lambda x: x * x], ids=["pow", "product"])
def test_rms_norm_and_its_sum(squares: Callable[[Tensor], Tensor]) -> None:
    assert made(lambda m, x: rms(x, m.norm, 1e-3, squares), X) == {"rms_norm": 1}
    assert made(lambda m, x: rms(x, None, 1e-5, squares), X) == {"rms_norm": 1}
    assert made(lambda m, x: rms(x + torch.sin(x), m.norm, 1e-5, squares), X) == {"rms_norm": 1}

    def prenorm(m: Body, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.sin(x) + x
        return rms(total, m.norm, 1e-5, squares), total

    assert made(prenorm, X) == {"add_rms_norm": 1}


def test_rms_norm_of_pytorch_and_of_llama() -> None:
    assert made(lambda m, x: F.rms_norm(x, (8,), m.norm, 1e-5), X) == {"rms_norm": 1}
    assert made(lambda m, x: wide_rms(x, m.norm), X) == {"rms_norm": 1}
    model = strop.optimize_model(Body(lambda m, x: wide_rms(x, m.norm)).bfloat16().eval())
    model(X.bfloat16())
    assert strop.report(model).replaced("rms_norm") == 1, str(strop.report(model))


def test_what_is_no_rms_norm() -> None:
    assert made(lambda m, x: rms(x, m.norm, 1e-3, lambda x: x.pow(4)), X) == {}
    assert made(lambda m, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3), X) == {}
    assert made(lambda m, x: x * torch.rsqrt((x + 1).pow(2).mean(-1, keepdim=True) + 1e-3), X) == {}


# ---- Rotary, embeddings, pooling ------------------------------------------------------------------------------------

COS, SIN = draw(5, 8), draw(5, 8) / 2


def by_slices(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)


def by_chunks(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


@pytest.mark.parametrize("half", [by_slices, by_chunks])
def test_rotary(half: Callable[[Tensor], Tensor]) -> None:
    cos, sin = COS.repeat(3, 1, 1), SIN.repeat(3, 1, 1)
    assert made(lambda m, x, c, s: x * c + half(x) * s, X, cos, sin) == {"rotary": 1}
    assert made(lambda m, x, c, s: (half(x) * s) + (c * x), X, cos, sin) == {"rotary": 1}
    assert made(lambda m, x, c, s: x * c - half(x) * s, X, cos, sin) == {}
    assert made(lambda m, x, c, s: x * c + half(x + 1) * s, X, cos, sin) == {}


@pytest.mark.parametrize("half", [by_slices, by_chunks])
def test_rotary_in_float32_of_halves(half: Callable[[Tensor], Tensor]) -> None:
    """Computed in float32 and rounded once, as ModernBERT and Qwen have it; the operator rounds once as well."""
    x, cos, sin = (t.bfloat16() for t in (X, COS.repeat(3, 1, 1), SIN.repeat(3, 1, 1)))
    wide = lambda m, x, c, s: (x.float() * c + half(x.float()) * s).to(x.dtype)  # noqa: E731
    assert made(wide, x, cos, sin) == {"rotary": 1}
    assert made(lambda m, x, c, s: x.float() * c + half(x.float()) * s, x, cos, sin) == {}
    double = lambda m, x, c, s: (x.double() * c + half(x.double()) * s).to(x.dtype)  # noqa: E731
    assert made(double, x, cos, sin) == {}
    assert "float32" in left(double, x, cos, sin)


def test_rotary_of_unequal_parts_is_left() -> None:
    def turned(m: Body, x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return x * c + torch.cat((-x[..., 6:], x[..., :6]), -1) * s

    assert made(turned, X, COS.repeat(3, 1, 1), SIN.repeat(3, 1, 1)) == {}
    assert "two equal halves" in left(turned, X, COS.repeat(3, 1, 1), SIN.repeat(3, 1, 1))


def test_embeddings() -> None:
    ids, others = torch.randint(0, 11, (3, 5), generator=generator("ids")), torch.arange(5)[None]
    e = F.embedding
    norm = lambda m, x: F.layer_norm(x, (8,), m.norm, m.shift, 1e-3)  # noqa: E731
    assert made(lambda m, i, j: norm(m, e(i, m.table)), ids, others) == {"embed_norm": 1}
    assert made(lambda m, i, j: norm(m, e(i, m.table, 1) + e(j, m.table2)), ids, others) == {"embed_norm": 1}
    three = lambda m, i, j: norm(m, e(j, m.table) + (e(i, m.table) + e(i, m.table2)))  # noqa: E731
    assert made(three, ids, others) == {"embed_norm": 1}
    assert made(lambda m, i, j: norm(m, e(i, m.table) * 2), ids, others) == {"layer_norm": 1}


POOLED: dict[str, Callable[..., Tensor]] = {
    "sentence-transformers": lambda m, x, k: (lambda w: torch.sum(x * w, 1) / torch.clamp(w.sum(1), min=1e-9))(
        k.unsqueeze(-1).expand(x.size()).to(x.dtype)
    ),
    "model cards": lambda m, x, k: (lambda w: torch.sum(x * w, 1) / torch.clamp(w.sum(1), min=1e-9))(
        k.unsqueeze(-1).expand(x.size()).float()
    ),
    "not expanded": lambda m, x, k: (lambda w: (x * w).sum(1) / w.sum(1).clamp(min=1e-6))(k.unsqueeze(-1).float()),
    "float first": lambda m, x, k: (lambda w: (x * w).sum(1) / w.sum(1).clamp_min(1e-6))(k.float()[..., None]),
}


@pytest.mark.parametrize("spelling", POOLED)
def test_mean_pooling(spelling: str) -> None:
    mask = (torch.rand((3, 5), generator=generator("mask")) < 0.6).long()
    mask[1] = 0
    assert made(POOLED[spelling], X, mask) == {"mean_pool": 1}
    assert made(lambda m, x, k: POOLED[spelling](m, x, k) + x.mean(1), X, mask)["mean_pool"] == 1
    assert made(lambda m, x, k: (x * k.unsqueeze(-1).float()).sum(1), X, mask) == {}


# ---- The engine, and patterns of users ------------------------------------------------------------------------------


@pytest.fixture
def registered() -> Iterator[list[Any]]:
    rules: list[Any] = []
    yield rules
    for rule in rules:
        rule.remove()


def softplus_norm(x: Tensor, w: Tensor, slope: float):
    return F.leaky_relu(x * w, slope)


def test_replace_pattern_gets_values_and_reaches_optimized_models(registered: list[Any]) -> None:
    seen: list[float] = []

    def replacement(x, w, slope):
        seen.append(slope)
        return torch.where(x * w > 0, x * w, x * w * slope)

    body = lambda m, x: F.leaky_relu(x * m.c, 0.2) + F.leaky_relu(m.norm * x, 0.3)  # noqa: E731
    model, plain = strop.optimize_model(Body(body).eval()), Body(body).eval()
    model(X)
    assert "leaky_relu" in str(strop.report(model))
    registered.append(strop.replace_pattern(softplus_norm, replacement))
    torch.testing.assert_close(model(X), plain(X))
    assert sorted(seen) == [0.2, 0.3]
    current = strop.report(model).graphs[-1]
    assert "aten::leaky_relu" not in [line.operation for line in current.left]
    registered.pop().remove()
    model(X)
    assert "aten::leaky_relu" in [line.operation for line in strop.report(model).graphs[0].left]


def test_users_come_first_and_may_refuse(registered: list[Any]) -> None:
    def gelu(x: Tensor):
        return F.gelu(x)

    registered.append(strop.replace_pattern(gelu, lambda x: F.gelu(x), where=lambda match: "not today", name="mine"))
    model = strop.optimize_model(Body(lambda m, x: F.gelu(x * 2)).eval())
    model(X)
    assert "mine: not today" in str(strop.report(model))


def test_a_wrong_replacement_is_not_used(registered: list[Any]) -> None:
    """The rewritten graph is compared with the model before it is trusted."""

    def sine(x: Tensor):
        return torch.sin(x)

    registered.append(strop.replace_pattern(sine, lambda x: torch.cos(x)))
    model = strop.optimize_model(Body(lambda m, x: torch.sin(x)).eval())
    torch.testing.assert_close(model(X), torch.sin(X))
    assert "nothing was replaced" in str(strop.report(model))


def test_a_replacement_of_another_kind_is_refused(registered: list[Any]) -> None:
    def sine(x: Tensor):
        return torch.sin(x)

    registered.append(strop.replace_pattern(sine, lambda x: torch.sin(x).double()))
    model = strop.optimize_model(Body(lambda m, x: torch.sin(x)).eval())
    torch.testing.assert_close(model(X), torch.sin(X))
    assert "torch.float64" in str(strop.report(model))


def test_bad_patterns_are_errors() -> None:
    with pytest.raises(PatternError, match="computes nothing"):
        Pattern(lambda x: x)
    with pytest.raises(PatternError, match="must return"):
        Pattern(lambda x: 3)
