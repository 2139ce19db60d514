"""What tools/gpu_check runs as its stress: everything at once, for a while, every result compared bit by bit.

Four threads call all nine functions on streams of their own while two captured graphs of each fused function replay on
others; shapes, dtypes and the order are drawn from one printed seed. A call that waits for another's blocks for ever
would hang: tools/gpu_check gives up after its timeout.

    python tests/support/gpu_stress.py [SECONDS]
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.cases import FLOATS, SEED, Case, generator, kl_case, policy_case  # noqa: E402
from support.functions import FUSED, NINE, Function, same  # noqa: E402
from support.reference import Result  # noqa: E402


def draw(fn: Function, rng: random.Random, key: object) -> Case:
    g = generator("stress", key)
    dtype = rng.choice(FLOATS)
    if fn.is_policy:
        tokens = int(30_000 ** rng.random())
        return policy_case(fn.family, rng.randint(1, max(1, 200_000 // tokens)), tokens, g, dtype=dtype, device="cuda")
    vocab = int(200_000 ** rng.random())
    return kl_case((rng.randint(1, max(1, min(500, 600_000 // vocab))), vocab), g, dtype=dtype, device="cuda")


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    print(f"STROP_TEST_SEED={SEED}, {torch.cuda.get_device_name()}")
    rng = random.Random(SEED)
    jobs: list[tuple[Function, Case, Result]] = []
    for i in range(60):
        fn = NINE[i % len(NINE)]
        case = draw(fn, rng, i)
        jobs.append((fn, case, fn(case)))
    torch.cuda.synchronize()

    graphs = []
    for i, fn in enumerate(FUSED * 2):
        case = draw(fn, rng, ("graph", i))
        expected = fn(case)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = [fn(case) for _ in range(3)]
        # With the case: a graph reads its inputs where they were.
        graphs.append((fn, graph, results, expected, torch.cuda.Stream(), case))
    torch.cuda.synchronize()

    failures: list[str] = []
    calls = replays = 0
    lock = threading.Lock()
    end = time.monotonic() + seconds

    def caller(k: int) -> None:
        nonlocal calls
        own = random.Random(f"{SEED}:{k}")
        streams = [torch.cuda.Stream() for _ in range(2)]
        try:
            while time.monotonic() < end and not failures:
                pending = []
                for _ in range(20):
                    job = own.choice(jobs)
                    with torch.cuda.stream(own.choice(streams)):
                        pending.append((job, job[0](job[1])))
                for stream in streams:
                    stream.synchronize()
                with torch.cuda.stream(streams[0]):
                    for (fn, case, alone), result in pending:
                        if not same(result, alone):
                            failures.append(f"thread {k}: {fn} {tuple(case.leaf.shape)} {case.leaf.dtype} differs")
                with lock:
                    calls += len(pending)
        except Exception as error:  # noqa: BLE001
            failures.append(f"thread {k}: {error!r}")

    def replayer() -> None:
        nonlocal replays
        try:
            while time.monotonic() < end and not failures:
                for _, _, results, _, stream, _ in graphs:
                    with torch.cuda.stream(stream):
                        for r in results:
                            r.loss.fill_(torch.nan)
                            r.grad.fill_(torch.nan)
                for _ in range(5):
                    for _, graph, _, _, stream, _ in graphs:
                        with torch.cuda.stream(stream):
                            graph.replay()
                        replays += 1
                for fn, _, results, expected, stream, _ in graphs:
                    stream.synchronize()
                    with torch.cuda.stream(stream):
                        if not all(same(r, expected) for r in results):
                            failures.append(f"graph of {fn} differs")
        except Exception as error:  # noqa: BLE001
            failures.append(f"graphs: {error!r}")

    threads = [threading.Thread(target=caller, args=(k,)) for k in range(4)] + [threading.Thread(target=replayer)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    torch.cuda.synchronize()
    for failure in failures[:10]:
        print(failure)
    print(f"{calls} calls and {replays} replays, {len(failures)} failures")
    return 1 if failures or calls == 0 or replays == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
