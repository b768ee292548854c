"""Perceptual losses on VGG features; scalars out, float32 also under autocast."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops._checks import at_least_float32

LAYER_WEIGHT = 0.2  # of each of the five layers


def gram_matrix(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C) float32 or wider: products of channels, summed over positions, over H * W * C.

    bfloat16 features on CUDA are multiplied as they are: the products are exact and summed in float32, so only the
    order of the sum differs from float32 features of the same values. Backward, the gradient of the matrix is rounded
    to bfloat16 first (relative error 2^-9 an element), as is the gradient of such features anyway.
    """
    with torch.autocast(features.device.type, enabled=False):
        count = features[0].numel()
        if features.is_cuda and features.dtype == torch.bfloat16:
            return _BFloat16Gram.apply(features.flatten(2)) / count
        flat = at_least_float32(features).flatten(2)  # (B, C, HW)
        return flat @ flat.transpose(1, 2) / count


class _BFloat16Gram(torch.autograd.Function):
    """(B, C, N) bfloat16 -> (B, C, C) float32: a product of each sample with its transpose."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        """Multiply in bfloat16, sum in float32."""
        ctx.save_for_backward(flat)
        transposed = flat.transpose(1, 2)
        if flat.is_cuda:
            return torch.bmm(flat, transposed, out_dtype=torch.float32)
        return flat.float() @ transposed.float()  # for tests: CPUs have no such product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """d/dF of F F^T is (G + G^T) F."""
        (flat,) = ctx.saved_tensors
        return (gradient + gradient.transpose(1, 2)).to(flat.dtype) @ flat


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
