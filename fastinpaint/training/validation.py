"""PSNR and SSIM on pictures and holes that never change during a run."""

from __future__ import annotations

import torch

from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.masks import MaskConfig, MaskSampler
from fastinpaint.evaluation.metrics import STANDARD, measure
from fastinpaint.training.metrics import VALIDATION
from fastinpaint.training.train_step import TrainStep

JUDGED = VALIDATION + "psnr_hole"  # the score that the best checkpoint has the highest of
_SEED = 0  # not the run's, so that runs of different seeds are comparable
_MASKS = 2**41  # mask steps that no run reaches


class Validation:
    """The first ``count`` pictures of ``source``, cropped from the middle, each with its own fixed hole.

    Args:
        source: Folder, list or file, as training data are.
        masks: The mixture that the holes are drawn from.
        image_size: Pixels.
        count: How many pictures; 0: all.

    Raises:
        FileNotFoundError, ValueError: Nothing to read at ``source``.
    """

    def __init__(self, source: str, masks: MaskConfig, image_size: int, count: int) -> None:
        self.images = InpaintDataset(source, image_size)
        self.masks = MaskSampler(masks, image_size, image_size, _SEED)
        self.count = min(count or len(self.images), len(self.images))

    def measure(self, train_step: TrainStep, batch_size: int) -> dict[str, float]:
        """Fill every picture with the generator that the run would leave behind.

        Returns:
            Means over the pictures: ``validation_psnr`` (dB), ``validation_ssim``, and both inside the hole,
            with ``_hole`` appended. Known pixels are taken from the picture; values are rounded as in a file.
        """
        scores: dict[str, list[float]] = {}
        for start in range(0, self.count, batch_size):
            numbers = range(start, min(start + batch_size, self.count))
            truth = torch.stack([self.images.draw_pixels(number, 0) for number in numbers])  # (B, 3, s, s) uint8
            hole = torch.cat([self.masks.sample(_MASKS + number) for number in numbers])  # (B, 1, s, s)
            image = truth.to(train_step.device).float().div(127.5).sub(1.0)
            with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False):
                filled = train_step.show(image, hole.to(train_step.device)).images[0].float().cpu()
            pixels = filled.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
            result = torch.where(hole > 0.5, pixels, truth)
            for name, values in measure(result, truth, hole > 0.5, STANDARD, ("psnr", "ssim")).items():
                scores.setdefault(VALIDATION + name, []).extend(values.tolist())
        return {name: sum(values) / len(values) for name, values in scores.items()}
