"""An endless stream of training images in which sample number n is always the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from fastinpaint.data.dataset import InpaintDataset


class SampleStream(Dataset[Tensor]):
    """Sample n of a run: epoch ``n // len(images)``, in that epoch's own shuffled order.

    Nothing is carried from one sample to the next, so a run may stop anywhere and go on exactly, with any number of
    workers, and a batch may reach over the end of an epoch.
    """

    def __init__(self, images: InpaintDataset, seed: int) -> None:
        self.images = images
        self.seed = seed

    def __getitem__(self, number: int) -> Tensor:
        """Return (3, H, W) float32 in [-1, 1]."""
        epoch, place = divmod(number, len(self.images))
        return self.images.draw(int(_order(self.seed, epoch, len(self.images))[place]), epoch)


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
