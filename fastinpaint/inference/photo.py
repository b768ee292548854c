"""Picture files to be filled: their pixels at full depth, and what else they hold."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ExifTags import Base

from fastinpaint.data.images import PathLike, name_of, open_binary, open_upright
from fastinpaint.extras import extra
from fastinpaint.inference.metadata import Metadata, read_metadata

with extra("opencv"):
    import cv2

Pixels = Image.Image | npt.NDArray[np.uint16]  # an array, (H, W, 3) or (H, W, 4), where Pillow has no mode of its depth

_HEAD = 4096  # bytes in which a header tells the depth
_TURNED = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
_TURNED |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


@dataclass
class Photo:
    """A picture, upright, and the metadata that a filled one keeps."""

    pixels: Pixels
    metadata: Metadata

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.height, self.pixels.width
        return self.pixels.shape[0], self.pixels.shape[1]


def read_photo(source: PathLike | bytes) -> Photo:
    """Read a picture file, or the content of one, at its depth.

    Warns of further frames, and of depth beyond what can be read.

    Raises:
        ValueError: The file is missing, damaged or not an image; the message names it.
    """
    name = name_of(source)
    with open_upright(source) as image:
        metadata = read_metadata(image, name)
        depth = 8 if image.mode in ("I", "I;16", "F") else _depth(source, image)
    frames = _frames(source)
    if frames > 1:
        message = f"{name} holds {frames} frames: only the first is filled and written"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    if image.mode == "LAB":
        warnings.warn(f"{name} holds L*a*b* colours: it is written as RGB", RuntimeWarning, stacklevel=2)
    if image.mode == "I" and image.format == "PPM":  # 16 bits
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    if depth > 8:
        deep = _read_deep(source, image)
        if deep is not None:
            return Photo(deep, metadata)
        warnings.warn(f"{name} holds {depth} bits per channel: 8 of them are kept", RuntimeWarning, stacklevel=2)
    return Photo(image, metadata)


def _frames(source: PathLike | bytes) -> int:
    """Count frames in a file that is opened anew: counting may forget the pixels that were decoded."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # damaged behind the first frame, or read without its metadata
        return 1


def _depth(source: PathLike | bytes, image: Image.Image) -> int:
    """Return the bits per channel that the file holds, as far as its header is known."""
    with open_binary(source) as file:
        head = file.read(_HEAD)
    if image.format == "PNG":
        return head[24]
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(Base.BitsPerSample, (8,))))  # type: ignore[attr-defined]
    if image.format == "PPM":
        header = re.match(rb"P[36]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)\s", head)
        return int(header[1]).bit_length() if header else 8
    if image.format == "JPEG2000" and (start := head.find(b"\xff\x51\x00")) >= 0 and start + 40 < len(head):
        return (head[start + 40] & 0x7F) + 1
    if image.format == "AVIF" and (start := head.find(b"av1C")) >= 0 and start + 6 < len(head):
        return {0b00: 8, 0b10: 10, 0b11: 12}.get(head[start + 6] >> 5 & 0b11, 8)
    return 8


def _read_deep(source: PathLike | bytes, image: Image.Image) -> npt.NDArray[np.uint16] | None:
    """Return (H, W, 3) or (H, W, 4), upright; None for what OpenCV does not read as 16 bits, or reads otherwise."""
    if image.format not in ("PNG", "TIFF", "PPM"):
        return None
    with open_binary(source) as file:
        content = file.read()
    found: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    color = cv2.cvtColor(found, cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    with Image.open(io.BytesIO(content)) as stored:
        try:
            turn = _TURNED.get(stored.getexif().get(Base.Orientation, 1))
        except Exception:  # broken EXIF, which open_upright has named
            turn = None
    upright = np.ascontiguousarray(turn(color) if turn else color)
    coarse = np.asarray(image.convert("RGB"))
    if upright.shape[:2] != coarse.shape[:2] or np.abs((upright[..., :3] >> 8).astype(np.int16) - coarse).max() > 1:
        return None
    return np.asarray(upright, np.uint16)
