"""Sobel gradients: the reference for ``ops/sobel_edges.py``.

Sums of shifted views, not a convolution: weights made on the host would be a copy that waits for a GPU, and a GPU may
round the operands of a convolution to TensorFloat-32.
"""

import torch
from torch import Tensor


def sobel_edges(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2C, H, W): c0_dy, c0_dx, c1_dy, c1_dx, ...; see ``ops.sobel_edges``."""
    rows = torch.cat([image[:, :, 1:2], image, image[:, :, -2:-1]], 2)  # (B, C, H + 2, W)
    padded = torch.cat([rows[..., 1:2], rows, rows[..., -2:-1]], 3)  # (B, C, H + 2, W + 2)
    slope = padded[:, :, 2:] - padded[:, :, :-2]  # (B, C, H, W + 2)
    smooth = (padded[:, :, 2:] + padded[:, :, :-2]) + 2 * padded[:, :, 1:-1]
    dy = (slope[..., 2:] + slope[..., :-2]) + 2 * slope[..., 1:-1]  # (B, C, H, W)
    dx = smooth[..., 2:] - smooth[..., :-2]
    return torch.stack([dy, dx], 2).flatten(1, 2)
