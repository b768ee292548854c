"""The pyramid structure loss against eager PyTorch and torch.compile, three scales, edges given."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, differentiated
from fastinpaint.ops.structure_loss import pyramid_structure_loss

# Of a pixel and scale: three channels through two Sobel filters 36, two Gaussians of two axes 36, errors and sums 28.
FLOPS_PER_PIXEL = 100


def cases(device: str) -> list[Case]:
    float32, bfloat16 = torch.float32, torch.bfloat16
    if device == "cuda":
        kinds = [(float32, True), (bfloat16, True), (float32, False)]
        rows = [(batch, 256, dtype, backward) for batch in (16, 64) for dtype, backward in kinds]
    elif device == "dry":
        rows = [(1, 8, bfloat16, True)]
    else:
        rows = [(batch, side, float32, True) for batch in (8, 1) for side in (64, 128, 256, 512, 1024)]
        rows += [(8, 256, float32, False), (8, 256, bfloat16, True)]
    return [_case(*row) for row in rows]


def _case(batch: int, side: int, dtype: torch.dtype, backward: bool) -> Case:
    pixels = batch * sum((side // k) ** 2 for k in (1, 2, 4))
    predictions = 6 * pixels * dtype.itemsize
    moved = 3 * 4 * batch * side**2 + 4 * pixels + (2 if backward else 1) * predictions
    plain = dtype == torch.float32 and backward
    return Case(
        f"{batch} x {side}²{'' if dtype == torch.float32 else ', bfloat16'}{'' if backward else ', forward only'}",
        {"batch": batch, "side": side, "dtype": dtype, "backward": backward},
        Work(bytes=moved, flops=FLOPS_PER_PIXEL * pixels),
        items=batch,
        series=f"batch {batch}" if plain else "",
        size=side,
    )


def competitors(device: str, batch: int, side: int, dtype: torch.dtype, backward: bool) -> Competitors:
    """Name to a call for the loss and, with ``backward``, the gradients of the predictions."""
    image = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    sides = (side, side // 2, side // 4)
    predictions = [torch.randn(batch, 6, s, s, device=device).to(dtype).requires_grad_() for s in sides]
    edges = [(torch.rand(batch, 1, s, s, device=device) < 0.1).float() for s in sides]

    def loss(backend: str) -> Callable[[], Tensor]:
        return lambda: pyramid_structure_loss(image, predictions, edges=edges, backend=backend)

    values = {
        "native" if device == "cpu" else "triton": loss("native" if device == "cpu" else "triton"),
        "eager": loss("reference"),
        "torch.compile": torch.compile(loss("reference"), dynamic=False),
    }
    return {name: differentiated(value, predictions, backward) for name, value in values.items()}


BENCHMARK = Benchmark(
    title="Pyramid structure loss, three scales, edges given, forward and backward: per image",
    cases=cases,
    competitors=competitors,
    reference=("eager",),
    # The sign of an error that is nearly 0 may flip with rounding, more often in bfloat16.
    tolerance=lambda _, dtype, **__: 1e-3 if dtype == torch.float32 else 3e-2,
)
