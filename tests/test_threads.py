"""Contract: safe from several threads at once (with a stream each on CUDA): every result has the bits it has alone."""

from __future__ import annotations

import threading

import torch
from support.cases import generator, kl_case, policy_case
from support.functions import NINE, Function, same
from support.reference import Result


def work(device: str) -> list[tuple[Function, object, Result]]:
    """Calls of all nine functions in several sizes, with what each gives alone."""
    jobs = []
    for i, fn in enumerate(NINE):
        g = generator("threads", i)
        for rows, columns in ((3, 65), (33, 1031)):
            if fn.is_policy:
                case = policy_case(fn.family, rows, columns, g, dtype=torch.bfloat16, device=device)
            else:
                case = kl_case((rows, columns), g, dtype=torch.bfloat16, device=device)
            jobs.append((fn, case, fn(case)))
    return jobs


def test_threads_at_once(device: str) -> None:
    jobs = work(device)
    if device == "cuda":
        torch.cuda.synchronize()
    failures: list[str] = []
    start = threading.Barrier(8)

    def run(k: int) -> None:
        try:
            stream = torch.cuda.Stream() if device == "cuda" else None
            start.wait()
            with torch.cuda.stream(stream):
                for i in range(3 * len(jobs)):
                    fn, case, alone = jobs[(i * (2 * k + 1) + k) % len(jobs)]
                    result = fn(case)
                    if stream is not None:
                        stream.synchronize()
                    if not same(result, alone):
                        failures.append(f"thread {k}: {fn} differs")
        except Exception as error:  # noqa: BLE001
            failures.append(f"thread {k}: {error!r}")

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[:3]


def test_other_threads_run_meanwhile() -> None:
    """The GIL is released while the CPU computes: a Python thread makes progress during one long call."""
    import strop

    case = kl_case((64, 128_000), generator("gil"), mask="all")
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.0005):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    most = 0  # ticks within one call; where the GIL is kept there is at most one, as the call returns
    try:
        for _ in range(20):
            before = ticks
            strop.reverse_kl(*case.args())
            most = max(most, ticks - before)
    finally:
        stop.set()
        thread.join()
    assert most > 3, f"{most} ticks during a call"


def test_results_survive_a_fork() -> None:
    """A forked worker (a DataLoader's) can call the library after its parent has: no lock is left held."""
    import os
    import signal

    import strop

    case = policy_case("grpo", 4, 257, generator("fork"))
    expected = strop.grpo_loss_fwd(*case.args())
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # libgomp's own threads do not survive a fork
        ok = torch.equal(strop.grpo_loss_fwd(*case.args()), expected)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
