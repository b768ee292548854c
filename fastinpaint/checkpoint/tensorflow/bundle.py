"""Reading TensorFlow V2 checkpoints: an index of entries, and data files that hold the values.

``NAME.index`` is a table from variable names to protocol buffers, ``NAME.data-0000i-of-0000n`` hold the values one
behind the other. Arrays keep TensorFlow's layouts.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastinpaint.checkpoint.tensorflow.checksum import masked_crc32c
from fastinpaint.checkpoint.tensorflow.entries import Entry, parse_entry, parse_header, slice_key
from fastinpaint.checkpoint.tensorflow.locate import find_tf_checkpoint
from fastinpaint.checkpoint.tensorflow.sstable import FOOTER_SIZE, MAGIC, read_table
from fastinpaint.files import PathLike

_STRING, _BOOL, _BFLOAT16 = 7, 10, 14
_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    8: "<c8",
    9: "<i8",
    _BOOL: "u1",  # any byte but 0 is true
    _BFLOAT16: "<u2",
    17: "<u2",
    18: "<c16",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
_OTHER_TYPES = {
    11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 20: "resource", 21: "variant",
    24: "float8_e5m2", 25: "float8_e4m3fn", 29: "int4", 30: "uint4",
}  # fmt: skip
_VALUE = r"/\.ATTRIBUTES/VARIABLE_VALUE"  # ends the names that TensorFlow 2 writes
_SLOT = re.compile(
    r".*/(Adam|AdaMax|Momentum|RMSProp|Adagrad|Adadelta|Ftrl)(_\d+)?|(.*/)?(beta[12]_power|global_step)(_\d+)?"
    rf"|.*/\.OPTIMIZER_SLOT/.*|(.*/)?\w*optimizer(_\d+)?/\w+(/\d+)?{_VALUE}|(.*/)?save_counter{_VALUE}"
)
_LISTED = 5  # skipped variables that a warning names

Array = npt.NDArray[Any]
Part = tuple[bytes, Entry]  # key in the index, entry


def read_tf_checkpoint(path: PathLike, *, optimizer_slots: bool = False) -> dict[str, Array]:
    """Read the variables of a TensorFlow V2 checkpoint; every checksum is verified.

    Args:
        path: the checkpoint's prefix, its ``.index`` file, or a folder, also of a SavedModel (see
            `find_tf_checkpoint`).
        optimizer_slots: also return what `is_optimizer_slot` recognises.

    Returns:
        Arrays by variable name (without ``:0``), sorted by name, writable, in TensorFlow's layouts (convolution
        kernels are height, width, in, out). Partitioned variables are joined. bfloat16 becomes float32. String
        tensors are left out, and so are types that NumPy does not hold, with a warning that names them.

    Raises:
        FileNotFoundError: there is no checkpoint, or one of its data files is missing.
        ImportError: google-crc32c is not installed.
        ValueError: a file is truncated, corrupt or of another kind. The message names the file and the reason.
    """
    prefix = find_tf_checkpoint(path)
    index = Path(f"{prefix}.index")
    shards, table = _read_index(index)
    wanted = {}
    for key, entry in table.items():
        if key[:1] == b"\0" or entry.dtype == _STRING:  # a slice of a partitioned variable, or a string
            continue
        name = key.decode()
        if optimizer_slots or not is_optimizer_slot(name):
            wanted[name] = entry
    _warn_of_types(index, wanted)
    parts = {name: _parts(index, name, entry, table) for name, entry in wanted.items() if entry.dtype in _DTYPES}
    values = _read_values(prefix, shards, table, [part for each in parts.values() for part in each])
    return {name: _join(index, name, wanted[name], parts[name], values) for name in sorted(parts)}


def is_optimizer_slot(name: str) -> bool:
    """Whether a variable belongs to an optimiser or counts steps: ``*/Adam``, ``beta1_power``, ...

    In names of TensorFlow 2: ``*/.OPTIMIZER_SLOT/*``, what lies directly in ``optimizer``, and ``save_counter``.
    """
    return _SLOT.fullmatch(name) is not None


def _read_index(path: Path) -> tuple[int, dict[bytes, Entry]]:
    """Return the number of data files and the entry of each key."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - FOOTER_SIZE))
        if not file.read().endswith(MAGIC):
            raise ValueError(f"{path} is truncated or not the index of a TensorFlow V2 checkpoint")
        file.seek(0)
        content = file.read()
    try:
        table = read_table(content)
        shards = parse_header(table.pop(b"", None))
        entries = {key: parse_entry(value) for key, value in table.items()}
        for key, entry in entries.items():
            _check_name(key)
            if not 0 <= entry.shard < shards:
                raise ValueError(f"{key[:80]!r} lies in data file {entry.shard} of {shards}")
    except ValueError as error:
        raise ValueError(f"{path} is corrupt or not the index of a TensorFlow V2 checkpoint: {error}") from error
    return shards, entries


def _check_name(key: bytes) -> None:
    if key[:1] != b"\0":
        try:
            key.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the variable name {key[:80]!r} is not UTF-8") from None


def _warn_of_types(index: Path, entries: Mapping[str, Entry]) -> None:
    skipped = [
        f"{name} ({_OTHER_TYPES.get(entry.dtype, f'type number {entry.dtype}')})"
        for name, entry in entries.items()
        if entry.dtype not in _DTYPES
    ]
    if skipped:
        more = f" and {len(skipped) - _LISTED} more" if len(skipped) > _LISTED else ""
        warnings.warn(
            f"{index}: skipped variables of types that NumPy does not hold: {', '.join(skipped[:_LISTED])}{more}",
            stacklevel=3,
        )


def _parts(index: Path, name: str, entry: Entry, table: Mapping[bytes, Entry]) -> list[Part]:
    """Return what holds a variable's values: its own entry, or those of its slices, checked."""
    parts: list[Part] = [(name.encode(), entry)]
    shapes = [entry.shape]
    if entry.slices:
        keys = [slice_key(name.encode(), each) for each in entry.slices]
        missing = sum(key not in table for key in keys)
        if missing:
            raise ValueError(f"{index}: {missing} of {len(keys)} slices of {name} are missing")
        parts = [(key, table[key]) for key in keys]
        shapes = [
            tuple(size if length is None else length for (_, length), size in zip(each, entry.shape, strict=True))
            for each in entry.slices
        ]
        covered = sum(math.prod(shape) for shape in shapes)
        if covered != math.prod(entry.shape) or not covered:
            raise ValueError(f"{index}: the slices of {name} hold {covered} values, not {math.prod(entry.shape)}")
    for (_, part), shape in zip(parts, shapes, strict=True):
        expected = math.prod(shape) * np.dtype(_DTYPES[entry.dtype]).itemsize
        if part.size != expected or part.dtype != entry.dtype or part.shape != shape:
            raise ValueError(
                f"{index}: {name} of shape {shape} and type {entry.dtype} takes {expected} bytes, "
                f"got {part.size} of shape {part.shape} and type {part.dtype}"
            )
    return parts


def _read_values(prefix: Path, shards: int, table: Mapping[bytes, Entry], parts: list[Part]) -> dict[bytes, Array]:
    """Read and verify the parts, shard by shard."""
    wanted: dict[int, list[Part]] = defaultdict(list)
    for key, entry in parts:
        wanted[entry.shard].append((key, entry))
    values: dict[bytes, Array] = {}
    for shard, mine in wanted.items():
        data = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
        if not data.is_file():
            raise FileNotFoundError(f"{prefix}.index needs {data.name} beside it, but there is no such file")
        members = [entry for entry in table.values() if entry.shard == shard and not entry.slices]
        values.update(_read_shard(data, members, mine))
    return values


def _read_shard(path: Path, members: list[Entry], wanted: list[Part]) -> Iterator[tuple[bytes, Array]]:
    """Yield the wanted arrays in the order of the file, after checking that the file can hold all members."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        ends = [entry.offset + entry.size for entry in members]
        if min(min(entry.offset, entry.size) for entry in members) < 0:
            raise ValueError(f"{path}: a variable has a negative place or size")
        if max(ends) > length:
            raise ValueError(f"{path} is truncated: it has {length} bytes, its variables need {max(ends)}")
        if sum(entry.size for entry in members) > length:
            raise ValueError(f"{path}: its variables overlap")
        for key, entry in sorted(wanted, key=lambda part: part[1].offset):
            yield key, _read_array(path, file, key, entry)


def _read_array(path: Path, file: BinaryIO, key: bytes, entry: Entry) -> Array:
    file.seek(entry.offset)
    raw = file.read(entry.size)
    name = key.decode(errors="replace")
    if len(raw) != entry.size or masked_crc32c(raw) != entry.checksum:
        raise ValueError(f"{path} is corrupt: the checksum of {name!r} is wrong")
    try:
        array = np.frombuffer(raw, _DTYPES[entry.dtype]).reshape(entry.shape)
    except ValueError as error:
        raise ValueError(f"{path}: {name!r} cannot have the shape {entry.shape}: {error}") from error
    if entry.dtype == _BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array != 0 if entry.dtype == _BOOL else array.copy()


def _join(index: Path, name: str, entry: Entry, parts: list[Part], values: Mapping[bytes, Array]) -> Array:
    if not entry.slices:
        return values[parts[0][0]]
    whole, known = np.empty(entry.shape, values[parts[0][0]].dtype), np.zeros(entry.shape, bool)
    for extents, (key, _) in zip(entry.slices, parts, strict=True):
        place = tuple(slice(start, None if length is None else start + length) for start, length in extents)
        whole[place], known[place] = values[key], True
    if not known.all():
        raise ValueError(f"{index}: the slices of {name} overlap and leave a gap")
    return whole
