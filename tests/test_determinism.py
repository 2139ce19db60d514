"""Contract: bitwise the same result from run to run; and a row's gradient does not depend on what other rows hold."""

from __future__ import annotations

import threading

import pytest
import torch
from support.cases import Case, any_case, generator, kl_case, policy_case
from support.functions import FUSED, NINE, WITH_GRADIENT, Function, bitwise_equal, same


def larger_cases(fn: Function, device: str) -> list[Case]:
    """Shapes that several threads or blocks share, where an order of arrival could show."""
    g = generator("rerun", fn.name)
    if fn.is_policy:
        shapes = [(5, 257), (64, 1031), (2, 70_001), (3001, 17)]
        return [policy_case(fn.family, b, t, g, dtype=torch.bfloat16, device=device) for b, t in shapes]
    return [kl_case(s, g, dtype=torch.bfloat16, device=device) for s in ((3, 7, 1009), (301, 130), (1, 5, 40_009))]


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_rerun_is_bitwise_the_same(fn: Function, device: str) -> None:
    for case in larger_cases(fn, device):
        first = fn(case)
        assert all(same(first, fn(case)) for _ in range(10))


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_rerun_under_load(fn: Function, device: str) -> None:
    """While another thread keeps the same cores, or another stream the same GPU, busy."""
    cases = larger_cases(fn, device)
    first = [fn(c) for c in cases]
    stop = threading.Event()

    def load() -> None:
        stream = torch.cuda.Stream() if device == "cuda" else None
        with torch.cuda.stream(stream):
            x = torch.randn(512, 512, device=device)
            while not stop.is_set():
                x = torch.tanh(x @ x)
                if stream is not None:
                    stream.synchronize()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(5):
            assert all(same(a, fn(c)) for a, c in zip(first, cases, strict=True))
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_number_of_threads_does_not_matter(fn: Function) -> None:
    threads = torch.get_num_threads()
    try:
        for case in larger_cases(fn, "cpu"):
            results = []
            for n in (1, 2, 3, 5):
                torch.set_num_threads(n)
                results.append(fn(case))
            assert all(same(results[0], r) for r in results[1:])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("mask", ["all", "random"])
@pytest.mark.parametrize("fn", WITH_GRADIENT, ids=str)
def test_other_rows_do_not_matter(fn: Function, mask: str, device: str) -> None:
    """The mask kept, so that the weights stay, every other row is replaced: the row's gradient keeps its bits."""
    case = any_case(fn.family, generator("rows", fn.name, 0), mask=mask, advantages_rank=2, device=device)
    other = any_case(fn.family, generator("rows", fn.name, 1), mask=mask, advantages_rank=2, device=device)
    before = fn(case).grad
    for row in range(len(case.leaf)):
        mixed = {}
        for name in case.TENSORS:
            if name == "mask":
                continue
            mixed[name] = getattr(other, name).clone()
            mixed[name][row] = getattr(case, name)[row]
        after = fn(case.replace(**mixed)).grad
        assert bitwise_equal(before[row], after[row]), f"row {row}"
        assert not torch.equal(before, after)


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_place_in_the_batch_does_not_matter(fn: Function, device: str) -> None:
    """A row's gradient is the same in another place of the batch."""
    if fn.is_policy:
        case: Case = policy_case(fn.family, 5, 1001, generator("place"), mask="all", advantages_rank=2, device=device)
    else:
        # On CUDA a thread's share of a row begins at an aligned address: rows that are aligned alike are summed alike.
        vocab = 1000 if device == "cuda" else 1001
        case = kl_case((3, 5, vocab), generator("place"), mask="all", dtype=torch.bfloat16, device=device)
    order = torch.arange(len(case.leaf) - 1, -1, -1, device=device)
    flipped = case.replace(**{n: getattr(case, n)[order] for n in (*case.TENSORS, "valid")})
    assert bitwise_equal(fn(case).grad[order], fn(flipped).grad)
