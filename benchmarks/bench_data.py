"""From a JPEG file to a square training image, beside decoding every pixel, torchvision and OpenCV; one thread."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.machine import Work
from benchmarks.suite import Benchmark, Case, Competitors, Run
from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.images import read_image, square_crop_resize

SIDE = 256  # pixels of the training image
SIZES = {"256²": (256, 256), "1 megapixel": (1152, 864), "12 megapixels": (4000, 3000)}  # width, height


def cases(device: str) -> list[Case]:
    if device == "cuda":
        return []  # decoding is the CPU's
    sizes = {"96²": (96, 96)} if device == "dry" else SIZES
    return [
        Case(name, {"width": width, "height": height}, Work(bytes=3 * SIDE**2, flops=0), size=height)
        for name, (width, height) in sizes.items()
    ]


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fastinpaint-data-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def photograph(width: int, height: int) -> Path:
    """A JPEG of smooth noise with a little grain, about a byte for three pixels as cameras write them."""
    path = _folder() / f"{width}x{height}" / "photo.jpg"
    if not path.exists():
        path.parent.mkdir()
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = rng.standard_normal((height, width, 1), dtype=np.float32) * 4
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def competitors(device: str, width: int, height: int) -> Competitors:
    """Name to a call for (3, 256, 256) uint8, the square from the middle."""
    path = photograph(width, height)
    dataset = InpaintDataset(path, SIDE)

    def every_pixel() -> Tensor:
        return torch.from_numpy(np.asarray(square_crop_resize(read_image(path), SIDE)).transpose(2, 0, 1).copy())

    calls: dict[str, Run | str] = {"ours": lambda: dataset.draw_pixels(0, 0), "every pixel": every_pixel}
    return calls | {"OpenCV": _or_reason(_opencv, path), "torchvision": _or_reason(_torchvision, path)}


def _or_reason(make: Callable[[Path], Run], path: Path) -> Run | str:
    try:
        return make(path)
    except ImportError as error:
        return f"{type(error).__name__}: {error}"


def _opencv(path: Path) -> Callable[[], Tensor]:
    import cv2

    def call() -> Tensor:
        whole = cv2.cvtColor(np.asarray(cv2.imread(str(path))), cv2.COLOR_BGR2RGB)
        short = min(whole.shape[:2])
        top, left = (whole.shape[0] - short) // 2, (whole.shape[1] - short) // 2
        square = whole[top : top + short, left : left + short]
        small = square if short == SIDE else cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(small.transpose(2, 0, 1).copy())

    return call


def _torchvision(path: Path) -> Callable[[], Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2.functional import center_crop, resize

    def call() -> Tensor:
        whole = decode_jpeg(read_file(str(path)), ImageReadMode.RGB)
        small: Tensor = resize(center_crop(whole, [min(whole.shape[1:])]), [SIDE, SIDE], antialias=True)
        return small

    return call


BENCHMARK = Benchmark(
    title="A training image of 256² from a JPEG file: per picture",
    cases=cases,
    competitors=competitors,
    ours={"cpu": "ours", "cuda": "ours"},
    reference=("every pixel",),
    tolerance=lambda *_, **__: 5e-2,  # filters differ, places do not
    notes=(
        "Ours decodes at the smallest of the scales 1, 1/2, 1/4, 1/8 that covers twice the square; "
        "the others decode every pixel.",
    ),
    rate=True,
)
