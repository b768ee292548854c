"""Edges at three scales in one call, as training needs them, against a call for each scale."""

import torch

from benchmarks.bench_canny import FLOPS_PER_PIXEL, photographs
from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.canny import canny, canny_pyramid
from fastinpaint.reference.nearest import nearest_resize

SCALES = (1, 2, 4)


def cases(device: str) -> list[Case]:
    rows = {"cpu": [(16, 64), (16, 128), (16, 256)], "cuda": [(16, 256), (64, 256)], "dry": [(1, 32)]}
    return [_case(*row) for row in rows[device]]


def _case(batch: int, side: int) -> Case:
    pixels = sum((side // scale) ** 2 for scale in SCALES) * batch
    return Case(
        f"{batch} x 3 x {side}²",
        {"batch": batch, "side": side},
        Work(bytes=12 * batch * side**2 + pixels, flops=FLOPS_PER_PIXEL * pixels, dtype="float64"),
        items=batch,
        series=f"batch {batch}",
        size=side,
    )


def competitors(device: str, batch: int, side: int) -> Competitors:
    """Name to a call for the edges of a batch of colour images."""
    host = torch.from_numpy(photographs(3 * batch, side)).view(batch, 3, side, side)

    def together(image: torch.Tensor) -> Run | str:
        gap = native_reason("canny_pyramid", image)
        return gap or (lambda: canny_pyramid(image, scales=SCALES, backend="native"))

    def apart(image: torch.Tensor) -> Run | str:
        gap = native_reason("canny", image)
        sizes = [(side // scale, side // scale) for scale in SCALES]
        return gap or (lambda: [canny(nearest_resize(image, *size), backend="native") for size in sizes])

    image = host.to(device)
    calls = {"native": together(image), "native, scale by scale": apart(image)}
    return calls if device == "cpu" else {**calls, "native, CPU": together(host)}


BENCHMARK = Benchmark(
    title=f"Canny at the scales {', '.join(map(str, SCALES))}: per image",
    cases=cases,
    competitors=competitors,
    ours={"cpu": "native", "cuda": "native"},
    reference=("native, CPU", "native, scale by scale"),
    tolerance=lambda *_, **__: 0.0,
    host=("native, CPU",),
)
