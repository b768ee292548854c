"""Layers of the generator; weights are kept in torch layout (out, in, k, k).

The reflect padding that a convolution needs is written by the norm in front of it, so that padding is no pass over
memory of its own: layers take ``padding`` for their result and ``padded`` for an input that has theirs already.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinpaint.ops.conv2d import conv2d
from fastinpaint.ops.instance_norm import instance_norm
from fastinpaint.ops.patch_attention import patch_attention
from fastinpaint.ops.pooled_attention import pooled_attention

NORM_EPS = 1e-6


def init_convolution(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Draw Glorot-uniform weights and zero the bias, the default of TensorFlow's layers."""
    nn.init.xavier_uniform_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def _without_bias(x: Tensor) -> bool:
    """Say whether convolutions in front of a norm leave their bias out.

    The norm takes each channel's mean away and with it any constant, so in exact arithmetic the bias changes neither
    the result nor a gradient. On CUDA adding it is a pass over memory of its own, and so is its gradient, whose exact
    value is 0.
    """
    return x.is_cuda


class _Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` by ``conv2d``, with the same stride, padding and dilation on both axes."""

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.bias)

    def _convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        return conv2d(x, self.weight, bias, stride=stride, padding=padding, dilation=dilation)


class _NormedConv2d(_Conv2d):
    """A convolution in front of a norm; its bias keeps converted weights whole and gets no gradient on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, None if _without_bias(x) else self.bias)


class _NormedConvTranspose2d(nn.ConvTranspose2d):
    """As ``_NormedConv2d``, transposed."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        bias = None if _without_bias(x) else self.bias
        return F.conv_transpose2d(x, self.weight, bias, self.stride, self.padding)  # type: ignore[arg-type]


class _WithInterior(torch.autograd.Function):
    """A padded map and its interior; plain slicing would hand contiguous gradients back, in two passes each."""

    @staticmethod
    def forward(x: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x[..., padding:-padding, padding:-padding]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.padding = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_interior: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_interior is None:
            return grad, None
        spread = F.pad(grad_interior, (ctx.padding,) * 4)
        return spread if grad is None else grad + spread, None


def with_interior(x: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """A padded map for the convolution that needs its padding, and a view without it for everyone else.

    (B, C, H + 2 padding, W + 2 padding) -> itself, (B, C, H, W).
    """
    if padding == 0:
        return x, x
    padded, interior = _WithInterior.apply(x, padding)
    return padded, interior


def reflect(x: Tensor, padding: int) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2 padding, W + 2 padding), reflected without the border pixel itself."""
    return F.pad(x, (padding,) * 4, mode="reflect") if padding else x


class ConvNorm(nn.Module):
    """Reflect padding by int(rate * (k - 1) / 2), convolution, instance norm, activation.

    (B, in, H, W) -> (B, out, h, w); h = H for stride 1 and odd k, h = H / 2 for stride 2, even H and k of 3 or 4.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel_size: Side k in pixels.
        stride: Step in pixels.
        rate: Dilation in pixels.
        norm: False leaves the instance norm out.
        relu: False leaves the activation out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        rate: int = 1,
        norm: bool = True,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.padding = rate * (kernel_size - 1) // 2
        convolution = _NormedConv2d if norm else _Conv2d
        self.convolution = convolution(in_channels, out_channels, kernel_size, stride, dilation=rate)
        self.norm = nn.InstanceNorm2d(out_channels, NORM_EPS, affine=True) if norm else None
        self.relu = relu
        init_convolution(self.convolution)

    def forward(self, x: Tensor, *, padded: bool = False, padding: int = 0, residual: Tensor | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, h, w).

        Args:
            x: The input; with ``padded`` it has ``self.padding`` pixels of reflect padding on every side.
            padded: See ``x``.
            padding: Reflect padding of the result in pixels.
            residual: (B, out, h, w), added before the activation.
        """
        x = self.convolution(x if padded else reflect(x, self.padding))
        if self.norm is not None:
            return _norm(self.norm, x, residual=residual, relu=self.relu, padding=padding)
        x = x if residual is None else residual + x
        return reflect(F.relu(x) if self.relu else x, padding)


def _norm(norm: nn.InstanceNorm2d, x: Tensor, **options: Any) -> Tensor:
    return instance_norm(x, norm.weight, norm.bias, norm.eps, **options)


class UpConvNorm(nn.Module):
    """Transposed convolution of stride 2, instance norm, ReLU: (B, in, H, W) -> (B, out, 2H, 2W).

    The geometry is TensorFlow's SAME: what k > 2 writes beyond twice the size is cropped evenly, an odd pixel at
    the end.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.convolution = _NormedConvTranspose2d(
            in_channels, out_channels, kernel_size, stride=2, padding=(kernel_size - 2) // 2
        )
        self.norm = nn.InstanceNorm2d(out_channels, NORM_EPS, affine=True)
        init_convolution(self.convolution)

    def forward(
        self, x: Tensor, *, padding: int = 0, residual: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W).

        Args:
            x: The input.
            padding: Reflect padding of the result in pixels.
            residual: (B, out, 2H, 2W), to which ``scale`` times the activated norm is added.
            scale: (1), given together with ``residual``.
        """
        height, width = 2 * x.shape[-2], 2 * x.shape[-1]
        x = self.convolution(x)[..., :height, :width]
        return _norm(self.norm, x, residual=residual, scale=scale, relu=True, padding=padding)


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv of rate 2)))), no ReLU after the sum: (B, C, H, W) -> same."""

    padding = 2  # that of its first convolution

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dilated = ConvNorm(channels, channels, 3, rate=2)
        self.plain = ConvNorm(channels, channels, 3, relu=False)

    def forward(self, x: Tensor, *, padded: bool = False, padding: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ``padded`` and ``padding`` as in ``ConvNorm``."""
        x, residual = with_interior(x, self.padding) if padded else (x, x)
        y = self.dilated(x, padded=padded, padding=self.plain.padding)
        return self.plain(y, padded=True, padding=padding, residual=residual)


class PooledAttention(nn.Module):
    """Attention of half-size positions over twice pooled keys, added with a learned scale that starts at 0.

    (B, C, H, W) -> same; H and W divisible by 4. Width of queries, keys and values: max(C // 16, 1).
    """

    padding = 1  # that of its first convolution

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(channels // 16, 1)
        self.down = ConvNorm(channels, channels, 4, stride=2)
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, width, 1)
        self.up = UpConvNorm(width, channels, 4)
        self.gamma = nn.Parameter(torch.zeros(1))
        for convolution in (self.query, self.key, self.value):
            init_convolution(convolution)

    def operands(self, x: Tensor, *, padded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> query (B, H W / 4, d), key and value (B, H W / 16, d); contiguous for channels-last maps."""
        y = self.down(x, padded=padded)  # (B, C, H / 2, W / 2)
        query, key, value = self.query(y), F.max_pool2d(self.key(y), 2), F.max_pool2d(self.value(y), 2)
        return _positions(query), _positions(key), _positions(value)

    def forward(self, x: Tensor, *, padded: bool = False, padding: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ``padded`` and ``padding`` as in ``ConvNorm``."""
        x, residual = with_interior(x, self.padding) if padded else (x, x)
        attended = pooled_attention(*self.operands(x, padded=padded)).transpose(1, 2)  # (B, d, H W / 4)
        height, width = residual.shape[-2:]
        attended = attended.unflatten(2, (height // 2, width // 2))  # channels-last
        if residual.stride(1) != 1:
            attended = attended.contiguous()
        return self.up(attended, padding=padding, residual=residual, scale=self.gamma)


def _positions(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return maps.flatten(2).transpose(1, 2)


class PatchAttention(nn.Module):
    """Attention over similar patches, added with a learned scale that starts at 0, then a 3 x 3 convolution.

    (B, C, H, W) -> same; H and W even when scaling down. The last convolution pads with zeros and has no norm.

    Args:
        channels: C.
        kernel_size: Side of a patch in pixels, odd.
        stride: Distance of neighbouring keys in pixels.
        down_scale: Attend at half size, as the generator does.
    """

    def __init__(self, channels: int, kernel_size: int = 3, stride: int = 2, *, down_scale: bool = True) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = 1 if down_scale else 0  # that of its first convolution
        self.down = ConvNorm(channels, channels, 3, stride=2) if down_scale else None
        self.up = UpConvNorm(channels, channels, 3) if down_scale else None
        self.gamma = nn.Parameter(torch.zeros(1))
        self.out = _Conv2d(channels, channels, 3, padding=1)
        init_convolution(self.out)

    def forward(self, x: Tensor, *, padded: bool = False, padding: int = 0) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ``padded`` and ``padding`` as in ``ConvNorm``."""
        x, residual = with_interior(x, self.padding) if padded else (x, x)
        y = x if self.down is None else self.down(x, padded=padded)
        y = patch_attention(y, kernel_size=self.kernel_size, stride=self.stride)
        x = residual + self.gamma * y if self.up is None else self.up(y, residual=residual, scale=self.gamma)
        return reflect(F.relu(self.out(x)), padding)
