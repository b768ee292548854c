"""The sorted key-value table of LevelDB, as TensorFlow writes it: the format of a checkpoint's index.

Blocks of entries, an index block whose values locate them, and a footer that locates the index block. Every
ValueError says what is wrong with the bytes; the caller, who knows it, adds the name of the file.
"""

from __future__ import annotations

from fastinpaint.checkpoint.tensorflow.checksum import masked_crc32c

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
    if compression:
        kind = "Snappy" if compression == 1 else f"the unknown type {compression}"
        raise ValueError(
            f"the block at byte {offset} is compressed ({kind}), which is not supported: "
            "TensorFlow's checkpoint writer never compresses"
        )
    return _parse_block(block)


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
