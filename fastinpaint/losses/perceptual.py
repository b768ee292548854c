"""Perceptual losses on VGG features; scalars out, float32 also under autocast."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinpaint.ops._checks import at_least_float32

LAYER_WEIGHT = 0.2  # of each of the five layers


def gram_matrix(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C): products of channels, summed over positions, over H * W * C."""
    with torch.autocast(features.device.type, enabled=False):
        flat = at_least_float32(features).flatten(2)  # (B, C, HW)
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def content_loss(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """0.2 * the sum over layers of mean((a - b)^2)."""
    pairs = zip(features, targets, strict=True)
    return (
        LAYER_WEIGHT
        * torch.stack([(at_least_float32(a) - at_least_float32(b)).square().mean() for a, b in pairs]).sum()
    )


def style_loss(features: Sequence[Tensor], target_grams: Sequence[Tensor]) -> Tensor:
    """0.2 * the sum over layers of sum((gram_a - gram_b)^2) / (B * H * W * C).

    Args:
        features: Maps (B, C, H, W).
        target_grams: ``gram_matrix`` of the target's maps.
    """
    layers = []
    for maps, target in zip(features, target_grams, strict=True):
        layers.append((gram_matrix(maps) - target).square().sum() / maps.numel())
    return LAYER_WEIGHT * torch.stack(layers).sum()
