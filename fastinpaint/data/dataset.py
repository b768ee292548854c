"""Square training images out of a folder, a list, or memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from fastinpaint.data.decoded import DecodedImages, ImageStore
from fastinpaint.data.images import (
    CROPS,
    PathLike,
    least_side_for,
    read_image,
    square_crop_resize,
    to_rgb,
    to_signed_tensor,
)
from fastinpaint.data.index import image_paths
from fastinpaint.data.readable import ReadableFiles
from fastinpaint.data.shards import find_shards, image_places, read_place


class InpaintDataset(Dataset[torch.Tensor]):
    """Square images, (3, ``image_size``, ``image_size``) float32 in [-1, 1].

    A JPEG file is decoded at the smallest scale that covers twice the squares. Random draws depend on the seed, the
    epoch and the index alone, not on the number of workers or the order of reading. `set_epoch` reaches running
    workers too (``persistent_workers=True``); call it between two epochs.

    Args:
        source: a folder, list or file (see `image_paths`), shards (see `find_shards`), or numbered pictures.
        image_size: pixels.
        crop: ``"center"`` or ``"random"``, see `square_crop_resize`.
        seed: of the random crops and flips, at least 0.
        flip: mirror every second image, at random.
        cache: keep decoded files in memory (of each worker).

    Raises:
        FileNotFoundError, ValueError: nothing to read at ``source``, or an impossible option.
    """

    def __init__(
        self,
        source: PathLike | ImageStore,
        image_size: int = 256,
        crop: str = "center",
        seed: int = 0,
        *,
        flip: bool = False,
        cache: bool = False,
    ) -> None:
        if crop not in CROPS:
            raise ValueError(f"expected a crop of {' or '.join(CROPS)}, got {crop!r}")
        if image_size < 1 or seed < 0:
            raise ValueError(f"expected image_size >= 1 and seed >= 0, got {image_size} and {seed}")
        self.image_size, self.crop, self.seed, self.flip = image_size, crop, seed, flip
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._images: ImageStore
        if isinstance(source, str | os.PathLike):
            shards = find_shards(source)
            if shards:
                self._images = ReadableFiles(image_places(source, shards), read_place, cache=cache)
            else:
                self._images = ReadableFiles(image_paths(source), read_image, cache=cache)
        else:
            self._images = source

    @classmethod
    def from_arrays(
        cls, images: Sequence[npt.NDArray[np.uint8] | Image.Image], image_size: int = 256, **options: Any
    ) -> InpaintDataset:
        """Build from pictures in memory: (H, W, 3) or (H, W) uint8 arrays, or PIL images of any mode.

        ``options`` are those of the class. Raises ValueError without pictures, TypeError for other arrays.
        """
        return cls(MemoryImages(images), image_size, **options)

    @property
    def epoch(self) -> int:
        """The epoch whose random draws are made."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, at least 0, in this process and in all workers."""
        if epoch < 0:
            raise ValueError(f"expected an epoch of at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    @property
    def unreadable(self) -> list[Path]:
        """The files that were skipped so far, by any worker."""
        return self._images.unreadable

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.draw(index, self.epoch)

    def draw(self, index: int, epoch: int) -> torch.Tensor:
        """Return image ``index`` with the random draws of ``epoch``, whichever epoch is set."""
        return to_signed_tensor(self._draw(index, epoch))

    def draw_pixels(self, index: int, epoch: int) -> torch.Tensor:
        """Return what `draw` does before its conversion: (3, ``image_size``, ``image_size``) uint8."""
        return torch.from_numpy(np.asarray(self._draw(index, epoch)).transpose(2, 0, 1).copy())

    def of_size(self, image_size: int) -> InpaintDataset:
        """Return the same images, from the same store, as squares of another size."""
        return InpaintDataset(self._images, image_size, self.crop, self.seed, flip=self.flip)

    def decode_all(self, path: PathLike) -> DecodedImages:
        """Decode every image into the file ``path`` and read from there from now on; close the result at the end."""
        decoded = DecodedImages(self._images, path)
        self.read_from(decoded)
        return decoded

    def read_from(self, store: ImageStore) -> None:
        """Read the same images from another store from now on."""
        self._images = store

    def _draw(self, index: int, epoch: int) -> Image.Image:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        index %= len(self)
        rng = np.random.default_rng((self.seed, epoch, index))
        picture = self._images.read(index, least_side_for(self.image_size, self.crop))
        square = square_crop_resize(picture, self.image_size, crop=self.crop, rng=rng)
        if self.flip and rng.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return square


class MemoryImages:
    """Pictures that are in memory already, as an `ImageStore`."""

    unreadable: list[Path] = []  # noqa: RUF012 - there are none, ever

    def __init__(self, images: Sequence[npt.NDArray[np.uint8] | Image.Image]) -> None:
        if not len(images):
            raise ValueError("expected at least one picture, got none")
        self._images = [self._convert(image) for image in images]

    @staticmethod
    def _convert(image: npt.NDArray[np.uint8] | Image.Image) -> Image.Image:
        if isinstance(image, Image.Image):
            return to_rgb(image)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            found = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"expected uint8 arrays or PIL images, got {found}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or not image.size:
            raise TypeError(f"expected arrays of the shape (H, W, 3) or (H, W), got {image.shape}")
        return to_rgb(Image.fromarray(image))

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int, least_side: int = 0) -> Image.Image:
        """Return one picture, at its size."""
        return self._images[index]
