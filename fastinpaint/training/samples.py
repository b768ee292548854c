"""What the generator makes of a few fixed pictures with fixed holes while it trains."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastinpaint.data.dataset import InpaintDataset
from fastinpaint.data.masks import MaskSampler
from fastinpaint.losses.objective import SCALES
from fastinpaint.training.train_step import TrainStep
from fastinpaint.visualize.sheets import Cell, edge_cell, gradient_cell, hole_cell, picture_cell

COLUMNS = ("hole", "result", "truth", "edges", "gradients")  # of the picture of samples
_MASKS = 2**40  # mask steps that no run reaches


def draw_samples(
    train_step: TrainStep, images: InpaintDataset, masks: MaskSampler, count: int
) -> list[dict[str, Cell]]:
    """Fill the first ``count`` pictures.

    Returns:
        For each picture the cells by name: ``COLUMNS`` at full size, and ``result half``, ``edges half``,
        ``gradients half`` and the same with ``quarter``.
    """
    rows = []
    for index in range(min(count, len(images))):
        image = images[index].to(train_step.device)
        mask = masks.sample(_MASKS + index).to(train_step.device)
        # Other shapes than in training: not worth a search for the fastest convolutions.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False):
            output = train_step.show(image[None], mask)
        row = {"hole": hole_cell(image, mask[0]), "truth": picture_cell(image)}
        for scale, filled, gradients in zip(SCALES, output.images, output.gradients, strict=True):
            size = (filled.shape[-2], filled.shape[-1])
            known, hole = F.adaptive_avg_pool2d(image, size), F.adaptive_max_pool2d(mask[0], size)
            name = "" if scale == "full" else f" {scale}"
            row[f"result{name}"] = picture_cell(torch.where(hole > 0.5, filled[0].float(), known))
            row[f"edges{name}"] = edge_cell(gradients[0])
            row[f"gradients{name}"] = gradient_cell(gradients[0])
        rows.append(row)
    return rows
