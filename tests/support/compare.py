"""How far a result may be from the oracle.

Two bars. The first follows from the arithmetic: a first-order bound on the rounding of each step of the formula in
float32, to which the rounding of the output is added. The second is what plain PyTorch attains: an error of at most
twice that of the same formula in eager float32, both against float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from support.cases import Case, KlCase, PolicyCase
from support.reference import Result, advantages_2d, evaluate

# Unit roundoff: the largest relative error of one rounding to nearest.
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Half the spacing of subnormals (float16), or everything below the smallest normal (the others, where hardware may
# flush to zero).
TINY = {torch.float32: 2.0**-126, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-126}
U = ROUNDOFF[torch.float32]


def _summation(n: int) -> float:
    """Roundings that a term meets on its way through a sum of n.

    A tree has log2(n) levels; sixteen more stand for the short sequential sums at its leaves.
    """
    return 16 + math.log2(max(n, 2))


@dataclass(frozen=True)
class Bounds:
    loss: torch.Tensor  # on the loss's error
    grad: torch.Tensor  # on each gradient's error, before it is rounded to its dtype
    magnitude: torch.Tensor  # sum of the absolute values that make the loss
    rounding: torch.Tensor  # one rounding of what each gradient is made of, which no float32 arithmetic escapes
    undecided: torch.Tensor  # gradients that float32 may clip otherwise than float64, rightly


def _policy_bounds(case: PolicyCase) -> Bounds:
    valid = case.valid
    zero = torch.zeros((), dtype=torch.float64, device=valid.device)
    inputs = (case.policy, case.old, advantages_2d(case.advantages))
    policy, old, adv = (torch.where(valid, t.double(), zero) for t in inputs)
    low, high = 1 - case.eps, 1 + (case.eps if case.eps_high is None else case.eps_high)
    x = policy - old
    r = torch.exp(x)
    unclipped, clipped = r * adv, torch.clamp(r, low, high) * adv
    # x is rounded once, and once more by exp's base change, which makes 2 |x| roundings of r; exp itself and the
    # product add a few (4).
    exp_error = unclipped.abs() * (2 * x.abs() + 4)
    error = torch.where(unclipped <= clipped, exp_error, 2 * clipped.abs())
    size = torch.minimum(unclipped, clipped).abs()
    grad_error = torch.where(unclipped <= clipped, exp_error, zero)
    # Where r is within its own rounding error of a clip border, float32 may decide otherwise than float64.
    near = torch.minimum((r - low).abs(), (r - high).abs()) <= 2 * U * (2 * x.abs() + 4) * (r + 1)
    grad_error = grad_error + torch.where(near, unclipped.abs() / U, zero)
    if case.beta != 0:
        d = torch.where(valid, case.ref.double(), zero) - policy
        e = torch.exp(d)
        # exp as above; exp(d) - d - 1 cancels, so each of its terms counts with its own size.
        error = error + abs(case.beta) * (e * (2 * d.abs() + 5) + 2 * d.abs() + 2)
        size = size + abs(case.beta) * (e - d - 1).abs()
        grad_error = grad_error + abs(case.beta) * (e * (2 * d.abs() + 5) + 2)
    m = valid.double()
    if case.family == "grpo":
        weight = m / m.sum(1, keepdim=True).clamp(min=1) / max(len(m), 1)
    else:
        weight = m / m.sum().clamp(min=1)
    magnitude = (weight * size).sum()
    once = unclipped.abs() + (abs(case.beta) * (e + 1) if case.beta != 0 else 0)
    loss = U * ((weight * error).sum() + _summation(m.numel()) * magnitude)
    return Bounds(loss, U * weight * (grad_error + 3 * size), magnitude, U * weight * once, near & valid)


def _kl_bounds(case: KlCase) -> Bounds:
    rows = case.valid.unsqueeze(-1)
    zero = torch.zeros((), dtype=torch.float64, device=rows.device)
    x = torch.where(rows, case.student.double(), zero)
    y = torch.where(rows, case.teacher.double(), zero)
    log_p, log_q = torch.log_softmax(x, -1), torch.log_softmax(y, -1)
    p = torch.exp(log_p)
    live = p > 0
    difference = torch.where(live, log_p - log_q, zero)
    from_max = torch.where(live, (x - x.amax(-1, keepdim=True)).abs(), zero)
    shifts = torch.where(live, (y - y.amax(-1, keepdim=True)).abs() + (x - y).abs(), zero) + from_max
    kl = (p * difference).sum(-1, keepdim=True)
    terms = _summation(x.shape[-1])
    # p: the exponent is rounded twice (the shift by the maximum; the logarithm of the sum, or the base change to
    # exp2), which exp turns into 2 |x - max| roundings; a few for exp (6); the sum that p is divided by.
    # log p - log q: each logarithm is a shifted logit less the logarithm of a sum.
    p_error = 2 * from_max + 6 + terms
    log_error = shifts + 8 + terms
    row_error = (p * (p_error * difference.abs() + log_error)).sum(-1, keepdim=True)
    size = (p * difference.abs()).sum(-1, keepdim=True)
    weight = case.valid.double() / case.valid.double().sum().clamp(min=1)
    loss = U * ((weight * row_error.squeeze(-1)).sum() + _summation(rows.numel()) * (weight * size.squeeze(-1)).sum())
    centred = (difference - kl).abs()
    grad = U * weight.unsqueeze(-1) * p * ((p_error + 3) * centred + log_error + row_error)
    # Where p underflows float32, or is about to, it may count as 0: then so does all that it is a factor of.
    underflow = torch.where(p < 4 * TINY[torch.float32], weight.unsqueeze(-1) * p * centred, zero)
    grad = grad + underflow
    # 1: the rounding of a sum of exponentials, the largest of which is 1, whose logarithm is taken.
    # from_max: that of the exponent, which is a relative error of p.
    parts = torch.where(live, log_p.abs() + log_q.abs(), zero) + kl.abs() + 1 + from_max * centred
    once = U * weight.unsqueeze(-1) * p * parts + underflow
    decided = torch.zeros_like(x, dtype=torch.bool)
    # A row's divergence is a difference of logarithms of sums, each rounded at a size of about 1 even where it is 0.
    return Bounds(loss, grad, (weight * (size.squeeze(-1) + 0.5)).sum(), once, decided)


def bounds(case: Case) -> Bounds:
    return _policy_bounds(case) if isinstance(case, PolicyCase) else _kl_bounds(case)


def check_form(case: Case, result: Result) -> None:
    """What every result looks like, whatever its values."""
    assert result.loss.shape == () and result.loss.dtype == torch.float32
    assert result.loss.device == case.leaf.device
    if result.grad is not None:
        assert result.grad.dtype == case.leaf.dtype and result.grad.shape == case.leaf.shape
        assert result.grad.device == case.leaf.device


class Expected:
    """Oracle, bounds and eager results of a case whose valid tokens are finite, computed once for several checks."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.oracle = evaluate(case, torch.float64)
        self.eager = evaluate(case, torch.float32)
        self.bounds = bounds(case)

    def check(self, result: Result, repeated: bool = False) -> None:
        """Asserts both bars. `repeated`: many tokens hold the same values."""
        check_form(self.case, result)
        self._check_loss(result.loss.double(), repeated)
        if result.grad is not None:
            self._check_grad(result.grad)

    def _check_loss(self, loss: torch.Tensor, repeated: bool) -> None:
        expected = self.oracle.loss
        error = (loss - expected).abs()
        bound = self.bounds.loss + TINY[torch.float32]
        assert error <= bound, (
            f"loss {loss.item():.9g}, oracle {expected.item():.9g}: off by {error.item():.3g}, bound {bound.item():.3g}"
        )
        if repeated:  # one token's error, many times over: nothing averages out, and eager is lucky or not as a whole
            return
        # One sum has one error, which may be 0 by luck: four roundings of the whole are always granted.
        allowed = 2 * (self.eager.loss.double() - expected).abs() + 4 * U * self.bounds.magnitude + TINY[torch.float32]
        assert error <= allowed, f"loss is off by {error.item():.3g}; twice eager's error is {allowed.item():.3g}"

    def _check_grad(self, grad: torch.Tensor) -> None:
        assert (grad[~self.case.valid] == 0).all(), "a masked token has a gradient"
        if grad.numel() == 0:
            return
        expected = self.oracle.grad
        output = ROUNDOFF[grad.dtype] * expected.abs() + TINY[grad.dtype]
        error = (grad.double() - expected).abs()
        bound = self.bounds.grad + output
        bad = ~(error <= bound)  # NaN is bad
        if bad.any():
            i = tuple(bad.nonzero()[0].tolist())
            raise AssertionError(
                f"{int(bad.sum())} of {bad.numel()} gradients are off; the first, {i}: {grad[i].item():.9g}, "
                f"oracle {expected[i].item():.9g}, bound {bound[i].item():.3g}"
            )
        # In units of what nobody escapes: the rounding of the output, and one of what it is made of. Unweighted by
        # size, so that many tokens speak and no outlier decides. Over few tokens eager may be lucky: four units more
        # are granted for the worst of them, and for the mean over n what is left of two.
        counted = self.case.valid.reshape(self.case.valid.shape + (1,) * (grad.dim() - self.case.valid.dim()))
        counted = counted.expand(grad.shape) & ~self.bounds.undecided
        if not counted.any():
            return
        unit = (output + self.bounds.rounding)[counted]
        ours = error[counted] / unit
        theirs = (self.eager.grad.double() - expected).abs()[counted] / unit
        assert ours.max() <= 2 * theirs.max() + 4, (
            f"largest gradient error {ours.max().item():.3g} roundings, eager's {theirs.max().item():.3g}"
        )
        rms = [t.square().mean().sqrt().item() for t in (ours, theirs)]
        luck = 2 / math.sqrt(int(self.case.valid.sum()))
        assert rms[0] <= 2 * rms[1] + luck, f"rms gradient error {rms[0]:.3g} roundings, eager's {rms[1]:.3g}"


def check(case: Case, result: Result, repeated: bool = False) -> None:
    Expected(case).check(result, repeated)
