"""A small writer of TensorFlow V2 checkpoints, for what the golden one does not have."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from fastinpaint.checkpoint.tensorflow.checksum import masked_crc32c
from fastinpaint.checkpoint.tensorflow.sstable import MAGIC

DTYPES = {"f4": 1, "f8": 2, "i4": 3, "u1": 4, "i2": 5, "i1": 6, "c8": 8, "i8": 9, "b1": 10, "f2": 19, "u4": 22}
BFLOAT16, STRING = 14, 7


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(
    dtype: int, shape: tuple[int, ...], shard: int, offset: int, data: bytes, *, size: int | None = None
) -> bytes:
    """Serialise a BundleEntryProto."""
    dims = b"".join(field(2, field(1, size)) for size in shape)
    body = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset)
    body += field(5, len(data) if size is None else size)
    return body + varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(data))


def extents(*slice_: tuple[int, int | None]) -> bytes:
    """Serialise a TensorSliceProto as one of an entry's slices: (start, length), None for the whole axis."""
    fields = [b"" if length is None else field(1, start) + field(2, length) for start, length in slice_]
    return field(7, b"".join(field(1, each) for each in fields))


def header(shards: int = 1, endianness: int = 0) -> bytes:
    """Serialise a BundleHeaderProto."""
    return field(1, shards) + field(2, endianness) + field(3, field(1, 1))


def table(entries: dict[bytes, bytes], *, block_entries: int = 1000) -> bytes:
    """Serialise a table; ``block_entries`` sets how many entries go into a block."""
    out = b""

    def add(items: list[tuple[bytes, bytes]], restart_interval: int) -> bytes:
        nonlocal out
        body, restarts, previous = b"", [], b""
        for number, (key, value) in enumerate(items):
            shared = 0
            if number % restart_interval == 0:
                restarts.append(len(body))
            else:
                while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                    shared += 1
            body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            previous = key
        restarts = restarts or [0]
        body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
        body += b"\0"  # not compressed
        handle = varint(len(out)) + varint(len(body) - 1)
        out += body + struct.pack("<I", masked_crc32c(body))
        return handle

    items = sorted(entries.items())
    blocks = [items[start : start + block_entries] for start in range(0, len(items), block_entries)]
    handles = [(block[-1][0], add(block, 16)) for block in blocks]
    meta = add([], 1)
    index = add(handles, 1)
    return out + (meta + index).ljust(40, b"\0") + MAGIC


def table_of_blocks(*bodies: bytes, compression: int = 0, offsets: tuple[int, ...] = ()) -> bytes:
    """Serialise a table of given block contents, right checksums and all; ``offsets`` replaces their places."""
    out, handles = b"", []
    for number, body in enumerate(bodies):
        start = offsets[number] if offsets else len(out)
        handles.append(varint(start) + varint(len(body)))
        sealed = body + bytes([compression])
        out += sealed + struct.pack("<I", masked_crc32c(sealed))
    index = b"".join(b"\0\1" + varint(len(handle)) + bytes([65 + n]) + handle for n, handle in enumerate(handles))
    index += struct.pack("<2I", 0, 1) + b"\0"
    place = varint(0) + varint(0) + varint(len(out)) + varint(len(index) - 1)
    return out + index + struct.pack("<I", masked_crc32c(index)) + place.ljust(40, b"\0") + MAGIC


def write_checkpoint(
    prefix: Path, variables: dict[str, Any], *, shards: int = 1, **table_options: Any
) -> dict[bytes, bytes]:
    """Write a checkpoint, variables dealt to the shards in turn; returns the entries of its index."""
    contents = [b""] * shards
    entries = {b"": header(shards)}
    for number, (name, value) in enumerate(variables.items()):
        array = np.asarray(value)
        data = array.tobytes()
        shard = number % shards
        entries[name.encode()] = entry(DTYPES[array.dtype.str[1:]], array.shape, shard, len(contents[shard]), data)
        contents[shard] += data
    for shard, content in enumerate(contents):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    Path(f"{prefix}.index").write_bytes(table(entries, **table_options))
    return entries
