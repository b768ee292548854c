"""Perceptual losses on VGG features; scalars out, float32 also under autocast."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
        half = features.is_cuda and features.dtype == torch.bfloat16
        gram: Tensor = _Gram.apply((features if half else at_least_float32(features)).flatten(2))
        return gram / count


class _Gram(torch.autograd.Function):
    """(B, C, N) -> (B, C, C), a product of each sample with its transpose; of bfloat16 in float32.

    d/dF of F F^T is (G + G^T) F, one product where autograd would take two.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(flat: Tensor) -> Tensor:
        transposed = flat.transpose(1, 2)
        if flat.dtype != torch.bfloat16:
            return flat @ transposed
        if flat.is_cuda:
            return torch.bmm(flat, transposed, out_dtype=torch.float32)
        return flat.float() @ transposed.float()  # for tests: CPUs have no such product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (flat,) = ctx.saved_tensors
        both = (gradient + gradient.transpose(1, 2)).to(flat.dtype)
        if flat.stride(1) == 1:  # channels-last, and so is the gradient then
            return (flat.transpose(1, 2) @ both).transpose(1, 2)
        return both @ flat

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (flat,) = ctx.saved_tensors
        half = tangent @ flat.transpose(1, 2)
        return half + half.transpose(1, 2)


def content_loss(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """0.2 * the sum over layers of mean((a - b)^2).

    bfloat16 maps on CUDA are not widened: differences are rounded to bfloat16 (relative error 2^-9 each), their squares
    are summed in float32.

    Args:
        features: Maps (k B, C, H, W), k at least 1.
        targets: Maps (B, C, H, W), compared with each B samples of ``features`` in turn.
    """
    pairs = zip(features, targets, strict=True)
    return LAYER_WEIGHT * torch.stack([_mean_squared_difference(a, b) for a, b in pairs]).sum()


def _mean_squared_difference(maps: Tensor, target: Tensor) -> Tensor:
    with torch.autocast(maps.device.type, enabled=False):
        if maps.is_cuda and maps.dtype == target.dtype == torch.bfloat16 and not target.requires_grad:
            return _BFloat16SquaredDifference.apply(maps, target) / maps.numel()
        parts = at_least_float32(maps).unflatten(0, (-1, target.shape[0]))  # (k, B, C, H, W)
        return F.mse_loss(parts, at_least_float32(target).expand_as(parts))


class _BFloat16SquaredDifference(torch.autograd.Function):
    """(k B, C, H, W) and (B, C, H, W), both bfloat16 -> the sum of squared differences, float32."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, target: Tensor) -> Tensor:
        """Subtract in bfloat16, sum in float32."""
        difference = torch.empty_like(maps)
        for part, out in zip(maps.split(len(target)), difference.split(len(target)), strict=True):
            torch.sub(part, target, out=out)
        ctx.save_for_backward(difference)
        return torch.linalg.vector_norm(difference, dtype=torch.float32).square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Twice the differences times the gradient, in float32 before it is rounded once."""
        (difference,) = ctx.saved_tensors
        factor = (2 * gradient).reshape(1, 1, 1, 1)  # of rank 0 it would be rounded to bfloat16
        return torch.mul(difference, factor, out=torch.empty_like(difference)), None


def style_loss(features: Sequence[Tensor], target_grams: Sequence[Tensor]) -> Tensor:
    """0.2 * the sum over layers of sum((gram_a - gram_b)^2) / (B * H * W * C).

    Args:
        features: Maps (k B, C, H, W), k at least 1; B counts all samples in the formula.
        target_grams: ``gram_matrix`` of the target's maps, (B, C, C), compared with each B samples in turn.
    """
    layers = []
    for maps, target in zip(features, target_grams, strict=True):
        grams = gram_matrix(maps).unflatten(0, (-1, target.shape[0]))  # (k, B, C, C)
        layers.append((grams - target).square().sum() / maps.numel())
    return LAYER_WEIGHT * torch.stack(layers).sum()
