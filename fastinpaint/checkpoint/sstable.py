"""The sorted key-value table of LevelDB, as TensorFlow writes it: the format of a checkpoint's index.

Blocks of entries, an index block whose values locate them, and a footer that locates the index block. Every
ValueError says what is wrong with the bytes; the caller, who knows it, adds the name of the file.
"""

from __future__ import annotations

from fastinpaint.checkpoint.crc32c import masked_crc32c

FOOTER_SIZE = 48
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_TRAILER_SIZE = 5  # compression type, checksum
_LONGEST_KEY = 4096


def read_table(content: bytes) -> dict[bytes, bytes]:
    """Return the entries of a table, in its order. Raises ValueError when the bytes are not a whole table."""
    if content[-len(MAGIC) :] != MAGIC or len(content) < FOOTER_SIZE:
        raise ValueError("it does not end with the footer of a table")
    footer = content[-FOOTER_SIZE:]
    _, _, position = _read_handle(footer, 0)  # of the meta index, which TensorFlow leaves empty
    offset, size, _ = _read_handle(footer, position)
    entries: dict[bytes, bytes] = {}
    end = 0
    for handle in _read_block(content, offset, size).values():
        offset, size, _ = _read_handle(handle, 0)
        if offset < end:
            raise ValueError(f"its blocks overlap at byte {offset}")
        entries.update(_read_block(content, offset, size))
        end = offset + size + _TRAILER_SIZE
    return entries


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return an unsigned integer of at most 64 bits, seven to a byte, and the position behind it."""
    value = 0
    for count, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + count + 1
    raise ValueError("an integer in it is cut off or too long")


def take(data: bytes, position: int, size: int) -> bytes:
    """Return exactly ``size`` bytes from ``position`` on."""
    if size > len(data) - position:
        raise ValueError(f"it says that {size} bytes follow where {len(data) - position} are left")
    return data[position : position + size]


def _read_handle(data: bytes, position: int) -> tuple[int, int, int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return offset, size, position


def _read_block(content: bytes, offset: int, size: int) -> dict[bytes, bytes]:
    if offset + size + _TRAILER_SIZE > len(content):
        raise ValueError(f"a block of {size} bytes at byte {offset} reaches beyond its {len(content)} bytes")
    body = content[offset : offset + size + 1]
    stored = int.from_bytes(content[offset + size + 1 : offset + size + _TRAILER_SIZE], "little")
    if masked_crc32c(body) != stored:
        raise ValueError(f"the checksum of the block at byte {offset} is wrong")
    block, compression = body[:-1], body[-1]
    if compression > 1:
        raise ValueError(f"the block at byte {offset} has the unknown compression type {compression}")
    return _parse_block(decompress_snappy(block) if compression else block)


def _parse_block(block: bytes) -> dict[bytes, bytes]:
    """Return the entries: lengths of the shared part of the key, the rest of it, the value; then those two."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block is shorter than its list of restart points")
    entries: dict[bytes, bytes] = {}
    key, position = b"", 0
    while position < end:
        shared, position = read_varint(block, position)
        fresh, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or shared + fresh > _LONGEST_KEY:
            raise ValueError(f"a key shares {shared} of {len(key)} bytes and adds {fresh}")
        key = key[:shared] + take(block, position, fresh)
        position += fresh
        entries[key] = take(block, position, length)
        position += length
    if position != end:
        raise ValueError("the last entry of a block runs into its restart points")
    return entries


def decompress_snappy(data: bytes) -> bytes:
    """Return the plain bytes of a raw Snappy stream (no framing)."""
    expected, position = read_varint(data, 0)
    output = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        if tag & 3 == 0:
            length, extra = tag >> 2, max(0, (tag >> 2) - 59)
            if extra:
                length = int.from_bytes(take(data, position, extra), "little")
            output += take(data, position + extra, length + 1)
            position += extra + length + 1
        else:
            width = (0, 1, 2, 4)[tag & 3]
            back = int.from_bytes(take(data, position, width), "little")
            position += width
            length = (tag >> 2) + 1
            if width == 1:
                back, length = back | (tag >> 5) << 8, (tag >> 2 & 7) + 4
            _copy_back(output, back, length)
    if len(output) != expected:
        raise ValueError(f"a compressed block holds {len(output)} bytes, not the {expected} it promises")
    return bytes(output)


def _copy_back(output: bytearray, back: int, length: int) -> None:
    """Append ``length`` bytes from ``back`` before the end; a copy may read what it has just written."""
    if not 0 < back <= len(output):
        raise ValueError(f"a compressed block refers {back} bytes back, where {len(output)} are known")
    start = len(output) - back
    pattern = output[start : start + length]
    output += (pattern * (length // len(pattern) + 1))[:length]
