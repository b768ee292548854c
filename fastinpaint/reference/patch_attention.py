"""Attention over k x k patches: the reference for ``ops/patch_attention.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_FLOOR = 1e-4


def key_grid(size: int, kernel_size: int, stride: int) -> tuple[int, int, int]:
    """Number of keys along one axis, and TensorFlow's SAME padding before and after."""
    count = -(-size // stride)
    total = max((count - 1) * stride + kernel_size - size, 0)
    return count, total // 2, total - total // 2


def key_patches(features: Tensor, kernel_size: int, stride: int) -> Tensor:
    """(B, C, H, W) -> (B, M, C, k, k): the zero-padded patches at the stride, row by row."""
    batch, channels, height, width = features.shape
    _, top, bottom = key_grid(height, kernel_size, stride)
    _, left, right = key_grid(width, kernel_size, stride)
    columns = F.unfold(F.pad(features, (left, right, top, bottom)), kernel_size, stride=stride)
    return columns.transpose(1, 2).reshape(batch, -1, channels, kernel_size, kernel_size)


def patch_attention(
    features: Tensor,
    *,
    kernel_size: int = 3,
    stride: int = 2,
    softmax_scale: float = 10.0,
    aggregation: str = "correlation",
) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W); see ``ops.patch_attention``."""
    if features.numel() == 0:
        return features.clone()
    pad = kernel_size // 2
    patches = key_patches(features, kernel_size, stride)  # (B, M, C, k, k)
    keys = patches.flatten(2)
    norm = keys.square().sum(2, keepdim=True).clamp_min(NORM_FLOOR**2).sqrt()
    around = F.unfold(features, kernel_size, padding=pad)  # (B, C k k, H W): the patch around every pixel
    attention = torch.softmax(softmax_scale * ((keys / norm) @ around), dim=1)  # (B, M, H W)
    # Folding lays the k x k parts of a sum of patches around its pixel; correlating lays them mirrored.
    values = patches.flip(3, 4) if aggregation == "correlation" else patches
    laid = values.flatten(2).transpose(1, 2) @ attention  # (B, C k k, H W)
    return F.fold(laid, features.shape[-2:], kernel_size, padding=pad) / 4
