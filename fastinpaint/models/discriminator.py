"""70 x 70 PatchGAN discriminator with spectral norm."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinpaint.models.layers import init_convolution
from fastinpaint.models.pretrained import Pretrained

STRIDES = (2, 2, 2, 1, 1)
KERNEL_SIZE = 4
LEAK = 0.2


def same_padding(size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding before and after an axis, in pixels; an odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + KERNEL_SIZE - size, 0)
    return total // 2, total - total // 2


class SpectralConv(nn.Module):
    """4 x 4 SAME convolution whose kernel is divided by its largest singular value, then leaky ReLU 0.2.

    (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)). The kernel is seen as a matrix (out, in * 16) and
    its singular value is estimated by one power iteration from the stored vector ``u``. Training mode stores the
    improved ``u`` on every forward; evaluation mode computes the same output from it and stores nothing.
    The gradient flows through the iteration. As in the original system, whose backward pass reads ``u`` after its
    update, it starts at the improved ``u`` where the value started at the stored one.
    """

    u: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, leaky_relu: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, KERNEL_SIZE, stride)
        self.stride = stride
        self.leaky_relu = leaky_relu
        self.register_buffer("u", F.normalize(torch.randn(1, out_channels)))
        init_convolution(self.convolution)

    def normalised_weight(self) -> Tensor:
        """The kernel over its estimated largest singular value, float32 or wider; moves ``u`` in training."""
        weight = self.convolution.weight
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)  # (out, in * 16)
            with torch.no_grad():
                stored = self.u @ matrix  # (1, in * 16)
                u = F.normalize(F.normalize(stored) @ matrix.t())
            moved = u @ matrix
            v = F.normalize(moved + (stored - moved).detach())
            sigma = (v @ matrix.t() @ u.t()).squeeze()
            if self.training:
                with torch.no_grad():
                    self.u.copy_(u)
            return weight / sigma

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, h, w)."""
        (top, bottom), (left, right) = (same_padding(size, self.stride) for size in x.shape[-2:])
        padding = (top, left)
        if padding != (bottom, right):
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        x = F.conv2d(x, self.normalised_weight(), self.convolution.bias, self.stride, padding)
        return F.leaky_relu(x, LEAK) if self.leaky_relu else x


class PatchDiscriminator(Pretrained, nn.Module):
    """Judge overlapping 70 x 70 pixel patches: (B, 3, H, W) in [-1, 1] -> logits (B, 1, ceil(H / 8), ceil(W / 8)).

    Convolutions start Glorot-uniform with zero bias; the spectral norm makes their scale irrelevant.

    Args:
        base_channels: Width of the first layer, at least 1.

    Raises:
        ValueError: A width below 1.
    """

    def __init__(self, base_channels: int = 64) -> None:
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"base_channels must be at least 1, got {base_channels}")
        self.base_channels = base_channels
        widths = (3, base_channels, 2 * base_channels, 4 * base_channels, 8 * base_channels, 1)
        self.layers = nn.Sequential(
            *(
                SpectralConv(*pair, stride, leaky_relu=index < len(STRIDES) - 1)
                for index, (pair, stride) in enumerate(zip(pairwise(widths), STRIDES, strict=True))
            )
        )

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that built this discriminator."""
        return {"base_channels": self.base_channels}

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, h, w). Raises ValueError for another rank or number of channels."""
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"the discriminator wants (B, 3, H, W), got {tuple(image.shape)}")
        return self.layers(image)
