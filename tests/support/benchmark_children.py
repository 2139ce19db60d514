"""What the processes do that test_benchmarks.py starts: they send what they are told to, or die."""

from __future__ import annotations

import json
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def measure(job: dict, deadly: list[str], connection: Connection) -> None:
    for case in job["cases"]:
        connection.send(("begin", case))
        if case["dtype"] in deadly:
            os._exit(9)
        connection.send(("rows", [f"{job['kernel']} {case['dtype']} {os.getpid()}"]))
        connection.send(("done", case))


def die_at_once(job: dict, settings: object, connection: Connection) -> None:
    raise RuntimeError("no such machine")


def answer(value: int, connection: Connection) -> None:
    connection.send(("answer", value + 1))


def compile_only(job: dict, settings: Any) -> None:
    """Writes what it was told into the folder that should get Triton's binaries."""
    (case,) = job["cases"]
    found = {"job": job, "share": settings.memory_share, "inductor": str(settings.inductor_cache)}
    found["there"] = settings.inductor_cache.is_dir()
    Path(settings.triton_cache, f"{job['kernel']}-{job['shape'][0]}-{case['dtype']}").write_text(json.dumps(found))


def leave_a_mark(folder: str, name: str, seconds: float) -> None:
    """Writes when it ran, for whoever wants to know what ran together."""
    start = time.time()
    time.sleep(seconds)
    Path(folder, name).write_text(f"{start} {time.time()}")
