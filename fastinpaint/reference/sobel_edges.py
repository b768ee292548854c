"""Sobel gradients: the truth for ``ops/sobel_edges.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sobel_edges(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2C, H, W): c0_dy, c0_dx, c1_dy, c1_dx, ...; see ``ops.sobel_edges``."""
    batch, channels, height, width = image.shape
    if image.numel() == 0:
        return image.repeat(1, 2, 1, 1)
    smooth = torch.tensor([1.0, 2.0, 1.0], dtype=image.dtype, device=image.device)
    slope = torch.tensor([-1.0, 0.0, 1.0], dtype=image.dtype, device=image.device)
    kernels = torch.stack([slope[:, None] * smooth, smooth[:, None] * slope])[:, None]  # (2, 1, 3, 3): dy, dx
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    gradients = F.conv2d(padded.reshape(batch * channels, 1, height + 2, width + 2), kernels)
    return gradients.reshape(batch, 2 * channels, height, width)
