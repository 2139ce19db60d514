"""Contract: any B, T, V: odd, prime, 1, above 65,535 rows, B T and N C V above 2^31. No per-shape state."""

from __future__ import annotations

import math

import pytest
import torch
from support.cases import KlCase, PolicyCase, generator, kl_case, policy_case
from support.compare import Expected, check
from support.functions import FUSED, NINE, Function
from support.reference import Result

POLICY = [f for f in NINE if f.is_policy]

POLICY_SHAPES = [
    (1, 1),  # one token
    (1, 7),  # less than a vector
    (7, 1),  # one token a sequence
    (3, 31),
    (2, 63),
    (1, 64),
    (1, 65),  # around a vector's width
    (13, 127),
    (4, 1024),  # a power of two: no tail
    (131, 257),  # primes
    (5, 8191),
    (2, 70_001),  # one long sequence for several blocks
    (70_003, 3),  # more rows than a grid's y dimension has
    (70_000, 1),
]
KL_SHAPES = [
    (1, 1, 1),
    (1, 1, 2),
    (3, 5, 7),
    (1, 1, 31),
    (2, 1, 33),
    (5, 2, 129),
    (2, 3, 1021),
    (2, 2, 4096),
    (1, 3, 32_003),
    (1, 2, 50_257),
    (1, 1, 248_320),  # the vocabulary of the published figures
    (1, 1, 300_007),  # a row longer than one block's shared memory keeps
    (70_003, 3),
    (70_000, 1, 5),
    (2, 35_001, 2),
    (13, 257),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", POLICY_SHAPES, ids=str)
@pytest.mark.parametrize("family", ["grpo", "bnpo"])
def test_policy_shapes(family: str, shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    mask = "all" if math.prod(shape) < 4 else "random"
    case = policy_case(family, *shape, generator("shape", shape), dtype=dtype, mask=mask, device=device)
    expected = Expected(case)
    for fn in NINE:
        if fn.family == family:
            expected.check(fn(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", KL_SHAPES, ids=str)
def test_kl_shapes(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    mask = "all" if math.prod(shape[:-1]) < 4 else "random"
    case = kl_case(shape, generator("shape", shape), dtype=dtype, mask=mask, device=device)
    expected = Expected(case)
    for fn in NINE:
        if not fn.is_policy:
            expected.check(fn(case))


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_shapes_in_any_order(fn: Function, device: str) -> None:
    """A call leaves nothing behind that a call with another shape could trip over."""
    sizes = [(1, 1), (33, 65), (2, 3), (17, 1000), (1, 1), (2, 3)]
    cases = []
    for i, (rows, columns) in enumerate(sizes):
        g = generator("order", i)
        if fn.is_policy:
            cases.append(policy_case(fn.family, rows, columns, g, mask="all", device=device))
        else:
            cases.append(kl_case((rows, columns), g, mask="all", device=device))
    first = [fn(c) for c in cases]
    again = [fn(c) for c in reversed(cases)][::-1]
    for case, a, b in zip(cases, first, again, strict=True):
        check(case, a)
        assert torch.equal(a.loss, b.loss) and (a.grad is None or torch.equal(a.grad, b.grad))


# ---- more than 2^31 elements -------------------------------------------------------------------------------------


def require_memory(device: str, gigabytes: float, request: pytest.FixtureRequest) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 1e9
        if free < gigabytes:
            pytest.skip(f"needs {gigabytes} GB of GPU memory, {free:.0f} are free")
    elif not request.config.getoption("--large"):
        pytest.skip("on the CPU only with --large")


def prefill_with_nan(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Leaves NaN in the block that the allocator hands out next for this size, so that a gap in writing shows."""
    if device == "cuda":
        del_me = torch.full(shape, torch.nan, dtype=dtype, device=device)
        del del_me


@pytest.mark.large
@pytest.mark.parametrize("shape", [(2, 2**30 + 3), (2**22 + 1, 513)], ids=["long", "tall"])
@pytest.mark.parametrize("fn", [f for f in FUSED if f.is_policy], ids=str)
def test_policy_above_two_to_31(fn: Function, shape: tuple[int, int], cuda: str) -> None:
    """Every token has a value of its own, so that an offset that wraps reads a wrong one; checked in chunks."""
    import strop

    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    batch, tokens = shape
    assert batch * tokens > 2**31
    g = torch.Generator(cuda).manual_seed(11)
    policy = torch.empty(shape, dtype=torch.float16, device=cuda)
    policy.view(-1).normal_(generator=g).mul_(0.3)
    old = torch.zeros(1, 1, dtype=torch.float16, device=cuda).expand(shape)
    advantages = torch.randn(batch, generator=g, device=cuda)
    mask = torch.empty(shape, dtype=torch.bool, device=cuda)
    mask.view(-1).bernoulli_(0.7, generator=g)
    torch.cuda.empty_cache()
    prefill_with_nan(shape, torch.float16, cuda)
    # Scaled advantages keep fp16 gradients in their normal range although the weight is about 1e-9.
    scale = 2.0**20 if fn.family == "grpo" and batch < 10 else 2.0**28
    advantages = (advantages * scale).float()
    loss, grad = fn.function(policy, old, None, advantages, mask, beta=0.0)
    forward = getattr(strop, f"{fn.family}_loss_fwd")(policy, old, None, advantages, mask, beta=0.0)
    counts = torch.empty(batch, dtype=torch.float64, device=cuda)
    sums = torch.empty(batch, dtype=torch.float64, device=cuda)
    sizes = torch.zeros((), dtype=torch.float64, device=cuda)
    rows_at_once = max(1, 2**26 // tokens)
    columns_at_once = min(tokens, 2**26)

    def chunks():
        for b in range(0, batch, rows_at_once):
            for t in range(0, tokens, columns_at_once):
                yield slice(b, b + rows_at_once), slice(t, t + columns_at_once)

    counts.zero_()
    sums.zero_()
    for rows, columns in chunks():
        r = torch.exp(policy[rows, columns].float())
        a, m = advantages[rows, None], mask[rows, columns]
        value = torch.where(m, -torch.minimum(r * a, r.clamp(0.8, 1.2) * a), 0)
        counts[rows] += m.sum(1)
        sums[rows] += value.double().sum(1)
        sizes += value.double().abs().sum()
    if fn.family == "grpo":
        expected = (sums / counts.clamp(min=1)).mean()
        weights = 1 / (counts.clamp(min=1) * batch)
    else:
        expected = sums.sum() / counts.sum()
        weights = torch.full_like(counts, 1 / counts.sum().item())
    magnitude = sizes / counts.sum()
    assert (loss.double() - expected).abs() <= 200 * 2.0**-24 * magnitude
    assert (forward.double() - expected).abs() <= 200 * 2.0**-24 * magnitude
    for rows, columns in chunks():
        r = torch.exp(policy[rows, columns].float())
        a, m, w = advantages[rows, None], mask[rows, columns], weights[rows, None].float()
        passes = m & (r * a <= r.clamp(0.8, 1.2) * a)
        want = torch.where(passes, -r * a * w, 0)
        error = (grad[rows, columns].float() - want).abs()
        # One rounding to fp16 (or half its subnormal spacing) and a few of fp32; r within an ulp of a border may go
        # either way.
        near = ((r - 0.8).abs() < 1e-6) | ((r - 1.2).abs() < 1e-6)
        assert (near | (error <= want.abs() * (2.0**-11 + 2.0**-19) + 2.0**-24)).all()


@pytest.mark.large
@pytest.mark.parametrize("shape", [(9000, 248_320), (70_001, 32_003)], ids=str)
def test_kl_above_two_to_31(shape: tuple[int, int], cuda: str) -> None:
    import strop

    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    rows, vocab = shape
    assert rows * vocab > 2**31
    g = torch.Generator(cuda).manual_seed(12)
    student = torch.empty(shape, dtype=torch.bfloat16, device=cuda).normal_(generator=g)
    teacher = torch.randn((1, vocab), generator=g, device=cuda).bfloat16().expand(shape)
    mask = torch.rand(rows, generator=g, device=cuda) < 0.9
    torch.cuda.empty_cache()
    prefill_with_nan(shape, torch.bfloat16, cuda)
    loss, grad = strop.reverse_kl(student, teacher, mask)
    forward = strop.reverse_kl_fwd(student, teacher, mask)
    n = mask.sum().double()
    log_q = torch.log_softmax(teacher[0].float(), -1)
    total = torch.zeros((), dtype=torch.float64, device=cuda)
    step = max(1, 2**26 // vocab)
    for i in range(0, rows, step):
        log_p = torch.log_softmax(student[i : i + step].float(), -1)
        p, difference = log_p.exp(), log_p - log_q
        kl = (p * difference).sum(-1, keepdim=True)
        m = mask[i : i + step, None]
        total += torch.where(m, kl, 0).double().sum()
        want = torch.where(m, p * (difference - kl) / n.float(), 0)
        error = (grad[i : i + step].float() - want).abs()
        assert (error <= want.abs() * 2.0**-8 + p / n.float() * 1e-5).all()
    assert (loss.double() - total / n).abs() <= 1e-5 * total / n
    assert (forward.double() - total / n).abs() <= 1e-5 * total / n


@pytest.mark.large
def test_vocabulary_above_two_to_31(cuda: str) -> None:
    """One row whose last elements carry nearly all the mass, so that the closed form knows the answer."""
    import strop

    vocab = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    student = torch.zeros((1, vocab), dtype=torch.bfloat16, device=cuda)
    teacher = torch.zeros((1, 1), dtype=torch.bfloat16, device=cuda).expand(1, vocab)
    student[0, -3:] = 30.0
    mask = torch.ones(1, dtype=torch.bool, device=cuda)
    loss, grad = strop.reverse_kl(student, teacher, mask)
    forward = strop.reverse_kl_fwd(student, teacher, mask)
    mass = 3 * math.exp(30) + (vocab - 3)
    p, rest = math.exp(30) / mass, 1 / mass
    kl = 3 * p * (30 - math.log(mass)) + (vocab - 3) * rest * -math.log(mass) + math.log(vocab)
    assert loss.item() == pytest.approx(kl, rel=1e-4) and forward.item() == pytest.approx(kl, rel=1e-4)
    high = p * (30 - math.log(mass) + math.log(vocab) - kl)
    low = rest * (-math.log(mass) + math.log(vocab) - kl)
    # high is a small difference of large numbers, low is not.
    assert (grad[0, -3:].double() - high).abs().max() <= 2.0**-8 * abs(high) + 1e-5 * kl
    for part in (grad[0, :1000], grad[0, 2**31 - 500 : 2**31 + 2], grad[0, vocab // 2 : vocab // 2 + 1000]):
        assert ((part.double() - low).abs() <= abs(low) * 2.0**-7).all()


@pytest.mark.large
@pytest.mark.parametrize("fn", [f for f in POLICY if f.variant == "fwd"], ids=str)
def test_policy_above_two_to_31_on_the_cpu(fn: Function, request: pytest.FixtureRequest) -> None:
    """Zero pages cost no memory: only the last sequence has valid tokens, beyond the 2^31st element."""
    require_memory("cpu", 8, request)
    shape = (2**16 + 1, 2**15 + 3)
    assert (shape[0] - 1) * shape[1] > 2**31
    policy = torch.zeros(shape, dtype=torch.float16)
    mask = torch.zeros(shape, dtype=torch.bool)
    policy[-1, -5:] = torch.tensor([0.1, -0.1, 0.05, 0.0, 0.15], dtype=torch.float16)
    mask[-1, -5:] = True
    old = torch.zeros(1, 1).expand(shape)
    advantages = torch.zeros(shape[0])
    advantages[-1] = 1.0
    small = PolicyCase(fn.family, policy[-1:], old[-1:], None, advantages[-1:], mask[-1:], mask[-1:], beta=0.0)
    expected = fn(small).loss.item() / (shape[0] if fn.family == "grpo" else 1)
    case = PolicyCase(fn.family, policy, old, None, advantages, mask, mask, beta=0.0)
    assert fn(case).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.large
def test_kl_above_two_to_31_on_the_cpu(request: pytest.FixtureRequest) -> None:
    import strop

    require_memory("cpu", 8, request)
    shape = (9001, 248_320)
    student = torch.zeros(shape, dtype=torch.bfloat16)
    teacher = torch.zeros((1, shape[1]), dtype=torch.bfloat16).expand(shape)
    student[-1] = torch.randn(shape[1], generator=generator("large"))
    mask = torch.zeros(shape[0], dtype=torch.bool)
    mask[-1] = True
    row = KlCase(student[-1:], teacher[-1:], mask[-1:], mask[-1:])
    loss = strop.reverse_kl_fwd(student, teacher, mask)
    assert loss.item() == pytest.approx(strop.reverse_kl_fwd(*row.args()).item(), rel=1e-6)
    check(row, Result(loss, None))
