"""What others published for the same losses, to be shown beside ours.

Speed-ups of CuTeDSL kernels on an H100, geometric means over the shapes in cases.SHAPES, (over eager, over compile);
compile is torch.compile(mode="max-autotune-no-cudagraphs", fullgraph=True) with static shapes. Their authors state no
dtype, and say that some shapes regress against compile. "wall" is Hugging Face's `kernels benchmark` at beta 0.1,
"do_bench" has a fresh process for each shape.
"""

from __future__ import annotations

# By method, then function, then beta: 0, anything else (1), or none (None).
SPEED_UPS: dict[str, dict[str, dict[int | None, tuple[float, float]]]] = {
    "wall": {
        "grpo_loss_fwd": {1: (5.68, 2.45)},
        "grpo_loss": {1: (20.79, 1.98)},
        "bnpo_loss_fwd": {1: (5.29, 2.52)},
        "bnpo_loss": {1: (16.81, 2.27)},
        "reverse_kl_fwd": {None: (6.88, 2.45)},
        "reverse_kl": {None: (7.03, 2.61)},
    },
    "do_bench": {
        "grpo_loss_fwd": {0: (8.19, 1.24), 1: (11.04, 1.25)},
        "grpo_loss": {0: (20.65, 1.02), 1: (27.00, 1.08)},
        "bnpo_loss_fwd": {0: (6.88, 1.18), 1: (9.60, 1.31)},
        "bnpo_loss": {0: (6.42, 1.01), 1: (11.02, 1.08)},
        "reverse_kl_fwd": {None: (7.65, 2.57)},
        "reverse_kl": {None: (6.50, 1.95)},
    },
}


def speed_up(method: str, kernel: str, beta: float | None, ratio: str) -> float | None:
    """The published figure for "vs_eager" or "vs_compile", if there is one."""
    pair = SPEED_UPS.get(method, {}).get(kernel, {}).get(None if beta is None else int(beta != 0))
    return pair and pair[ratio == "vs_compile"]
