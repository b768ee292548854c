"""Convolution and ReLU: the reference for ``ops/conv2d.py``."""

import torch.nn.functional as F
from torch import Tensor


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, relu: bool
) -> Tensor:
    """(B, C, H, W), (out, C, k, k), (out) or None -> (B, out, h, w), as ``torch.nn.functional.conv2d``."""
    y = F.conv2d(x, weight, bias, stride, padding, dilation)
    return F.relu(y, inplace=True) if relu else y
