"""Contract, on CUDA: the current stream of the inputs' device, one kernel launch a call, no host synchronisation, no
scratch allocation in the steady state; safe from several streams and threads at once, in CUDA-graph capture, and when
two captured graphs replay at once."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Case, any_case, generator, kl_case, map_tensors, policy_case
from support.functions import FUSED, NINE, Function, bitwise_equal, same
from support.reference import Result

DIRECT = [f for f in NINE if f.variant != "autograd"]
WORKSPACE = 96 * 1024  # what a call may borrow from the caching allocator while it runs
SLEEP = 200_000_000  # cycles of torch.cuda._sleep: about 0.1 s


def published_case(fn: Function, **options: Any) -> Case:
    """A case of the size that people use, several blocks wide."""
    g = generator("published", fn.name, *options.items())
    if fn.is_policy:
        return policy_case(fn.family, 32, 2048, g, device="cuda", **{"mask": "right_padding", **options})
    return kl_case((2, 16, 32_003), g, dtype=torch.bfloat16, device="cuda", **options)


# ---- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_current_stream(fn: Function, cuda: str) -> None:
    """Inputs that are written on a side stream, after a long kernel, are read only then: no other stream would wait,
    and work queued behind the call sees its results."""
    case = published_case(fn)
    expected = fn(case)
    late = map_tensors(case, torch.zeros_like, case.TENSORS)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        for name in case.TENSORS:
            getattr(late, name).copy_(getattr(case, name), non_blocking=True)
        result = fn(late)
        copied = Result(result.loss.clone(), None if result.grad is None else result.grad.clone())
        for name in case.TENSORS:  # overwritten as soon as the stream is past the call
            getattr(late, name).zero_()
    assert not stream.query(), "the test shows nothing: the stream was done before the call returned"
    stream.synchronize()
    assert same(result, expected) and same(copied, expected)


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_device_of_the_inputs(fn: Function, cuda: str) -> None:
    """The inputs' device counts, not the current one, which stays current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    case = published_case(fn)
    other = map_tensors(case, lambda t: t.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    result = fn(other)
    assert torch.cuda.current_device() == 0 and result.loss.device.index == 1
    assert bitwise_equal(result.loss.cpu(), fn(case).loss.cpu())


@pytest.mark.parametrize("fn", DIRECT, ids=str)
def test_no_host_synchronisation(fn: Function, cuda: str) -> None:
    """The call returns while a long kernel before it on the stream still runs."""
    case = published_case(fn)
    fn.raw(case)
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    begin = time.perf_counter()
    for _ in range(3):
        fn.raw(case)
    seconds = time.perf_counter() - begin
    assert not torch.cuda.current_stream().query(), f"the calls waited ({seconds:.3f} s)"
    torch.cuda.synchronize()


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_pytorch_sees_no_synchronisation(fn: Function, cuda: str) -> None:
    """The backward of *_autograd too: no .item(), no pageable copies."""
    case = published_case(fn)
    fn(case)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fn(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- one launch --------------------------------------------------------------------------------------------------


def device_events(f: Callable[[], object]) -> list[str]:
    """Names of the kernels, memsets and copies that f runs, by the profiler."""
    f()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        f()
        torch.cuda.synchronize()
    kinds = (torch.autograd.DeviceType.CUDA,)
    return [e.name for e in profile.events() if e.device_type in kinds]


def graph_nodes(graph: torch.cuda.CUDAGraph) -> int:
    """Number of nodes of a captured graph."""
    count = ctypes.c_size_t()
    driver = ctypes.CDLL("libcuda.so.1")
    error = driver.cuGraphGetNodes(ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count))
    assert error == 0, f"cuGraphGetNodes: {error}"
    return count.value


def launch_cases(fn: Function) -> list[Case]:
    """Sizes that take different paths: one block, many, all masked, unaligned, another layout, long rows."""
    cases = [
        any_case(fn.family, generator("launch", 0), small=True, device="cuda"),
        published_case(fn),
        published_case(fn, mask="none"),
        map_tensors(published_case(fn), lambda t: t.t().contiguous().t() if t.dim() == 2 else t, ("mask",)),
    ]
    if fn.is_policy:
        sizes = [(70_003, 3), (1, 1_000_003), (128, 8192)]
        options = {"dtype": torch.bfloat16, "device": "cuda"}
        cases += [policy_case(fn.family, b, t, generator("launch", b), **options) for b, t in sizes]
    else:
        shapes = [(3, 248_320), (70_003, 3), (1, 300_007)]
        cases += [kl_case(s, generator("launch", s), dtype=torch.bfloat16, device="cuda") for s in shapes]
        cases.append(kl_case((3, 100_003), generator("launch"), device="cuda"))
    return cases


@pytest.mark.parametrize("fn", DIRECT, ids=str)
def test_one_launch(fn: Function, cuda: str) -> None:
    """Exactly one kernel and nothing else on the device, whatever the size."""
    two = device_events(lambda: (torch.zeros(3, device=cuda), torch.ones(3, device=cuda)))
    assert len(two) == 2, f"the profiler sees {two} for two kernels"
    for case in launch_cases(fn):
        events = device_events(lambda case=case: fn.raw(case))
        assert len(events) == 1, (tuple(case.leaf.shape), events)


@pytest.mark.parametrize("fn", DIRECT, ids=str)
def test_one_node_in_a_graph(fn: Function, cuda: str) -> None:
    """The same seen by the driver: a captured call is one node."""
    for case in launch_cases(fn):
        fn.raw(case)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            kept = fn.raw(case)
        assert graph_nodes(graph) == 1, tuple(case.leaf.shape)
        del kept


# ---- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", DIRECT, ids=str)
def test_no_new_memory_in_the_steady_state(fn: Function, cuda: str) -> None:
    """Calls take their outputs and a small workspace from the caching allocator, and nothing from the driver."""
    case = published_case(fn)
    for _ in range(3):
        fn.raw(case)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(100):
        fn.raw(case)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    outputs = 512 + (case.leaf.numel() * case.leaf.element_size() + 512 if fn.variant == "fused" else 0)
    assert after["num_device_alloc"] == before["num_device_alloc"], "cudaMalloc was called"
    assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]
    peak = after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"]
    # While a result is dropped only after the next call returns, two are alive.
    assert peak <= 2 * outputs + WORKSPACE, (peak, outputs)
    assert torch.cuda.mem_get_info()[0] == free


@pytest.mark.parametrize("fn", DIRECT, ids=str)
def test_memory_may_be_reused_at_once(fn: Function, cuda: str) -> None:
    """Outputs and workspace come from the stream's own memory: dropped results and inputs may be overwritten by what
    is queued next, while the call still waits for its turn."""
    case = published_case(fn)
    expected = fn(case)
    torch.cuda.synchronize()
    results = []
    torch.cuda._sleep(SLEEP)
    for _ in range(50):
        scratch = map_tensors(case, torch.clone, case.TENSORS)
        results.append(fn(scratch))
        del scratch
        noise = torch.full((2**20,), float("nan"), device=cuda)
        del noise
    torch.cuda.synchronize()
    assert all(same(r, expected) for r in results)


# ---- several at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_streams_at_once(fn: Function, cuda: str) -> None:
    """Eight streams, released together, each with its own inputs, two hundred calls each."""
    g = generator("streams", fn.name)
    cases = []
    for i in range(8):
        if fn.is_policy:
            cases.append(policy_case(fn.family, 3 + 7 * i, 300 + 111 * i, g, dtype=torch.bfloat16, device=cuda))
        else:
            cases.append(kl_case((2 + i, 5003 + 1000 * i), g, dtype=torch.bfloat16, device=cuda))
    alone = [fn(c) for c in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    results: list[list[Result]] = [[] for _ in cases]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP // 4)
    for _ in range(200):
        for case, stream, out in zip(cases, streams, results, strict=True):
            with torch.cuda.stream(stream):
                out.append(fn(case))
                if len(out) > 20:
                    out.pop(0)
    torch.cuda.synchronize()
    for expected, out in zip(alone, results, strict=True):
        assert all(same(expected, r) for r in out)


def test_all_functions_on_streams_at_once(cuda: str) -> None:
    """Unlike kernels side by side: launches whose blocks wait for each other must not do so for ever."""
    jobs = [(fn, published_case(fn)) for fn in NINE]
    alone = [fn(case) for fn, case in jobs]
    streams = [torch.cuda.Stream() for _ in range(6)]
    torch.cuda.synchronize()
    kept = []
    for i in range(300):
        fn, case = jobs[i % len(jobs)]
        with torch.cuda.stream(streams[(i * 5) % len(streams)]):
            kept.append((i % len(jobs), fn(case)))
    torch.cuda.synchronize()
    assert all(same(alone[k], r) for k, r in kept)


def test_threads_with_a_stream_each(cuda: str) -> None:
    """Eight Python threads that never synchronise until their last call."""
    jobs = [(fn, published_case(fn)) for fn in FUSED]
    alone = [fn(case) for fn, case in jobs]
    torch.cuda.synchronize()
    failures: list[str] = []

    def run(k: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                results = [(i % 3, jobs[i % 3][0](jobs[i % 3][1])) for i in range(k, k + 30)]
                torch.cuda.current_stream().synchronize()
            failures.extend(f"thread {k}: {jobs[i][0]}" for i, r in results if not same(alone[i], r))
        except Exception as error:  # noqa: BLE001
            failures.append(f"thread {k}: {error!r}")

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures


def test_beside_a_kernel_that_fills_the_device(cuda: str) -> None:
    """Blocks that wait for each other must all run: beside work that keeps the device full, calls still finish."""
    fns = [(fn, published_case(fn)) for fn in FUSED]
    alone = [fn(case) for fn, case in fns]
    x = torch.randn(8192, 8192, device=cuda)
    busy = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(busy):
        for _ in range(20):
            y = torch.tanh(x @ x)
    results = [(k, fn(case)) for _ in range(20) for k, (fn, case) in enumerate(fns)]
    torch.cuda.synchronize()
    assert all(same(alone[k], r) for k, r in results)
    del y


# ---- CUDA graphs -------------------------------------------------------------------------------------------------


def capture(fn: Function, case: Case, calls: int = 1) -> tuple[torch.cuda.CUDAGraph, list[Result]]:
    """`calls` calls in one graph, warmed up as PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            fn(case)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [fn(case) for _ in range(calls)]
    return graph, results


@pytest.mark.parametrize("fn", NINE, ids=str)
def test_graph_capture_and_replay(fn: Function, cuda: str) -> None:
    """Replays read the inputs of their time and give the bits that eager gives."""
    case = published_case(fn)
    graph, [result] = capture(fn, case)
    other = map_tensors(case, lambda t: t.flip(0), (*case.TENSORS, "valid"))
    for source in (map_tensors(case, torch.clone), other, map_tensors(other, torch.clone)):
        for name in case.TENSORS:
            getattr(case, name).copy_(getattr(source, name))
        for t in (result.loss, result.grad):
            if t is not None:
                t.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert same(result, fn(source))
        for _ in range(20):  # back to back, without waiting
            graph.replay()
        torch.cuda.synchronize()
        assert same(result, fn(source))


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_several_calls_in_a_graph(fn: Function, cuda: str) -> None:
    case = published_case(fn)
    expected = fn(case)
    graph, results = capture(fn, case, calls=5)
    graph.replay()
    torch.cuda.synchronize()
    assert all(same(r, expected) for r in results)


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_branches_of_one_graph(fn: Function, cuda: str) -> None:
    """Two calls on forked streams inside one capture run side by side in each replay."""
    first, second = published_case(fn), published_case(fn, mask="random")
    expected = [fn(first), fn(second)]
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            b = fn(second)
        a = fn(first)
        torch.cuda.current_stream().wait_stream(side)
    for _ in range(50):
        graph.replay()
    torch.cuda.synchronize()
    assert same(a, expected[0]) and same(b, expected[1])


@pytest.mark.parametrize("fn", FUSED, ids=str)
def test_two_graphs_at_once(fn: Function, cuda: str) -> None:
    """Two graphs replayed on two streams, and eager calls on a third, share no slot."""
    cases = [published_case(fn), published_case(fn, mask="random"), published_case(fn, mask="holes")]
    expected = [fn(c) for c in cases]
    graphs = [capture(fn, c, calls=3) for c in cases[:2]]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for round_ in range(20):
        for _, results in graphs:
            for r in results:
                r.loss.fill_(torch.nan)
                r.grad.fill_(torch.nan)
        torch.cuda.synchronize()
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(1_000_000)
        eager = []
        for _ in range(10):
            for (graph, _), stream in zip(graphs, streams, strict=False):
                with torch.cuda.stream(stream):
                    graph.replay()
            with torch.cuda.stream(streams[2]):
                eager.append(fn(cases[2]))
        torch.cuda.synchronize()
        for (_, results), want in zip(graphs, expected, strict=False):
            assert all(same(r, want) for r in results), f"round {round_}"
        assert all(same(r, expected[2]) for r in eager), f"round {round_}"


def test_graph_of_a_training_step(cuda: str) -> None:
    """Forward, loss and backward captured together, as torch.cuda.graph users do."""
    import strop

    g = generator("training")
    torch.manual_seed(0)
    weight = torch.randn(64, 1000, device=cuda, requires_grad=True)
    x = torch.randn(24, 64, generator=g).to(cuda)
    teacher = torch.randn(24, 1000, generator=g).to(cuda)
    mask = torch.ones(24, dtype=torch.bool, device=cuda)

    def step() -> torch.Tensor:
        loss = strop.reverse_kl_autograd(x @ weight, teacher, mask)
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            weight.grad = None
            step()
    torch.cuda.current_stream().wait_stream(stream)
    weight.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    graph.replay()
    torch.cuda.synchronize()
    captured = (loss.clone(), weight.grad.clone())
    weight.grad = None
    again = step()
    assert torch.equal(captured[0], again)
    torch.testing.assert_close(captured[1], weight.grad, rtol=1e-5, atol=1e-7)


def test_errors_do_not_break_a_capture_or_the_device(cuda: str) -> None:
    """A bad call raises before anything is launched; the next good one works, and so does a capture around both."""
    fn = FUSED[0]
    case = published_case(fn)
    expected = fn(case)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        with pytest.raises(ValueError):
            fn.raw(case.replace(old=case.old[:1]))
        result = fn(case)
    graph.replay()
    torch.cuda.synchronize()
    assert same(result, expected) and same(fn(case), expected)
