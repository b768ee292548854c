"""Photoshop's image resources, IPTC captions among them, as JPEG and TIFF files hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

_HEADER = b"Photoshop 3.0\0"
_APP13, _COMMENT = 0xFFED, 0xFFFE
_LARGEST = 65_000  # bytes of a segment of a JPEG file
_IPTC = 0x0404
# Thumbnails, quick mask, and copies of EXIF, XMP and the colour profile, which are kept by themselves.
_LEFT_OUT = (0x0409, 0x040C, 0x03FE, 0x0422, 0x0423, 0x0424, 0x040F)
_PREVIEWS = (200, 201, 202)  # datasets of IPTC's record 2; records from 7 on describe and hold the picture


def resources_of_jpeg(segments: Sequence[tuple[str, bytes]]) -> bytes:
    """Join the image resources of a JPEG file's segments, (marker, content) each."""
    return b"".join(s[len(_HEADER) :] for name, s in segments if name == "APP13" and s.startswith(_HEADER))


def without_pictures(resources: bytes, is_picture: Callable[[bytes], bool]) -> bytes:
    """Return image resources without those that hold a picture.

    Raises:
        ValueError: They are cut off or damaged.
    """
    kept = []
    for number, head, content in _resources(resources):
        if number == _IPTC:
            content = b"".join(_datasets(content))  # noqa: PLW2901
        if number not in _LEFT_OUT and content and not is_picture(content):
            kept.append(head + len(content).to_bytes(4, "big") + content + b"\0" * (len(content) % 2))
    return b"".join(kept)


def jpeg_segments(resources: bytes, comments: Sequence[bytes]) -> bytes:
    """Return the segments of a JPEG file that hold image resources and comments."""
    parts = [_HEADER + resources[i : i + _LARGEST] for i in range(0, len(resources), _LARGEST)]
    marked = [(_APP13, part) for part in parts] + [(_COMMENT, comment[:_LARGEST]) for comment in comments]
    return b"".join(
        marker.to_bytes(2, "big") + (len(part) + 2).to_bytes(2, "big") + part for marker, part in marked
    )  # fmt: skip


def _resources(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, head (signature, number, name) and content of each image resource."""
    at = 0
    while block[at:].strip(b"\0"):
        name_end = at + 7 + block[at + 6 : at + 7][0] if len(block) > at + 6 else at
        name_end += (name_end - at) % 2
        start = name_end + 4
        end = start + int.from_bytes(block[name_end:start], "big")
        if block[at : at + 4] not in (b"8BIM", b"MeSa", b"PHUT", b"AgHg", b"DCSR") or end > len(block):
            raise ValueError("an image resource is cut off or damaged")
        yield int.from_bytes(block[at + 4 : at + 6], "big"), block[at:name_end], block[start:end]
        at = end + (end - start) % 2


def _datasets(iptc: bytes) -> Iterator[bytes]:
    """Yield the datasets of an IPTC record that hold no picture."""
    at = 0
    while iptc[at:].strip(b"\0"):
        head, size = iptc[at : at + 5], int.from_bytes(iptc[at + 3 : at + 5], "big")
        if size & 0x8000:  # so many bytes of the size follow
            head = iptc[at : at + 5 + (size & 0x7FFF)]
            size = int.from_bytes(head[5:], "big")
        end = at + len(head) + size
        if head[:1] != b"\x1c" or len(head) < 5 or end > len(iptc):
            raise ValueError("its IPTC record is cut off or damaged")
        if head[1] < 7 and not (head[1] == 2 and head[2] in _PREVIEWS):
            yield iptc[at:end]
        at = end
