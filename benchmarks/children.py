"""Fresh processes: one after the other for what is timed, several at once for what is only compiled."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.context import BaseContext

WAY_OUT = 60.0  # seconds that a process has to end once it has sent everything
OVERTIME = 120.0  # and to finish what it began before the time was up


def context(start: str) -> BaseContext:
    """How processes start. "forkserver": as copies of one that has imported PyTorch and done nothing else (no CUDA),
    which saves each of them seconds; "spawn": from nothing."""
    chosen = multiprocessing.get_context(start)
    if start == "forkserver":
        chosen.set_forkserver_preload(["torch", "torch._dynamo"])
    return chosen


def messages(
    context: BaseContext, target: Callable, *arguments: object, deadline: float | None = None
) -> Iterator[tuple[str, object]]:
    """What a process sends that runs target(*arguments, connection); ("died", how) if it does not end well."""
    until = None if deadline is None else deadline + OVERTIME
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sending))
    process.start()
    sending.close()  # so that the end of the process is the end of the file
    try:
        with contextlib.suppress(EOFError):
            while receiving.poll(None if until is None else max(0.0, until - time.time())):
                yield receiving.recv()
            yield "died", f"still busy {OVERTIME:.0f} s after the time was up"
            return
        process.join(WAY_OUT)
        if process.exitcode != 0:
            yield "died", f"exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiving.close()


def ask(context: BaseContext, target: Callable, *arguments: object) -> object:
    """The one message of a process."""
    (message,) = messages(context, target, *arguments)
    if message[0] == "died":
        raise SystemExit(f"a process that ran {target.__name__} ended with {message[1]}: see above")
    return message[1]


def run_job(
    context: BaseContext,
    target: Callable,
    job: dict,
    settings: object,
    take: Callable[[str, object], None],
    deadline: float | None = None,
) -> list[str]:
    """Runs target(job, settings, connection), and again for the cases that are left where a case kills its process.

    `take` gets the messages; ("begin", case) and ("done", case) say where it is. Returns what died.
    """
    left, dead = list(job["cases"]), []
    while left:
        current = None
        for kind, what in messages(context, target, {**job, "cases": left}, settings, deadline=deadline):
            if kind == "died":
                name = f"{job['kernel']} {tuple(job['shape'])} {current or 'before its first case'}"
                dead.append(f"{name}: {what}")
                break
            if kind == "begin":
                current = what
            elif kind == "done":
                left, current = [case for case in left if case != what], None
            take(kind, what)
        else:
            break  # all done, or as much as there was time for
        if current is None:
            break  # it would only happen again
        left.remove(current)
    return dead


def run_together(
    context: BaseContext, target: Callable, jobs: list[tuple], most: int, memory: float, until: float | None
) -> Iterator[int]:
    """Runs target(*arguments) for each (bytes it needs, arguments), `most` at once and within `memory` in all.

    The largest come first. Yields how many have ended, now and again; after `until` (time.time()) it begins no more and
    ends what still runs.
    """
    waiting = sorted(jobs, key=lambda job: -job[0])
    running: dict[int, tuple] = {}  # by sentinel: process, bytes
    try:
        while waiting or running:
            for job in list(waiting):
                used = sum(need for _, need in running.values())
                if len(running) < most and (not running or used + job[0] <= memory):
                    waiting.remove(job)
                    process = context.Process(target=target, args=job[1])
                    process.start()
                    running[process.sentinel] = (process, job[0])
            ended = connection.wait(list(running), timeout=1.0)
            for sentinel in ended:
                running.pop(sentinel)[0].join()
            yield len(ended)
            if until is not None and time.time() > until:
                return
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
