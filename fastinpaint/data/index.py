"""The paths of a large set of images in one memory-mapped file, so that no process holds them as objects."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

from fastinpaint.data.images import find_images, walk_images
from fastinpaint.files import PathLike, atomic_write

_FORMAT = b"fastinpaint image index 1\n"
_FOOTER = 3 * 8  # bytes: where offsets begin, where the stamps begin, number of paths
_LARGE = 100_000  # paths above which a folder gets an index
_NEVER = -2
_SETTLED = 2 * 10**9  # nanoseconds after which a change of a folder surely shows in its time of change


class PathIndex(Sequence[Path]):
    """Paths by number, read from a file that all processes map and none of them loads.

    The file holds the names one after another, an offset of 8 bytes for each, and for each folder that was searched
    its time of change, by which a later start sees whether the index still holds.

    Args:
        file: Written by `write_index`.

    Raises:
        ValueError: Another or a damaged file.
    """

    def __init__(self, file: PathLike) -> None:
        self.file = Path(file)
        self._map: mmap.mmap | None = None
        content = self._content
        self._offsets, stamps, self._count = (
            int.from_bytes(content[start : start + 8], sys.byteorder)
            for start in range(len(content) - _FOOTER, len(content), 8)
        )
        if self._offsets + 8 * (self._count + 1) != stamps or stamps > len(content) - _FOOTER:
            raise ValueError(f"{self.file} is not a whole index of images")
        header = json.loads(content[stamps : len(content) - _FOOTER])
        self._root, self._stamps = Path(header["root"]), header["stamps"]

    @property
    def _content(self) -> mmap.mmap:
        if self._map is None:
            with self.file.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < len(_FORMAT) + _FOOTER or file.read(len(_FORMAT)) != _FORMAT:
                    raise ValueError(f"{self.file} is not an index of images")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # each process maps the file itself

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Path: ...
    @overload
    def __getitem__(self, number: slice) -> list[Path]: ...
    def __getitem__(self, number: int | slice) -> Path | list[Path]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(self._count))]
        if not -self._count <= number < self._count:
            raise IndexError(f"path {number} of {self._count}")
        place = self._offsets + 8 * (number % self._count)
        start, stop = (int.from_bytes(self._content[p : p + 8], sys.byteorder) for p in (place, place + 8))
        return self._root / os.fsdecode(self._content[start:stop])

    def is_current(self) -> bool:
        """Whether no searched folder has changed since; files that changed in place do not count."""
        return all(_changed(Path(folder)) == when for folder, when in self._stamps.items())


def write_index(source: Path, root: Path, names: Iterable[str], stamps: Mapping[str, int]) -> PathIndex:
    """Write the index of ``source`` to `cache_file`, and read it.

    Args:
        source: What `cached_index` will be asked for.
        root: What the names are relative to.
        names: In order; taken one after another, never all at once.
        stamps: Folders or files with their times of change, in nanoseconds; looked at after the last name was taken.

    Raises:
        OSError: It cannot be written; the message names the variable that chooses another folder.
    """
    file = cache_file(source)
    try:
        _write(file, root, names, stamps)
    except OSError as error:
        raise OSError(f"no index of {source} at {file}: {error}; XDG_CACHE_HOME chooses another folder") from error
    return PathIndex(file)


def _write(file: Path, root: Path, names: Iterable[str], stamps: Mapping[str, int]) -> None:
    with atomic_write(file) as temporary:
        offsets = array("Q", [len(_FORMAT)])
        with open(temporary, "wb") as out:
            out.write(_FORMAT)
            for name in names:
                offsets.append(offsets[-1] + out.write(os.fsencode(name)))
            start = offsets[-1]
            out.write(offsets.tobytes())
            # a folder that is being changed might change again without another time of change
            late = time.time_ns() - _SETTLED
            kept = {folder: when if when < late else _NEVER for folder, when in stamps.items()}
            out.write(json.dumps({"root": str(root.absolute()), "stamps": kept}).encode())
            for number in (start, start + 8 * len(offsets), len(offsets) - 1):
                out.write(number.to_bytes(8, sys.byteorder))


def image_paths(source: PathLike) -> Sequence[Path]:
    """Return what `find_images` does; for a folder of more than 100,000 images, from an index that is kept.

    The index is used again until the time of change of a folder below ``source`` is another.

    Raises:
        FileNotFoundError, ValueError: As `find_images`.
        OSError: The index cannot be written.
    """
    source = Path(source)
    if not source.is_dir():
        return find_images(source)
    index = cached_index(source)
    if index is not None:
        return index
    stamps: dict[str, int] = {}
    names = walk_images(source, stamps)
    first = list(islice(names, _LARGE + 1))
    if len(first) <= _LARGE:
        return [source / name for name in first] or find_images(source)  # which says what it looked for
    return write_index(source, source, chain(first, names), stamps)


def cached_index(source: Path) -> PathIndex | None:
    """Return the index that an earlier start kept for ``source``, if it still holds."""
    try:
        index = PathIndex(cache_file(source))
        return index if index.is_current() else None
    except (OSError, ValueError, KeyError):
        return None


def cache_file(source: Path) -> Path:
    """Return where the index of a folder is kept: ``$XDG_CACHE_HOME/fastinpaint``, else ``~/.cache/fastinpaint``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "fastinpaint" / f"{hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:32]}.index"


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1
