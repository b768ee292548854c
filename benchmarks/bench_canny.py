"""Canny against scikit-image, OpenCV and (where it is installed) kornia, on the CPU.

``python -m benchmarks.bench_canny [case ...]`` prints a Markdown table. The result is compared with scikit-image's
first, pixel for pixel; then the rivals take turns in one process.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from skimage import data
from skimage.color import rgb2gray
from skimage.feature import canny as skimage_canny

from benchmarks.harness import Report, run_as_program, time_in_turns
from fastinpaint.ops._backend import native_reason
from fastinpaint.ops.canny import canny

SIGMA, LOW, HIGH = 1.5, 0.1, 0.2
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
CASES = {  # name: images in a batch, side in pixels
    "16 x 256²": (16, 256),
    "1 x 256²": (1, 256),
    "16 x 64²": (16, 64),
    "16 x 128²": (16, 128),
    "16 x 512²": (16, 512),
    "1 x 512²": (1, 512),
    "1 x 1024²": (1, 1024),
    "1 x 2048²": (1, 2048),
}
Run = Callable[[], Any]
Images = npt.NDArray[np.float32]


def photographs(count: int, size: int) -> Images:
    """Grey crops of photographs, mirrored where they are too small. (count, size, size) in [0, 1]."""
    sources = [rgb2gray(getattr(data, name)()).astype(np.float32) for name in PHOTOGRAPHS]
    random = np.random.default_rng(0)
    crops = []
    for index in range(count):
        image = sources[index % len(sources)]
        image = np.pad(image, [(0, max(0, size - side)) for side in image.shape], mode="symmetric")
        y, x = (random.integers(0, side - size + 1) for side in image.shape)
        crops.append(image[y : y + size, x : x + size])
    return np.stack(crops)


def rivals(images: Images) -> dict[str, Run]:
    """Name to a call that takes the whole batch through."""
    tensor = torch.from_numpy(images)[:, None]
    bytes_ = (images * 255).round().astype(np.uint8)
    options: dict[str, Any] = {"sigma": SIGMA, "low_threshold": LOW, "high_threshold": HIGH}

    def opencv() -> list[Any]:
        return [cv2.Canny(cv2.GaussianBlur(image, (0, 0), SIGMA), LOW * 255, HIGH * 255) for image in bytes_]

    calls: dict[str, Run] = {
        "native": lambda: canny(tensor, backend="native", **options),
        "OpenCV, 8 bit": opencv,
        "scikit-image": lambda: np.stack([skimage_canny(image, **options) for image in images]),
        "reference": lambda: canny(tensor, backend="reference", **options),
    }
    if native_reason("canny", tensor) is not None:
        del calls["native"]
    if find_spec("kornia") is not None and images.size <= 16 * 256 * 256:
        from kornia.filters import canny as kornia_canny

        calls["kornia"] = lambda: kornia_canny(tensor, LOW, HIGH, kernel_size=(13, 13), sigma=(SIGMA, SIGMA))
    return calls


def check(calls: dict[str, Run], case: str) -> None:
    """Stop unless our edges are scikit-image's: an operator that fails has no speed."""
    expected = calls["scikit-image"]()
    for name in ("native", "reference"):
        if name in calls:
            differing = int((calls[name]()[:, 0].numpy() != expected).sum())
            if differing:
                raise SystemExit(f"{case}: {name} differs from scikit-image at {differing} pixels")


def report(cases: list[str] | None = None) -> Report:
    """Time every case (or those named)."""
    result = Report(f"Canny, sigma {SIGMA}, thresholds {LOW} and {HIGH}: per image", ours="native")
    for case in cases or CASES:
        count, size = CASES[case]
        calls = rivals(photographs(count, size))
        result.ours = next(iter(calls))
        check(calls, case)
        result.rows[case] = time_in_turns(calls)
        result.per[case] = count
    result.notes = [
        "Both of ours equal scikit-image pixel for pixel in every case, checked before timing.",
        "OpenCV blurs and differentiates 8-bit integers, so its edges differ.",
    ]
    return result


if __name__ == "__main__":
    run_as_program(report, CASES, __doc__)
