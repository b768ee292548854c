"""What a picture file holds beside its pixels: which of it a filled picture keeps, and how."""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, TypeVar

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from fastinpaint.inference.photoshop import resources_of_jpeg, without_pictures

T = TypeVar("T")

XMP, RESOURCES, _LAYERS = 700, 34377, 37724  # tags of TIFF files: XMP, Photoshop's image resources and layers
# Tags of TIFF files that describe how their pixels are stored, or hold or point at other pictures.
_STRUCTURE = {
    *range(254, 270), *range(273, 282), 284, 288, 289, 290, 291, 292, 293, 297, 301, 317, *range(320, 348),
    *range(512, 522), *range(529, 533), XMP, RESOURCES, 34675, _LAYERS, 50706, 50740,
    IFD.Exif, IFD.GPSInfo, IFD.Interop,
}  # fmt: skip
# How pictures start: JPEG (some makers' notes change its first byte), PNG, GIF, WebP, AVIF and HEIC.
_PICTURE = re.compile(rb"\xd8\xff[\xc0-\xfe]|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|ftyp(?:avi|hei|mif)", re.DOTALL)
_SPACING = re.compile(rb"\s|&#x?[0-9a-fA-F]{1,4};")  # breaks long lines of base 64
_BASE64, _HEX = re.compile(rb"[A-Za-z0-9+/]{64,}"), re.compile(rb"(?:[0-9a-fA-F]{2}){32,}")
_FIELD = re.compile(rb"(?<=[>\"'])(?:data:[^,<>\"']{0,99},)?([A-Za-z0-9+/=&#;\s]{96,})(?=[<\"'])")  # of XML
_THUMBNAILS = re.compile(rb"<(\w+:Thumbnails)\b.*?</\1>", re.DOTALL)
# Of an XMP packet, as attributes and as elements: how a viewer is to turn the picture, which is upright, and its size.
_GEOMETRY = re.compile(
    rb"""\s(tiff:(?:Orientation|ImageWidth|ImageLength)|exif:Pixel[XY]Dimension)\s*=\s*(?:"[^"]*"|'[^']*')"""
    rb"""|<(tiff:(?:Orientation|ImageWidth|ImageLength)|exif:Pixel[XY]Dimension)\b[^>]*>[^<]*</\2\s*>"""
)
_BY_ITSELF = b"Created by OpenJPEG"  # begins the comment that this library writes
_SPACES = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "I": b"GRAY", "F": b"GRAY", "CMYK": b"CMYK"}


@dataclass(frozen=True)
class Metadata:
    """What is kept; empty where there is nothing.

    Attributes:
        exif: EXIF data without orientation, thumbnail and previews.
        icc: Colour profile.
        xmp: XMP packet without orientation, size and previews.
        dpi: Horizontal and vertical resolution.
        text: Keywords and texts of a PNG file.
        comments: Comments of a JPEG, JPEG 2000 or GIF file.
        photoshop: Photoshop's image resources without thumbnails, IPTC among them, of a JPEG or TIFF file.
        chunks: Chunks of a PNG file that say what its colours mean.
        others: What else there is, in words; it is never kept.
    """

    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    comments: tuple[bytes, ...] = ()
    photoshop: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """What there is, in words."""
        parts = {
            "EXIF": self.exif, "ICC profile": self.icc, "XMP": self.xmp, "resolution": self.dpi, "text": self.text,
            "comments": self.comments, "IPTC and other Photoshop data": self.photoshop,
        }  # fmt: skip
        return [*(name for name, part in parts.items() if part), *self.others]


def read_metadata(image: Image.Image, path: str | PathLike[str]) -> Metadata:
    """Collect the metadata of an opened, upright picture. A part that cannot be read is left out with a warning."""

    def part(name: str, read: Callable[[Image.Image], T], none: T) -> T:
        try:
            return read(image)
        except Exception as error:  # Pillow raises many types for damaged data
            warnings.warn(f"{path}: its {name} is left out, it cannot be read: {error}", RuntimeWarning, stacklevel=3)
            return none

    return Metadata(
        exif=part("EXIF data", _exif, b""),
        icc=part("ICC profile", lambda image: bytes(image.info.get("icc_profile") or b""), b""),
        xmp=part("XMP", _xmp, b""),
        dpi=part("resolution", _dpi, None),
        text=part("text", _text, {}),
        comments=part("comments", _comments, ()),
        photoshop=part("Photoshop data", _photoshop, b""),
        chunks=part("colour data", _color_chunks, ()),
        others=part("further data", _others, ()),
    )


def fitting_icc(icc: bytes, mode: str) -> bytes:
    """Return the profile if it is one for pictures of this mode, else nothing."""
    space = _SPACES.get(mode, b"RGB ")
    return icc if icc[36:40] == b"acsp" and icc[16:20] == space else b""


def png_info(metadata: Metadata) -> PngInfo:
    """Return what Pillow writes into PNG files beside EXIF, profile and resolution."""
    info = PngInfo()
    for kind, content in metadata.chunks:
        info.add(kind, content)
    if metadata.xmp:
        info.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    for keyword, text in metadata.text.items():
        info.add_text(keyword, text)
    for comment in metadata.comments:
        info.add_text("Comment", _decoded(comment))
    return info


def _exif(image: Image.Image) -> bytes:
    stored = bytes(image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    if stored and stored[:2] not in (b"II", b"MM"):
        raise ValueError("it has no header")
    found = image.getexif()
    kept = Image.Exif()
    kept.update({tag: value for tag, value in found.items() if tag not in _STRUCTURE and not _is_picture(value)})
    kept.pop(Base.Orientation, None)
    for ifd in (IFD.Exif, IFD.GPSInfo):
        inner = {tag: value for tag, value in found.get_ifd(ifd).items() if not _is_picture(value)}
        inner.pop(IFD.Interop, None)
        for tag, size in ((Base.ExifImageWidth, image.width), (Base.ExifImageHeight, image.height)):
            if ifd == IFD.Exif and tag in inner:
                inner[tag] = size
        if inner:
            kept.get_ifd(ifd).update(inner)
    described = any(tag not in (Base.XResolution, Base.YResolution, Base.ResolutionUnit) for tag in kept)
    return kept.tobytes() if described or any(kept.get_ifd(ifd) for ifd in (IFD.Exif, IFD.GPSInfo)) else b""


def _is_picture(value: Any) -> bool:
    """Tell whether a value holds a picture, as previews in makers' notes do; also in base 64 or hexadecimal."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        return False
    dense = _SPACING.sub(b"", value)
    decoded = [base64.b64decode(run[: len(run) // 4 * 4]) for run in _BASE64.findall(dense)]
    decoded += [bytes.fromhex(run.decode()) for run in _HEX.findall(dense)]
    return any(_PICTURE.search(content) for content in (value, *decoded))


def _xmp(image: Image.Image) -> bytes:
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    packet = found.encode("utf-8") if isinstance(found, str) else bytes(found)
    if b"\0" in packet.strip(b"\0"):
        raise ValueError("it is not in UTF-8")
    packet = _GEOMETRY.sub(b"", _FIELD.sub(_without_binary, _THUMBNAILS.sub(b"", packet)))
    if b"/9j/" in packet or b"iVBORw0KGgo" in packet or _is_picture(packet):  # starts of JPEG and PNG in base 64
        raise ValueError("it holds a preview")
    return packet


def _without_binary(field: re.Match[bytes]) -> bytes:
    """The field of an XMP packet, empty if it holds base 64, as previews and depth maps do."""
    return b"" if max(map(len, _SPACING.split(field[1]))) >= 48 else field[0]


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    found = image.info.get("dpi")
    if found is None:
        return None
    across, down = (float(value) for value in found)
    return (across, down) if all(math.isfinite(value) and 0 < value < 1e6 for value in (across, down)) else None


def _text(image: Image.Image) -> dict[str, str]:
    found = getattr(image, "text", {}) or {}
    return {
        str(key): str(value)
        for key, value in found.items()
        if key != "XML:com.adobe.xmp" and not key.startswith("Raw profile type") and not _is_picture(str(value))
    }


def _segments(image: Image.Image) -> list[tuple[str, bytes]]:
    """Markers and contents of a JPEG file's segments."""
    return getattr(image, "applist", [])


def _comments(image: Image.Image) -> tuple[bytes, ...]:
    found = [content for marker, content in _segments(image) if marker == "COM"]
    if image.format in ("GIF", "JPEG2000"):
        found = [image.info.get("comment") or b""]
    return tuple(one for one in found if one.strip(b"\0 ") and not one.startswith(_BY_ITSELF) and not _is_picture(one))


def _decoded(comment: bytes) -> str:
    comment = comment.rstrip(b"\0")
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _photoshop(image: Image.Image) -> bytes:
    stored = resources_of_jpeg(_segments(image))
    if image.format == "TIFF":
        stored = bytes(image.tag_v2.get(RESOURCES) or b"")  # type: ignore[attr-defined]
    return without_pictures(stored, _is_picture)


def _others(image: Image.Image) -> tuple[str, ...]:
    """Name what is neither kept nor a preview nor part of how the pixels are stored."""
    known = {
        "APP0": (b"JFIF", b"JFXX"), "APP1": (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"),
        "APP2": (b"ICC_PROFILE\0", b"MPF\0"), "APP13": (b"Photoshop 3.0\0",), "APP14": (b"Adobe",), "COM": (b"",),
    }  # fmt: skip
    found = [f"{name} segments" for name, content in _segments(image) if not content.startswith(known.get(name, ()))]
    chunks = [chunk[0].decode("latin-1") for chunk in getattr(image, "private_chunks", [])]
    found += [f"{name} chunks" for name in chunks if name not in ("eXIf", "iCCP")]
    found += [key.lower() for key in getattr(image, "text", None) or {} if _is_raw_profile(key)]
    if image.mode == "I;16" and "transparency" in image.info:
        found.append("its transparent grey value")
    if image.format == "TIFF" and _LAYERS in image.tag_v2:  # type: ignore[attr-defined]
        found.append("Photoshop layers")
    return tuple(dict.fromkeys(found))


def _is_raw_profile(key: str) -> bool:
    """Whether a PNG file's text holds another kind of metadata in hexadecimal; EXIF among them is read as such."""
    return key.startswith("Raw profile type") and not key.endswith((" exif", " APP1"))


def _color_chunks(image: Image.Image) -> tuple[tuple[bytes, bytes], ...]:
    chunks = []
    if image.format == "PNG":
        if "chromaticity" in image.info:
            points = b"".join(round(value * 1e5).to_bytes(4, "big") for value in image.info["chromaticity"])
            chunks.append((b"cHRM", points))
        if "gamma" in image.info:
            chunks.append((b"gAMA", round(image.info["gamma"] * 1e5).to_bytes(4, "big")))
        if "srgb" in image.info:
            chunks.append((b"sRGB", bytes([image.info["srgb"]])))
    return tuple(chunks)
