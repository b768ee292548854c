"""Patch attention against its convolution form and torch's fused attention, on the CPU.

``python -m benchmarks.bench_patch_attention [case ...]`` prints a Markdown table. Every result is compared with the
convolution form's first; then the rivals take turns in one process.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Report, extra_memory, run_as_program, time_in_turns
from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.reference.patch_attention import NORM_FLOOR, key_patches

CASES = {  # the generator's maps: channels, side in pixels, whether with the backward
    "32² x 256": (256, 32, False),
    "32² x 256, with backward": (256, 32, True),
    "64² x 128": (128, 64, False),
    "64² x 128, with backward": (128, 64, True),
    "128² x 64": (64, 128, False),
    "128² x 64, with backward": (64, 128, True),
}
KERNEL_SIZE, STRIDE, SCALE = 3, 2, 10.0  # the generator's
TOLERANCE = 1e-4  # relative L2 of two float32 results; gradients of the convolution form carry 1e-5
Run = Callable[[Tensor], Tensor]


def fused_attention(features: Tensor) -> Tensor:
    """The same through ``scaled_dot_product_attention`` over unfolded patches, folded back with their sides swapped."""
    height, width = features.shape[2:]
    query = F.unfold(features, KERNEL_SIZE, padding=KERNEL_SIZE // 2).transpose(1, 2)  # (B, N, C k k)
    patches = key_patches(features, KERNEL_SIZE, STRIDE)  # (B, M, C, k, k)
    norm = patches.square().sum((2, 3, 4), keepdim=True).clamp_min(NORM_FLOOR**2).sqrt()
    value = patches.flip(3, 4).flatten(2)
    result = F.scaled_dot_product_attention(query, (patches / norm).flatten(2), value, scale=SCALE)
    return F.fold(result.transpose(1, 2), (height, width), KERNEL_SIZE, padding=KERNEL_SIZE // 2) / 4


def rivals() -> dict[str, Run]:
    """Name -> features to output."""

    def ours(backend: str) -> Run:
        return lambda features: patch_attention(
            features, kernel_size=KERNEL_SIZE, stride=STRIDE, softmax_scale=SCALE, backend=backend
        )

    return {
        "native": ours("native"),
        "convolutions": ours("reference"),
        "scaled_dot_product_attention": fused_attention,
    }


def check(runs: dict[str, Run], features: Tensor, case: str) -> None:
    """Stop unless all agree: an operator that fails has no speed."""
    wanted = runs["convolutions"](features)
    for name, run in runs.items():
        error = ((run(features) - wanted).norm() / wanted.norm()).item()
        if not error < TOLERANCE:
            raise SystemExit(f"{case}: {name} differs from the convolution form by {error:.1e}")


def with_backward(run: Run, weight: Tensor) -> Run:
    """Forward and backward; returns the gradient."""

    def both(features: Tensor) -> Tensor:
        features = features.detach().requires_grad_()
        return torch.autograd.grad(run(features), features, weight)[0]

    return both


def report(cases: list[str] | None = None) -> Report:
    """Time every case (or those named)."""
    result = Report(f"Patch attention, k = {KERNEL_SIZE}, stride {STRIDE}: per image", ours="native")
    for case in cases or CASES:
        channels, size, backward = CASES[case]
        torch.manual_seed(0)
        features, weight = torch.randn(2, 1, channels, size, size)
        runs = {name: with_backward(run, weight) if backward else run for name, run in rivals().items()}
        memory = ", ".join(f"{name} {extra_memory(partial(run, features)):.0f}" for name, run in runs.items())
        result.notes.append(f"{case}: extra memory in MiB: {memory}.")
        check(runs, features, case)
        calls = {name: partial(run, features) for name, run in runs.items()}
        result.rows[case] = time_in_turns(calls, rounds=15, budget=5.0)
    return result


if __name__ == "__main__":
    run_as_program(report, CASES, __doc__)
