"""Losses on pixels: masked L1 and total variation. Sums are float32 or wider, also under autocast."""

import torch
from torch import Tensor

from fastinpaint.ops._checks import at_least_float32


def masked_l1(prediction: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """sum(weight * |prediction - image|) / sum(weight), a scalar; 0 where the weight is 0 throughout.

    The numerator runs over samples and channels, the denominator over ``weight`` as it is given. So the original
    system's loss, where one mask (1, 1, H, W) serves the batch, grows with the batch and with the 3 channels; expand
    the mask to (B, 1, H, W) for a mean over samples.

    Args:
        prediction: (B, C, H, W).
        image: (B, C, H, W).
        weight: (B, 1, H, W) or (1, 1, H, W), not negative.
    """
    error = (at_least_float32(prediction) - at_least_float32(image)).abs()
    total = weight.sum(dtype=error.dtype)
    return (weight * error).sum() / torch.where(total > 0, total, 1.0)


def total_variation(image: Tensor) -> Tensor:
    """mean(dy^2) + mean(dx^2) of neighbouring pixels of (B, C, H, W), H and W at least 2; a scalar."""
    image = at_least_float32(image)
    return image.diff(dim=2).square().mean() + image.diff(dim=3).square().mean()
