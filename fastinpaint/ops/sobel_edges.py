"""Sobel gradients of an image."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import sobel_edges as reference

_OP = "sobel_edges"


def sobel_edges(image: Tensor, *, backend: str = "auto") -> Tensor:
    """Sobel gradients with unnormalised 3 x 3 kernels, as ``tf.image.sobel_edges`` computes them.

    The border is padded by reflection (the edge pixel is not repeated). dy grows downwards, dx to the right.

    Args:
        image: (B, C, H, W) floating point, any range; H and W at least 2.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.

    Returns:
        (B, 2C, H, W) in the dtype of ``image``, channels c0_dy, c0_dx, c1_dy, c1_dx, ...; within 8 times the
        range of the image.

    Raises:
        TypeError: ``image`` is no floating-point tensor.
        ValueError: Wrong rank, a side below 2, or a backend that cannot serve.
    """
    _checks.check_tensor(_OP, "image", image, "(B, C, H, W)")
    if min(image.shape[-2:]) < 2:
        raise ValueError(f"{_OP}: height and width must be at least 2, got {tuple(image.shape[-2:])}")
    native = _backend.native_reason(_OP, image)
    if _backend.select(_OP, backend, {"native": native, "reference": None}) == "native":
        return torch.ops.fastinpaint.sobel_edges(image)
    with torch.autocast(image.device.type, enabled=False):
        return reference.sobel_edges(_checks.at_least_float32(image)).to(image.dtype)


def _fake(image: Tensor) -> Tensor:
    batch, channels, height, width = image.shape
    return image.new_empty((batch, 2 * channels, height, width))


def _transposed_fake(gradients: Tensor) -> Tensor:
    batch, channels, height, width = gradients.shape
    return gradients.new_empty((batch, channels // 2, height, width))


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return torch.ops.fastinpaint.sobel_edges_backward(grad)


def _transposed_backward(ctx: Any, grad: Tensor) -> Tensor:
    return torch.ops.fastinpaint.sobel_edges(grad)


if _backend.has_native(_OP):
    torch.library.register_fake("fastinpaint::sobel_edges", _fake)
    torch.library.register_autograd("fastinpaint::sobel_edges", _backward)
    torch.library.register_fake("fastinpaint::sobel_edges_backward", _transposed_fake)
    torch.library.register_autograd("fastinpaint::sobel_edges_backward", _transposed_backward)
