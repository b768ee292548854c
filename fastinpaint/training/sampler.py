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

_LISTED = 2**20  # images of which an order is kept as a list, 8 MB
_ROUNDS = 4
_WORD = 2**64 - 1


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
        image = self.images.draw_pixels(shuffled(place, len(self.images), self.seed, epoch), epoch)
        return (image,) if self.masks is None else (image, self.masks.sample(number)[0].to(torch.uint8))


def shuffled(place: int, count: int, seed: int, epoch: int) -> int:
    """Return which of ``count`` images is at a place of an epoch's own random order.

    Up to 2**20 images have an order drawn by NumPy. Above that no order is kept: the place is encrypted.
    """
    if count <= _LISTED:
        return int(_order(seed, epoch, count)[place])
    return _encrypt(place, count, _keys(seed, epoch))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


@lru_cache(maxsize=4)
def _keys(seed: int, epoch: int) -> list[int]:
    return [int(key) for key in np.random.SeedSequence((seed, epoch)).generate_state(_ROUNDS, np.uint64)]


def _encrypt(place: int, count: int, keys: list[int]) -> int:
    """Map 0 ... count - 1 one to one onto itself: a Feistel network, applied until it leads back below ``count``.

    Its domain is the next power of 4, so that fewer than 4 applications are needed on average.
    """
    bits = ((count - 1).bit_length() + 1) // 2
    low = (1 << bits) - 1
    while True:
        left, right = place >> bits, place & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        place = left << bits | right
        if place < count:
            return place


def _mix(x: int) -> int:
    """Hash 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


class SampleBatches:
    """Batches of sample numbers for the updates from ``start`` up to ``stop``.

    Args:
        batch_size: Samples of an update.
        start: First update.
        stop: Update after the last one.
        rank: With several processes, the one whose part of each batch is given; parts are contiguous.
        ranks: Number of processes; divides ``batch_size``.
    """

    def __init__(self, batch_size: int, start: int, stop: int, rank: int = 0, ranks: int = 1) -> None:
        self.batch_size, self.start, self.stop = batch_size, start, stop
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        part = self.batch_size // self.ranks
        for step in range(self.start, self.stop):
            first = step * self.batch_size + self.rank * part
            yield list(range(first, first + part))

    def __len__(self) -> int:
        return self.stop - self.start
