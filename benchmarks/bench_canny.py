"""Canny against scikit-image, OpenCV, kornia and our own reference, on photographs."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.canny import canny
from fastinpaint.reference.canny import canny as reference

SIGMA, LOW, HIGH = 1.5, 0.1, 0.2
OPTIONS: dict[str, Any] = {"sigma": SIGMA, "low_threshold": LOW, "high_threshold": HIGH}
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
# In double: 19 for each axis of the Gaussian, 12 for the gradients, then 10 in float; none may be fused, so each counts
# as two.
FLOPS_PER_PIXEL = 2 * (19 + 19 + 12 + 10)
KORNIA_PIXELS = 2**20  # its loop over hysteresis steps takes minutes for more
Images = npt.NDArray[np.float32]


def cases(device: str) -> list[Case]:
    sizes = [(1, side) for side in (64, 128, 256, 512, 1024, 2048)] + [(16, side) for side in (64, 128, 256, 512)]
    if device in ("cuda", "dry"):
        sizes = [(16, 256), (64, 256), (1, 2048)] if device == "cuda" else [(2, 32)]
    return [
        Case(
            f"{batch} x {side}²",
            {"batch": batch, "side": side},
            Work(bytes=5 * batch * side**2, flops=FLOPS_PER_PIXEL * batch * side**2, dtype="float64"),
            items=batch,
            series=f"batch {batch}",
            size=side,
        )
        for batch, side in sizes
    ]


@cache
def _sources() -> list[Images]:
    """Grey photographs; none where scikit-image or its pictures are missing."""
    if find_spec("skimage") is None:
        return []
    from skimage import data
    from skimage.color import rgb2gray

    try:
        return [rgb2gray(getattr(data, name)()).astype(np.float32) for name in PHOTOGRAPHS]
    except Exception:  # scikit-image may want to download them
        return []


def photographs(count: int, side: int) -> Images:
    """Grey crops of photographs, mirrored where they are too small; smooth noise without them. In [0, 1].

    Other crops for each seed of torch.
    """
    random = np.random.default_rng(torch.initial_seed())
    sources = _sources()
    if not sources:
        steps = random.normal(size=(count, side, side)).cumsum(1).cumsum(2)
        low, high = steps.min((1, 2), keepdims=True), steps.max((1, 2), keepdims=True)
        return ((steps - low) / (high - low)).astype(np.float32)
    crops = []
    for index in range(count):
        image = sources[index % len(sources)]
        image = np.pad(image, [(0, max(0, side - length)) for length in image.shape], mode="symmetric")
        y, x = (random.integers(0, length - side + 1) for length in image.shape)
        crops.append(image[y : y + side, x : x + side])
    return np.stack(crops)


def competitors(device: str, batch: int, side: int) -> Competitors:
    """Name to a call that takes the whole batch through."""
    images = photographs(batch, side)
    host = torch.from_numpy(images)[:, None]
    image = host.to(device)
    calls: dict[str, Run | str] = {}
    if device == "cpu":
        calls["native"] = native_reason("canny", image) or (lambda: canny(image, backend="native", **OPTIONS))
    else:
        gap = native_reason("canny", image)
        calls["native, CUDA"] = gap or (lambda: canny(image, backend="native", **OPTIONS))
        calls["native, CPU"] = native_reason("canny", host) or (lambda: canny(host, backend="native", **OPTIONS))
    calls["OpenCV, 8 bit, CPU"] = _opencv(images)
    calls["scikit-image"] = _scikit_image(images)
    calls["kornia"] = _kornia(image)
    compiled = torch.compile(reference, dynamic=False)
    calls["eager"] = lambda: reference(image, **OPTIONS)
    calls["torch.compile"] = lambda: compiled(image, **OPTIONS)
    return calls


def _opencv(images: Images) -> Run | str:
    if find_spec("cv2") is None:
        return "OpenCV is not installed"
    import cv2

    bytes_ = (images * 255).round().astype(np.uint8)

    def run() -> Tensor:
        edges = [cv2.Canny(cv2.GaussianBlur(image, (0, 0), SIGMA), LOW * 255, HIGH * 255) for image in bytes_]
        return torch.from_numpy(np.stack(edges))

    return run


def _scikit_image(images: Images) -> Run | str:
    if find_spec("skimage") is None:
        return "scikit-image is not installed"
    from skimage.feature import canny as skimage_canny

    return lambda: torch.from_numpy(np.stack([skimage_canny(image, **OPTIONS) for image in images]))[:, None]


def _kornia(image: Tensor) -> Run | str:
    if find_spec("kornia") is None:
        return "kornia is not installed"
    if image.device.type == "cpu" and image.numel() > KORNIA_PIXELS:
        return f"more than {KORNIA_PIXELS} pixels take it minutes"
    from kornia.filters import canny as kornia_canny

    run: Callable[[], Any] = lambda: kornia_canny(image, LOW, HIGH, kernel_size=(13, 13), sigma=(SIGMA, SIGMA))  # noqa: E731
    return run


BENCHMARK = Benchmark(
    title=f"Canny, sigma {SIGMA}, thresholds {LOW} and {HIGH}: per image",
    cases=cases,
    competitors=competitors,
    ours={"cpu": "native", "cuda": "native, CUDA"},
    reference=("scikit-image", "native, CPU"),
    tolerance=lambda *_, **__: 0.0,
    differs={
        "OpenCV, 8 bit, CPU": "it blurs and differentiates 8-bit integers, so its edges differ",
        "kornia": "its edges differ from scikit-image's",
    },
    host=("native, CPU", "OpenCV, 8 bit, CPU", "scikit-image"),
    notes=("Ours, eager and torch.compile equal scikit-image pixel for pixel in every case, checked before timing.",),
)
