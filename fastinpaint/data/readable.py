"""A list of files of which some may turn out unreadable: they are named, counted and skipped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from fastinpaint.errors import one_line

T = TypeVar("T")


class ReadableFiles(Generic[T]):
    """Files by number; an unreadable one is replaced by the next readable one, in the order of the list.

    Which files are unreadable is known to all worker processes of a DataLoader and to the process that started
    them, so the count is complete everywhere and each file is warned about once.

    Args:
        paths: the files; a `PathIndex` keeps none of them in memory.
        read: reads one, given its path and the hints of `read`; whatever it raises makes the file an unreadable one.
        cache: keep what was read in the memory of each process.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[..., T], *, cache: bool = False) -> None:
        self.paths = paths
        self._read = read
        self._cache: dict[int, T] | None = {} if cache else None
        self._damaged = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unreadable(self) -> list[Path]:
        """The files that were found unreadable so far."""
        return [self.paths[number] for number in self._damaged.nonzero().flatten().tolist()]

    def read(self, index: int, *hints: Any) -> T:
        """Return file number ``index``, or the next readable one.

        ``hints`` go to the reader, but not where what it reads is kept for calls with others. Raises ValueError when no
        file can be read.
        """
        first_reason = ""
        for offset in range(len(self.paths)):
            number = (index + offset) % len(self.paths)
            if not self._damaged[number]:
                try:
                    return self._read_one(number, hints)
                except MemoryError:
                    raise
                except Exception as error:
                    self._damaged[number] = True
                    reason = _reason(self.paths[number], error)
                    first_reason = first_reason or reason
                    warnings.warn(f"skipped an unreadable file: {reason}", RuntimeWarning, stacklevel=2)
        raise ValueError(f"none of {len(self.paths)} files could be read: {first_reason or self.paths[0]}")

    def _read_one(self, number: int, hints: tuple[Any, ...]) -> T:
        if self._cache is None:
            return self._read(self.paths[number], *hints)
        if number not in self._cache:
            self._cache[number] = self._read(self.paths[number])
        return self._cache[number]


def _reason(path: Path, error: Exception) -> str:
    text = one_line(error)
    return text if str(path) in text else f"{path}: {text}"
