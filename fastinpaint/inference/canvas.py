"""Pictures of any kind as canvases: read region by region in [0, 1], written inside holes only."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastinpaint.inference.regions import Box, Hole

_GRAY = np.asarray((0.2125, 0.7154, 0.0721), np.float32)  # as rgb_to_gray weighs red, green and blue
_DEEP = ("I", "I;16", "F")
_DIRECT = ("L", "LA", "RGB", "RGBA", *_DEEP)  # modes whose channels are grey or red, green and blue, and alpha
_CONVERTED = (
    "CMYK",
    "YCbCr",
    "HSV",
)  # filled as RGB and converted back inside the hole


class Canvas(Protocol):
    """A picture that is filled in place."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    def read(self, box: Box) -> Tensor:
        """Return (3, h, w) in [0, 1]: red, green and blue of a region; any value in its hole."""

    def write(self, box: Box, hole: Hole, filled: Tensor) -> None:
        """Put (3, h, w) in [0, 1] where the region's ``hole``, (h, w), is True."""


class TensorCanvas:
    """A floating-point tensor (3, H, W) in [0, 1]."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.size = (image.shape[-2], image.shape[-1])

    def read(self, box: Box) -> Tensor:
        """See `Canvas`."""
        return self.image[:, box.rows, box.columns].float()

    def write(self, box: Box, hole: Hole, filled: Tensor) -> None:
        """See `Canvas`."""
        part = self.image[:, box.rows, box.columns]
        part.copy_(torch.where(torch.from_numpy(hole).to(part.device), filled.to(part), part))


class ArrayCanvas:
    """An array (H, W) or (H, W, C): grey or red, green and blue, then alpha, which is kept.

    Args:
        pixels: uint8, uint16 or another real type.
        levels: The values that stand for 0 and 1.
    """

    def __init__(self, pixels: npt.NDArray[Any], levels: tuple[float, float]) -> None:
        self.pixels, self.levels = pixels, levels
        self.size = (pixels.shape[0], pixels.shape[1])

    def read(self, box: Box) -> Tensor:
        """See `Canvas`."""
        return torch.from_numpy(_unit(self.pixels[box.area], self.levels)).permute(2, 0, 1)

    def write(self, box: Box, hole: Hole, filled: Tensor) -> None:
        """See `Canvas`."""
        _put(self.pixels[box.area], hole, filled, self.levels)


class PillowCanvas:
    """A Pillow image of one of the modes that `editable` returns."""

    def __init__(self, image: Image.Image, levels: tuple[float, float]) -> None:
        self.image, self.levels = image, levels
        self.size = (image.height, image.width)

    def read(self, box: Box) -> Tensor:
        """See `Canvas`."""
        part = self._crop(box)
        pixels = np.asarray(part.convert("RGB") if part.mode in _CONVERTED else part)
        return torch.from_numpy(_unit(pixels, self.levels)).permute(2, 0, 1)

    def write(self, box: Box, hole: Hole, filled: Tensor) -> None:
        """See `Canvas`."""
        part = self._crop(box)
        pixels = np.array(part)
        if part.mode in _CONVERTED:
            color = Image.fromarray((filled.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))
            pixels[hole] = np.asarray(color.convert(part.mode))[hole]
        else:
            _put(pixels, hole, filled, self.levels)
        self.image.paste(Image.frombytes(part.mode, part.size, pixels.tobytes()), (box.left, box.top))

    def _crop(self, box: Box) -> Image.Image:
        return self.image.crop((box.left, box.top, box.right, box.bottom))


def editable(image: Image.Image) -> Image.Image:
    """Return a picture in a mode that can hold its filling and all of its pixels; the picture itself where it can.

    Palettes become RGB, bilevel becomes grey, a transparent colour becomes an alpha channel. No pixel looks different.
    """
    mode, alpha = image.mode, image.has_transparency_data
    if mode in (*_DIRECT, *_CONVERTED) and (not alpha or mode in ("LA", "RGBA", *_DEEP)):
        return image
    if mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    if mode in ("1", "L"):
        return image.convert("LA" if alpha else "L")
    return image.convert("RGBA" if alpha else "RGB")


def levels_of(values: npt.NDArray[Any], hole: Hole) -> tuple[float, float]:
    """Return which values of a picture, (H, W) or (H, W, C), stand for 0 and 1, judged by its known pixels.

    8 and 16 bits span their range; wider integers the 16-bit range, floats [0, 1] or [0, 255], where they fit, else
    what is there.

    Raises:
        ValueError: Known pixels that are NaN or infinite.
    """
    if values.dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(values.dtype).max)
    known = values[~hole]
    low, high = float(known.min()), float(known.max())
    if not np.isfinite(known).all():
        raise ValueError("the picture holds NaN or infinite values outside the hole")
    for top in (1.0, 255.0) if values.dtype.kind == "f" else (65535.0,):
        if low >= 0 and high <= top:
            return 0.0, top
    return low, high if high > low else low + 1


def _unit(pixels: npt.NDArray[Any], levels: tuple[float, float]) -> npt.NDArray[np.float32]:
    """(h, w) or (h, w, C) -> (h, w, 3) in [0, 1]."""
    stacked = pixels.reshape(*pixels.shape[:2], -1)
    color = stacked[..., : _colors(stacked)].astype(np.float32)
    unit = (color - np.float32(levels[0])) / np.float32(levels[1] - levels[0])
    return np.array(np.broadcast_to(unit, (*pixels.shape[:2], 3)))


def _put(pixels: npt.NDArray[Any], hole: Hole, filled: Tensor, levels: tuple[float, float]) -> None:
    """Write (3, h, w) in [0, 1] into the hole of (h, w) or (h, w, C) as its type holds it."""
    stacked = pixels.reshape(*pixels.shape[:2], -1)  # a view: rows of a region keep their order
    values = filled.permute(1, 2, 0).numpy()[hole]  # (n, 3)
    if _colors(stacked) == 1:
        values = (values @ _GRAY)[:, None]
    values = values * np.float32(levels[1] - levels[0]) + np.float32(levels[0])
    if pixels.dtype.kind != "f":
        values = np.floor(values + np.float32(0.5))
    for channel in range(_colors(stacked)):
        stacked[..., channel][hole] = values[:, channel].astype(pixels.dtype)


def _colors(stacked: npt.NDArray[Any]) -> int:
    return 3 if stacked.shape[-1] >= 3 else 1
