"""An endless stream of training images in which sample number n is always the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.masks import MaskSampler


class SampleStream(Dataset[tuple[Tensor, ...]]):
    """Sample n of a run: epoch ``n // len(images)``, in that epoch's own shuffled order.

    Nothing is carried from one sample to the next, so a run may stop anywhere and go on exactly, with any number of
    workers, and a batch may reach over the end of an epoch.

    Args:
        images: The training images.
        seed: Of the order.
        masks: Give each sample the mask of its number; None: samples come without masks.
    """

    def __init__(self, images: InpaintDataset, seed: int, masks: MaskSampler | None = None) -> None:
        self.images, self.seed, self.masks = images, seed, masks

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        """Return the image (3, H, W) uint8 and, where masks are given, the mask (1, H, W) uint8, 1 = hole."""
        epoch, place = divmod(number, len(self.images))
        image = self.images.draw_pixels(int(_order(self.seed, epoch, len(self.images))[place]), epoch)
        return (image,) if self.masks is None else (image, self.masks.sample(number)[0].to(torch.uint8))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


class SampleBatches:
    """Batches of sample numbers for the updates from ``start`` up to ``stop``."""

    def __init__(self, batch_size: int, start: int, stop: int) -> None:
        self.batch_size, self.start, self.stop = batch_size, start, stop

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.stop - self.start
