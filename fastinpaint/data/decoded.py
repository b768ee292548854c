"""Decoded pictures in one memory-mapped file, which all worker processes share."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image


class ImageStore(Protocol):
    """Numbered RGB pictures."""

    @property
    def unreadable(self) -> list[Path]:
        """The files that were found unreadable so far."""

    def __len__(self) -> int: ...

    def read(self, index: int, least_side: int = 0) -> Image.Image:
        """Return one picture; where ``least_side`` is not 0, perhaps smaller, but no side below so many pixels."""


class DecodedImages:
    """The pictures of another store, decoded once, as an `ImageStore`.

    Their pixels lie behind one another in a file that is mapped into memory, so that any number of processes, forked
    or spawned, hold them once. What the other store finds unreadable it replaces, warns about and counts as ever.

    Args:
        images: the pictures.
        path: the file to write, 3 bytes a pixel; one that is there already is replaced.

    Raises:
        ValueError: no picture can be read.
        OSError: the disk is full, or ``path`` cannot be written.
    """

    def __init__(self, images: ImageStore, path: str | os.PathLike[str]) -> None:
        self._images, self.path = images, Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)  # an older run may still have it mapped
        starts, self._sizes = [0], []
        with ThreadPoolExecutor() as pool, self.path.open("wb") as file:
            for width, height, pixels in pool.map(self._decode, range(len(images))):
                file.write(pixels)
                self._sizes.append((height, width))
                starts.append(starts[-1] + len(pixels))
        self._starts = starts
        self._pixels: npt.NDArray[np.uint8] | None = np.memmap(self.path, np.uint8, "r")

    def _decode(self, index: int) -> tuple[int, int, bytes]:
        picture = self._images.read(index)
        return picture.width, picture.height, picture.tobytes()

    @property
    def unreadable(self) -> list[Path]:
        """The files that were found unreadable."""
        return self._images.unreadable

    def __len__(self) -> int:
        return len(self._sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # each process maps the file itself

    def read(self, index: int, least_side: int = 0) -> Image.Image:
        """Return one picture, at its size."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, np.uint8, "r")
        pixels = self._pixels[self._starts[index] : self._starts[index + 1]]
        return Image.fromarray(pixels.reshape(*self._sizes[index], 3))

    def close(self) -> None:
        """Remove the file; whoever has it mapped may go on reading."""
        self.path.unlink(missing_ok=True)
