"""The batches of a run: update number n always gets the same images, crops and masks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.decoded import DecodedImages
from fastinpaint.data.masks import MaskSampler
from fastinpaint.files import PathLike
from fastinpaint.training.config import TrainConfig
from fastinpaint.training.distributed import Ranks
from fastinpaint.training.interrupts import blocked_signals, prepare_worker, worker_context
from fastinpaint.training.sampler import SampleBatches, SampleStream
from fastinpaint.training.workers import explained, spare_cores


class Batches:
    """Images and masks of a run, read by data workers; each process reads its part of every batch.

    Args:
        config: Options of the run.
        ranks: Its processes.

    Raises:
        FileNotFoundError, ValueError: Nothing to read at ``config.data``.
        RuntimeError: Processes that found different numbers of images.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        with ranks.first_on_machine():
            self.images = InpaintDataset(config.data, config.image_size, config.crop, config.seed, flip=config.flip)
        ranks.require_same("the number of images", len(self.images))
        self.masks = self._mask_sampler(config.image_size)

    def decode(self, path: PathLike) -> DecodedImages:
        """Decode all images into the file ``path``, once on each machine, and read them from there from now on."""
        first = self.ranks.rank - self.ranks.local_rank  # of this machine
        mine = self.images.decode_all(path) if self.ranks.rank == first else None
        decoded: DecodedImages = self.ranks.gather(mine)[first]
        self.images.read_from(decoded)
        return decoded

    def stream(self, start: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches from update ``start`` on, in crops of ``size`` pixels.

        Yields:
            Images (B, 3, s, s) uint8 and masks (B, 1, s, s) or (1, 1, s, s).

        Raises:
            ChildProcessError, TimeoutError, ValueError: A data worker died, is silent or failed.
        """
        masks = self._mask_sampler(size)
        with blocked_signals():  # a worker must not be hit before it can ignore them
            loaded = iter(self._loader(start, size, masks))
        step = start
        while True:
            try:
                batch = next(loaded)
            except StopIteration:
                return
            except Exception as error:
                raise explained(error, self.config.data_timeout) from error
            yield (batch[0], masks.sample(step)) if self.config.masks.shared else (batch[0], batch[1])
            step += 1

    def of_update(self, step: int, size: int) -> dict[str, Tensor | list[int]]:
        """Read the batch of one update anew, of all processes together.

        Returns:
            ``numbers`` of the samples, ``images`` (B, 3, s, s) uint8, ``masks`` (B, 1, s, s) or (1, 1, s, s).
        """
        numbers = next(iter(SampleBatches(self.config.batch_size, step, step + 1)))
        masks = self._mask_sampler(size)
        stream = SampleStream(self.images.of_size(size), self.config.seed)
        return {
            "numbers": numbers,
            "images": torch.stack([stream[number][0] for number in numbers]),
            "masks": torch.cat([masks.sample(n) for n in ([step] if self.config.masks.shared else numbers)]),
        }

    def _loader(self, start: int, size: int, masks: MaskSampler) -> DataLoader[tuple[Tensor, ...]]:
        config, ranks = self.config, self.ranks
        cuda = ranks.device.type == "cuda"
        images = self.images if size == self.images.image_size else self.images.of_size(size)
        workers = spare_cores(ranks.local_count) if config.workers < 0 else config.workers
        return DataLoader(
            SampleStream(images, config.seed, None if config.masks.shared else masks),
            batch_sampler=SampleBatches(config.batch_size, start, config.steps, ranks.rank, ranks.count),
            num_workers=workers,
            worker_init_fn=prepare_worker,
            pin_memory=cuda,
            multiprocessing_context=worker_context(cuda) if workers else None,
            timeout=config.data_timeout if workers else 0,
        )

    def _mask_sampler(self, size: int) -> MaskSampler:
        return MaskSampler(self.config.masks, size, size, self.config.seed)
