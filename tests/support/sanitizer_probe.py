"""What tools/gpu_check runs under compute-sanitizer: all nine functions on small CUDA inputs, checked against the CPU.

Inputs are made on the CPU and copied, so that the only kernels on the device are the library's own. Run it with
PYTORCH_NO_CUDA_MEMORY_CACHING=1: then each tensor is an allocation of its own, and an access beyond it is seen.
The inputs that a call must not read (gaps of slices, masked tokens) are NaN, which racecheck cannot see but the
comparison can.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.cases import Case, generator, kl_case, map_tensors, policy_case, to_device  # noqa: E402
from support.functions import FUSED, NINE, Function  # noqa: E402
from support.layouts import prefix, step  # noqa: E402

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def cases(fn: Function, quick: bool) -> list[Case]:
    """Shapes for each path of the kernels: less than a vector, tails, several blocks a row, many rows."""
    g = generator("probe", fn.name)
    if fn.is_policy:
        shapes = [(1, 1), (3, 37), (2, 5003), (301, 9)] + ([] if quick else [(150, 130), (5, 20_001)])
        out: list[Case] = []
        for i, (b, t) in enumerate(shapes):
            out.append(
                policy_case(
                    fn.family, b, t, g, dtype=(FP32, BF16, FP16)[i % 3], advantages_rank=1 + i % 2, beta=0.1 * (i % 2)
                )
            )
        wide = policy_case(fn.family, 3, 70, g, dtype=BF16, old_dtype=FP32, ref_dtype=FP16, mask_dtype=torch.int64)
        return [*out, wide]
    shapes3 = [(1, 1, 1), (2, 3, 37), (1, 2, 5003), (9, 2, 130)] + ([] if quick else [(1, 2, 33_003), (1, 1, 120_001)])
    out = [kl_case(s, g, dtype=(FP32, BF16, FP16)[i % 3], mask="random") for i, s in enumerate(shapes3)]
    return [*out, kl_case((3, 519), g, dtype=BF16, teacher_dtype=FP32, mask_dtype=torch.int32)]


def main() -> int:
    quick = "--quick" in sys.argv
    calls = 0
    for fn in NINE:
        if quick and fn.variant == "autograd":
            continue  # the same kernels again
        for i, case in enumerate(cases(fn, quick)):
            if i == 1:  # copied as they lie, gaps and all
                moved: Case = map_tensors(case, prefix, case.TENSORS)
            elif i == 3:
                moved = map_tensors(case, step, (case.LEAF,))
            else:
                moved = case

            def to_cuda(t: torch.Tensor) -> torch.Tensor:
                base = t if t._base is None else t._base
                return base.cuda().as_strided(t.shape, t.stride(), t.storage_offset())

            there = fn(map_tensors(moved, to_cuda))
            here = fn(case)
            torch.cuda.synchronize()
            torch.testing.assert_close(there.loss.cpu(), here.loss, rtol=1e-4, atol=1e-5)
            if there.grad is not None:
                torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=2e-2, atol=1e-5)
            calls += 1
    for fn in FUSED:
        if not fn.is_policy:
            case = to_device(kl_case((2, 3, 1003), generator("probe in place"), dtype=BF16), "cuda")
            expected = fn(case).grad.cpu()
            fn.raw(case, inplace=True)
            assert torch.equal(case.student.cpu(), expected)
            calls += 1
    print(f"{calls} calls right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
