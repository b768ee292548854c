"""Encoding filled pictures: which formats hold which pixels exactly."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastinpaint.extras import extra
from fastinpaint.inference.metadata import RESOURCES, XMP, Metadata, fitting_icc, png_info
from fastinpaint.inference.photo import Pixels
from fastinpaint.inference.photoshop import jpeg_segments

with extra("opencv"):
    import cv2

_LARGE = 2**24  # pixels; PNG files of more are compressed less, or writing takes longer than filling


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: Pillow's.
        modes: Pillow's modes that it holds, and RGB;16 for 16 bits per channel, with or without alpha.
        holds: Metadata that it has a place for.
        options: For Pillow.
        lossless: Whether pixels come back bit for bit.
        color_only: Grey is written as RGB, with the same values.
    """

    name: str
    modes: tuple[str, ...]
    holds: tuple[str, ...] = ("EXIF", "ICC profile", "XMP", "resolution")
    options: dict[str, Any] = field(default_factory=dict)
    lossless: bool = True
    color_only: bool = False


_PHOTOSHOP = "IPTC and other Photoshop data"
_PNG = Format(
    "PNG", ("L", "LA", "RGB", "RGBA", "I;16", "RGB;16"),
    ("EXIF", "ICC profile", "XMP", "resolution", "text", "comments"),
)  # fmt: skip
_TIFF_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "RGB;16")
_TIFF = Format(
    "TIFF", _TIFF_MODES, ("EXIF", "ICC profile", "XMP", "resolution", _PHOTOSHOP),
    options={"compression": "tiff_adobe_deflate"},
)  # fmt: skip
_JPEG = Format(
    "JPEG", ("L", "RGB", "CMYK"), ("EXIF", "ICC profile", "XMP", "resolution", "comments", _PHOTOSHOP),
    options={"quality": 95, "subsampling": 0}, lossless=False,
)  # fmt: skip
_PPM = Format("PPM", ("L", "RGB", "I;16"), ())
FORMATS = {
    ".png": _PNG,
    **dict.fromkeys((".tif", ".tiff"), _TIFF),
    ".webp": Format(
        "WEBP", ("RGB", "RGBA"), ("EXIF", "ICC profile", "XMP"), {"lossless": True, "exact": True}, color_only=True
    ),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _JPEG),
    ".avif": Format(
        "AVIF", ("RGB", "RGBA"), ("EXIF", "ICC profile", "XMP"), {"quality": 95, "subsampling": "4:4:4"},
        lossless=False, color_only=True,
    ),
    ".bmp": Format("BMP", ("L", "RGB"), ("resolution",)),
    **dict.fromkeys((".ppm", ".pnm"), _PPM),
    ".pgm": Format("PPM", ("L", "I;16"), ()),
    ".jp2": Format("JPEG2000", ("L", "LA", "RGB", "RGBA", "I;16"), ("comments",)),
    ".tga": Format("TGA", ("L", "LA", "RGB", "RGBA"), ()),
}  # fmt: skip


def format_of(path: Path) -> Format:
    """Return the format that a file's suffix asks for. Raises ValueError for one that cannot hold a filled picture."""
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise ValueError(f"{path.name} has none of the suffixes of formats that are written: {', '.join(FORMATS)}")
    return found


def encode(pixels: Pixels, metadata: Metadata, path: Path, *, fast: bool = False) -> memoryview:
    """Return the bytes of a picture file in the format of ``path``.

    Metadata that the format has no place for, that does not fit the picture's mode, or that cannot be written is left
    out with a warning. ``fast`` compresses PNG files less.

    Raises:
        ValueError: The format does not hold such pictures: their alpha, depth or colours would be lost.
    """
    target = format_of(path)
    mode = pixels.mode if isinstance(pixels, Image.Image) else "RGB;16"
    if target.color_only and mode in ("L", "LA") and isinstance(pixels, Image.Image):
        pixels = pixels.convert("RGB" if mode == "L" else "RGBA")
        mode = pixels.mode
    if mode not in target.modes:
        raise ValueError(f"{target.name} cannot hold {_describe(mode)} of {path.name} unchanged: choose another format")
    lost = [name for name in metadata.names if name not in target.holds]
    icc = fitting_icc(metadata.icc, mode) if "ICC profile" in target.holds else b""
    if metadata.icc and not icc and "ICC profile" in target.holds:
        lost.append(f"an ICC profile that is not one for {_describe(mode)}")
    if lost and lost != ["resolution"]:
        warnings.warn(f"{path} goes without {', '.join(lost)}", RuntimeWarning, stacklevel=2)
    if not isinstance(pixels, Image.Image):
        return _encode_deep(pixels, metadata, icc, target, path)
    if hasattr(pixels, "tag_v2"):  # Pillow copies some tags of a TIFF file, previews included, into the next
        pixels = pixels.copy()
    pixels.info = {}
    kept = _options(metadata, icc, target)
    options = dict(target.options)
    if target.name == "PNG" and (fast or pixels.width * pixels.height > _LARGE):
        options["compress_level"] = 1
    buffer = io.BytesIO()
    try:
        pixels.save(buffer, target.name, **(options | kept))
    except Exception as error:
        if not kept:
            raise
        warnings.warn(f"{path} goes without metadata, it cannot be written: {error}", RuntimeWarning, stacklevel=2)
        buffer = io.BytesIO()
        pixels.save(buffer, target.name, **options)
    return buffer.getbuffer()


def _options(metadata: Metadata, icc: bytes, target: Format) -> dict[str, Any]:
    """What Pillow is to write beside the pixels."""
    kept: dict[str, Any] = {}
    if metadata.exif and "EXIF" in target.holds:
        kept["exif"] = metadata.exif
    if icc:
        kept["icc_profile"] = icc
    if metadata.dpi and "resolution" in target.holds:
        kept["dpi"] = metadata.dpi
    if target.name == "PNG":
        kept["pnginfo"] = png_info(metadata)
    elif target.name == "TIFF":
        tags = Image.Exif()
        tags.load(metadata.exif)
        if metadata.xmp:
            tags[XMP] = metadata.xmp
        if metadata.photoshop:
            tags[RESOURCES] = metadata.photoshop
        kept["exif"] = tags
        if metadata.exif:
            kept["compression"] = None  # libtiff, which compresses, cannot write EXIF
    elif metadata.xmp and "XMP" in target.holds:
        kept["xmp"] = metadata.xmp
    if target.name == "JPEG" and (metadata.photoshop or metadata.comments):
        kept["extra"] = jpeg_segments(metadata.photoshop, metadata.comments)
    if target.name == "JPEG2000" and metadata.comments:
        kept["comment"] = b"\n".join(metadata.comments)
    return kept


def _encode_deep(
    pixels: np.ndarray, metadata: Metadata, icc: bytes, target: Format, path: Path
) -> memoryview:  # fmt: skip
    color = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    done, encoded = cv2.imencode(f".{target.name.lower()}", color)
    if not done:
        raise ValueError(f"{path.name} cannot be encoded with 16 bits per channel")
    content = encoded.tobytes()
    if target.name == "PNG":
        small = io.BytesIO()
        Image.new("RGB", (1, 1)).save(small, "PNG", **_options(metadata, icc, target))
        chunks = list(_png_chunks(content))
        beside = [chunk for chunk in _png_chunks(small.getvalue()) if chunk[4:8] not in (b"IHDR", b"IDAT", b"IEND")]
        content = content[:8] + b"".join([chunks[0], *beside, *chunks[1:]])
    elif metadata.names:
        warnings.warn(f"{path} goes without {', '.join(metadata.names)}", RuntimeWarning, stacklevel=3)
    return memoryview(content)


def _png_chunks(content: bytes) -> Iterator[bytes]:
    position = 8
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        yield content[position:end]
        position = end


def _describe(mode: str) -> str:
    names = {"RGB;16": "16 bits per channel", "I;16": "16-bit grey", "F": "floating-point grey", "I": "32-bit grey"}
    return names.get(mode, f"{mode} pixels")
