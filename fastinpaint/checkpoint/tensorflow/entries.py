"""The protocol buffers in a checkpoint's index: its header, and where each variable lies.

Every ValueError says what is wrong with the bytes; the caller adds the name of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastinpaint.checkpoint.tensorflow.sstable import read_varint, take

Extent = tuple[int, int | None]  # start, length; no length: the whole axis
Slice = tuple[Extent, ...]


class Entry(NamedTuple):
    """A ``BundleEntryProto``: ``size`` bytes from ``offset`` on in data file number ``shard``.

    A partitioned variable has ``slices``, each of which is an entry of its own, and no bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[Slice, ...]


def parse_header(data: bytes | None) -> int:
    """Return the number of data files from a ``BundleHeaderProto``."""
    if data is None:
        raise ValueError("it has no header entry")
    fields = dict(_parse_fields(data))
    if _integer(fields.get(2, 0)) != 0:
        raise ValueError("it was written on a big-endian machine, which is not supported")
    shards = _integer(fields.get(1, 0))
    if shards < 1:
        raise ValueError(f"it claims {shards} data files")
    return shards


def parse_entry(data: bytes) -> Entry:
    """Parse a ``BundleEntryProto``."""
    pairs = list(_parse_fields(data))
    fields = dict(pairs)
    dtype, shard, offset, size, checksum = (_integer(fields.get(number, 0)) for number in (1, 3, 4, 5, 6))
    shape = _parse_shape(_message(fields.get(2, b"")))
    slices = tuple(_parse_slice(_message(value), shape) for number, value in pairs if number == 7)
    return Entry(dtype, shape, shard, offset, size, checksum, slices)


def slice_key(name: bytes, extents: Slice) -> bytes:
    """Return the key of one slice of a partitioned variable: TensorFlow's ordered code of name and extents."""
    key = b"\0" + name.replace(b"\0", b"\0\xff") + b"\0\1"  # UTF-8 has no byte 255, which is escaped too
    key += bytes([1, len(extents)]) if extents else b"\0"
    for start, length in extents:
        key += _ordered(start) + _ordered(-1 if length is None else length)
    return key


def _ordered(value: int) -> bytes:
    """Encode a number of at least -64: as many leading ones as bytes, then a zero, then the number."""
    if value < 0:
        return bytes([0x80 ^ (value & 0xFF)])
    size = value.bit_length() // 7 + 1
    return (value | ((1 << size) - 1) << 7 * size).to_bytes(size, "big")


def _parse_shape(data: bytes) -> tuple[int, ...]:
    """Parse a ``TensorShapeProto``: field 2, repeated, holds messages whose field 1 is a size."""
    dimensions = []
    for number, value in _parse_fields(data):
        if number == 2 and isinstance(value, bytes):
            dimensions.append(_integer(dict(_parse_fields(value)).get(1, 0)))
    if min(dimensions, default=0) < 0 or len(dimensions) > 32:
        raise ValueError(f"a shape is {dimensions[:33]}")
    return tuple(dimensions)


def _parse_slice(data: bytes, shape: tuple[int, ...]) -> Slice:
    """Parse a ``TensorSliceProto``: field 1, repeated, holds a start (field 1) and perhaps a length (field 2)."""
    extents: list[Extent] = []
    for number, value in _parse_fields(data):
        if number == 1:
            fields = dict(_parse_fields(_message(value)))
            extents.append((_integer(fields.get(1, 0)), _integer(fields[2]) if 2 in fields else None))
    bad = len(extents) != len(shape) or any(
        not 0 <= start <= size or (length is not None and not 0 <= length <= size - start) or (start and length is None)
        for (start, length), size in zip(extents, shape, strict=False)
    )
    if bad:
        raise ValueError(f"a slice of shape {shape} is {extents[:33]}")
    return tuple(extents)


def _parse_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field numbers and values of a protocol buffer; integers are signed 64 bit, or fixed unsigned 32."""
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = read_varint(data, position)
            yield tag >> 3, value - (value >> 63 << 64)
            continue
        if kind == 2:
            size, position = read_varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a message holds a field of the unknown kind {kind}")
        raw = take(data, position, size)
        position += size
        yield tag >> 3, raw if kind == 2 else int.from_bytes(raw, "little")


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a message holds bytes where a number belongs")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a message holds a number where a message belongs")
    return value
