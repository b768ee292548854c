"""From a request's bytes to the bytes of the answer."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
from PIL import Image

from fastinpaint.data.images import open_upright
from fastinpaint.data.masks import check_mask, dilate, grey_of, mask_of_grey
from fastinpaint.inference.formats import encode
from fastinpaint.inference.inpainter import Inpainter, Strategy
from fastinpaint.inference.photo import Photo, read_photo
from fastinpaint.inference.regions import SIZE, TILE, Hole, plan_regions
from fastinpaint.models.generator import InpaintGenerator
from fastinpaint.serve.worker import Job, SharedGenerator
from fastinpaint.visualize.sheets import edge_cell, gradient_cell

T = TypeVar("T")
Format = Literal["png", "jpeg", "webp", "tiff", "bmp"]
Structure = Literal["edges", "gradients"]

FORMATS: dict[str, tuple[str, str]] = {  # suffix, media type
    "png": (".png", "image/png"),
    "jpeg": (".jpg", "image/jpeg"),
    "webp": (".webp", "image/webp"),
    "tiff": (".tif", "image/tiff"),
    "bmp": (".bmp", "image/bmp"),
}
Image.init()
_READABLE = tuple(name for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM") if name in Image.OPEN)
LARGEST_WHOLE = 2**20  # pixels of a picture that is filled whole: memory grows with the square


class RequestError(Exception):
    """The client's mistake: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Result:
    """An encoded picture, and the seconds that went into it: ``read``, ``fill``, ``encode``."""

    data: bytes
    format: str
    width: int
    height: int
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


class Stopwatch:
    """Seconds of the parts of some work, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Say that what was done since the last lap, or the start, is called ``name``."""
        now = time.perf_counter()
        self.seconds[name] = now - self._since
        self._since = now


class Painter:
    """Fills pictures as ``fastinpaint inpaint`` does, on a generator that several threads share.

    Args:
        inpainter: Its device, ``max_side`` and strategy are the defaults of requests.
        max_pixels: Most pixels of a picture.
        batch_size: Most requests that share a pass of the generator.
    """

    def __init__(self, inpainter: Inpainter, max_pixels: int, batch_size: int) -> None:
        self.defaults = inpainter
        self.max_pixels = max_pixels
        self.generator = SharedGenerator(inpainter.generator, batch_size).to(inpainter.device).eval()

    def _inpainter(self, strategy: Strategy | None, max_side: int | None) -> Inpainter:
        inpainter = copy.copy(self.defaults)
        inpainter.generator = cast(InpaintGenerator, self.generator)
        inpainter.strategy = strategy or inpainter.strategy
        inpainter.max_side = inpainter.max_side if max_side is None else max_side
        return inpainter

    def inpaint(
        self,
        job: Job,
        image: bytes,
        mask: bytes | None,
        *,
        invert_mask: bool = False,
        mask_dilate: int = 0,
        strategy: Strategy | None = None,
        max_side: int | None = None,
        file_format: Format | None = None,
        draft: bool = False,
    ) -> Result:
        """Fill the hole and encode the result, a draft in little time; no mask: encode the picture as it is.

        Raises:
            RequestError: The request cannot be served as it is.
            Cancelled: The job was cancelled.
        """
        watch = Stopwatch()
        kept = self._check(image, "image")
        photo = self._read(image)
        file_format = file_format or kept
        if mask is not None:
            inpainter = self._inpainter(strategy, max_side)
            self._check_whole(inpainter, photo)
            hole = self._hole(mask, invert_mask, mask_dilate)
            watch.lap("read")
            job.expected = expected_passes(inpainter, hole)
            photo.pixels = _refusing(lambda: inpainter.fill_many([photo.pixels], [hole])[0])
            watch.lap("fill")
        else:
            watch.lap("read")
        job.check()
        result = _encode(photo, file_format, draft)
        watch.lap("encode")
        return replace(result, seconds=watch.seconds)

    def structure(
        self, job: Job, image: bytes, mask: bytes, kind: Structure, invert_mask: bool = False, mask_dilate: int = 0
    ) -> Result:
        """Draw the predicted edges or gradients as PNG of the picture's size, transparent beside the hole.

        Raises:
            RequestError: The request cannot be served as it is.
            Cancelled: The job was cancelled.
        """
        self._check(image, "image")
        photo, hole = self._read(image), self._hole(mask, invert_mask, mask_dilate)
        inpainter = self._inpainter(None, None)
        self._check_whole(inpainter, photo)
        draw = edge_cell if kind == "edges" else gradient_cell
        height, width = photo.size
        canvas = np.zeros((height, width, 4), np.uint8)
        for box, gradients in _refusing(lambda: inpainter.structure(photo.pixels, hole)):
            canvas[box.area][..., :3] = draw(gradients)
        canvas[~hole] = 0
        canvas[hole, 3] = 255
        target = io.BytesIO()
        Image.fromarray(canvas).save(target, format="PNG", compress_level=1)
        return Result(target.getvalue(), "png", width, height)

    def _check(self, data: bytes, what: str) -> Format:
        """Check kind and size by the header alone; return the format that keeps the file's."""
        try:
            with Image.open(io.BytesIO(data), formats=_READABLE) as picture:
                pixels, found = picture.width * picture.height, str(picture.format).lower()
        except Image.DecompressionBombError:
            raise RequestError(413, f"a picture may have at most {self.max_pixels} pixels") from None
        except Exception:
            raise RequestError(
                400, f"the {what} is no picture that can be read: PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF is wanted"
            ) from None
        if pixels > self.max_pixels:
            raise RequestError(413, f"a picture may have at most {self.max_pixels} pixels, the {what} has {pixels}")
        if found == "mpo":
            return "jpeg"
        return found if found in FORMATS else "png"  # type: ignore[return-value]

    def _read(self, data: bytes) -> Photo:
        try:
            return read_photo(data)
        except Exception as error:  # Pillow raises nearly anything on damaged files
            raise RequestError(400, f"the image cannot be read: {_reason(error)}") from None

    def _hole(self, data: bytes, invert_mask: bool, mask_dilate: int) -> Hole:
        self._check(data, "mask")
        try:
            with open_upright(data) as picture:
                grey = grey_of(picture)
        except Exception as error:
            raise RequestError(400, f"the mask cannot be read: {_reason(error)}") from None
        mask = _refusing(lambda: mask_of_grey(grey, invert_mask, "that was sent"))
        if mask_dilate:
            mask = dilate(mask, mask_dilate)
            _refusing(lambda: check_mask(mask, "that was sent", f"mask_dilate {mask_dilate} grew it"))
        return mask.view(bool)

    @staticmethod
    def _check_whole(inpainter: Inpainter, photo: Photo) -> None:
        whole = inpainter.strategy == "original" or inpainter.max_side == 0
        if whole and math.prod(photo.size) > LARGEST_WHOLE:
            raise RequestError(
                413, f"pictures of more than {LARGEST_WHOLE} pixels are filled with strategy crop or resize only"
            )


def expected_passes(inpainter: Inpainter, hole: Hole) -> int:
    """Estimate how often the generator will run; what coarse fillings take is not counted."""
    largest = max(inpainter.max_side, SIZE)
    if inpainter.strategy != "crop" or inpainter.max_side == 0 or max(hole.shape) <= largest:
        return 1
    passes = 0
    for box in plan_regions(hole):
        inside = hole[box.area]
        one = max(box.sides) <= largest
        passes += 1 if one else math.ceil(int(inside.sum()) / TILE**2)
    return passes


def _refusing(work: Callable[[], T]) -> T:
    """Do what raises ValueError or TypeError for arguments that do not fit together."""
    try:
        return work()
    except (ValueError, TypeError) as error:
        raise RequestError(422, _reason(error)) from error


def _encode(photo: Photo, file_format: Format, draft: bool) -> Result:
    height, width = photo.size
    try:
        name = Path(f"the result{FORMATS[file_format][0]}")
        data = bytes(encode(photo.pixels, photo.metadata, name, fast=draft and file_format == "png"))
    except (OSError, ValueError) as error:
        raise RequestError(422, f"the result cannot be written as {file_format}: {_reason(error)}") from error
    return Result(data, file_format, width, height)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
