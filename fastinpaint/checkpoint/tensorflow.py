"""Reading TensorFlow V2 checkpoints without TensorFlow.

``NAME.index`` is a table from variable names to protocol buffers (``BundleEntryProto``: type, shape, place,
checksum), ``NAME.data-0000i-of-0000n`` hold the values one behind the other. Arrays keep TensorFlow's layouts.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fastinpaint.checkpoint.crc32c import masked_crc32c
from fastinpaint.checkpoint.sstable import FOOTER_SIZE, MAGIC, read_table, read_varint, take
from fastinpaint.files import PathLike

_STRING, _BFLOAT16 = 7, 14
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    8: "<c8",
    9: "<i8",
    10: "u1",  # bool; any byte but 0 is true
    _BFLOAT16: "<u2",
    17: "<u2",
    18: "<c16",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
_BOOL = 10
_SLOT = re.compile(r".*/Adam(_\d+)?|(.*/)?(beta[12]_power|global_step)(_\d+)?")


class _Entry(NamedTuple):
    """Where one variable lies: ``size`` bytes from ``offset`` on in data file number ``shard``."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


def read_tf_checkpoint(path: PathLike, *, optimizer_slots: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Read the variables of a TensorFlow V2 checkpoint; every checksum is verified.

    Args:
        path: the checkpoint's prefix, its ``.index`` file, or a folder (see `find_tf_checkpoint`).
        optimizer_slots: also return what `is_optimizer_slot` recognises.

    Returns:
        Arrays by variable name (without ``:0``), sorted by name, writable, in TensorFlow's layouts (convolution
        kernels are height, width, in, out). bfloat16 becomes float32. String tensors are left out.

    Raises:
        FileNotFoundError: there is no checkpoint, or one of its data files is missing.
        ValueError: a file is truncated, corrupt or of another kind, or a variable is partitioned or has a type
            that NumPy does not hold. The message names the file and the reason.
    """
    prefix = find_tf_checkpoint(path)
    index = Path(f"{prefix}.index")
    shards, entries = _read_index(index)
    by_shard: dict[int, dict[str, _Entry]] = defaultdict(dict)
    for name, entry in entries.items():
        by_shard[entry.shard][name] = entry
    arrays: dict[str, npt.NDArray[Any]] = {}
    for shard, members in by_shard.items():
        wanted = {
            name: entry
            for name, entry in members.items()
            if entry.dtype != _STRING and (optimizer_slots or not is_optimizer_slot(name))
        }
        _check_supported(index, wanted)
        data = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
        if not data.is_file():
            raise FileNotFoundError(f"{index} needs {data.name} beside it, but there is no such file")
        arrays.update(_read_shard(data, members, wanted))
    return {name: arrays[name] for name in sorted(arrays)}


def is_optimizer_slot(name: str) -> bool:
    """Whether a variable belongs to Adam or counts steps: ``*/Adam``, ``*/Adam_1``, ``beta1_power``, ..."""
    return _SLOT.fullmatch(name) is not None


def find_tf_checkpoint(path: PathLike) -> Path:
    """Return a checkpoint's prefix, given the prefix, its ``.index`` or a data file, or a folder.

    In a folder, the file ``checkpoint`` names the newest one; without that file there must be exactly one
    ``.index``. Raises FileNotFoundError or ValueError, saying what was looked for.
    """
    path = Path(path)
    if path.is_dir():
        return _find_in_folder(path)
    prefix = path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))
    if Path(f"{prefix}.index").is_file():
        return prefix
    if path.is_file() and path.name == "checkpoint":
        return _find_in_folder(path.parent)
    if path.is_file() and prefix == path:
        raise ValueError(f"{path} is not part of a TensorFlow V2 checkpoint: there is no {path.name}.index beside it")
    raise FileNotFoundError(f"no TensorFlow checkpoint at {path}: looked for {prefix}.index")


def _find_in_folder(folder: Path) -> Path:
    state = folder / "checkpoint"
    if state.is_file():
        match = re.search(r'^model_checkpoint_path: *"(.+)"', state.read_text(errors="replace"), re.MULTILINE)
        if match is None:
            raise ValueError(f'{state} has no line model_checkpoint_path: "..."')
        named = folder / match[1]
        moved = folder / Path(match[1]).name  # it may be an absolute path of the machine that trained
        for prefix in (named, moved):
            if Path(f"{prefix}.index").is_file():
                return prefix
        raise FileNotFoundError(f"{state} names {match[1]}, but there is no {moved}.index")
    found = sorted(folder.glob("*.index"))
    if not found:
        raise FileNotFoundError(f"no TensorFlow checkpoint in {folder}: looked for checkpoint and *.index")
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ValueError(f"{folder} holds several checkpoints and no file checkpoint: choose one of {names}")
    return found[0].with_suffix("")


def _read_index(path: Path) -> tuple[int, dict[str, _Entry]]:
    """Return the number of data files and the place of each variable."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - FOOTER_SIZE))
        if not file.read().endswith(MAGIC):
            raise ValueError(f"{path} is truncated or not the index of a TensorFlow V2 checkpoint")
        file.seek(0)
        content = file.read()
    try:
        table = read_table(content)
        shards = _parse_header(table.pop(b"", None))
        entries = {_decode_name(key): _parse_entry(value) for key, value in table.items() if key[:1] != b"\0"}
        for name, entry in entries.items():
            if not 0 <= entry.shard < shards:
                raise ValueError(f"{name} lies in data file {entry.shard} of {shards}")
    except ValueError as error:
        raise ValueError(f"{path} is corrupt or not the index of a TensorFlow V2 checkpoint: {error}") from error
    return shards, entries


def _decode_name(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the variable name {key[:80]!r} is not UTF-8") from None


def _parse_header(data: bytes | None) -> int:
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


def _parse_entry(data: bytes) -> _Entry:
    """Parse a ``BundleEntryProto``."""
    pairs = list(_parse_fields(data))
    fields = dict(pairs)
    shape = fields.get(2, b"")
    if not isinstance(shape, bytes):
        raise ValueError("a shape is not a message")
    dtype, shard, offset, size, checksum = (_integer(fields.get(number, 0)) for number in (1, 3, 4, 5, 6))
    return _Entry(dtype, _parse_shape(shape), shard, offset, size, checksum, partitioned=7 in fields)


def _parse_shape(data: bytes) -> tuple[int, ...]:
    """Parse a ``TensorShapeProto``: field 2, repeated, holds messages whose field 1 is a size."""
    dimensions = []
    for number, value in _parse_fields(data):
        if number == 2 and isinstance(value, bytes):
            dimensions.append(_integer(dict(_parse_fields(value)).get(1, 0)))
    if min(dimensions, default=0) < 0 or len(dimensions) > 32:
        raise ValueError(f"a shape is {dimensions[:33]}")
    return tuple(dimensions)


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


def _check_supported(index: Path, entries: dict[str, _Entry]) -> None:
    for name, entry in entries.items():
        if entry.partitioned:
            raise ValueError(f"{index}: {name} is a partitioned variable, which is not supported")
        if entry.dtype not in _DTYPES:
            raise ValueError(f"{index}: {name} has the TensorFlow type number {entry.dtype}, which is not supported")
        expected = math.prod(entry.shape) * np.dtype(_DTYPES[entry.dtype]).itemsize
        if entry.size != expected:
            raise ValueError(f"{index}: {name} of shape {entry.shape} takes {expected} bytes, not {entry.size}")


def _read_shard(
    path: Path, members: dict[str, _Entry], wanted: dict[str, _Entry]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the wanted arrays in the order of the file, after checking that the file can hold all members."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        ends = [entry.offset + entry.size for entry in members.values()]
        if min(min(entry.offset, entry.size) for entry in members.values()) < 0:
            raise ValueError(f"{path}: a variable has a negative place or size")
        if max(ends) > length:
            raise ValueError(f"{path} is truncated: it has {length} bytes, its variables need {max(ends)}")
        if sum(entry.size for entry in members.values()) > length:
            raise ValueError(f"{path}: its variables overlap")
        for name, entry in sorted(wanted.items(), key=lambda item: item[1].offset):
            yield name, _read_array(path, file, name, entry)


def _read_array(path: Path, file: BinaryIO, name: str, entry: _Entry) -> npt.NDArray[Any]:
    file.seek(entry.offset)
    raw = np.fromfile(file, np.uint8, entry.size)
    if len(raw) != entry.size or masked_crc32c(raw) != entry.checksum:
        raise ValueError(f"{path} is corrupt: the checksum of {name} is wrong")
    try:
        array = raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)
    except ValueError as error:
        raise ValueError(f"{path}: {name} cannot have the shape {entry.shape}: {error}") from error
    if entry.dtype == _BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array != 0 if entry.dtype == _BOOL else array
