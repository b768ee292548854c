"""Sobel gradients of an image."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import custom_op, register
from fastinpaint.reference import sobel_edges as reference

_OP = "sobel_edges"
_TRITON_ELEMENTS = 2**30  # of one image; offsets in its gradients stay below 2^31


def sobel_edges(image: Tensor, *, backend: str = "auto") -> Tensor:
    """Sobel gradients with unnormalised 3 x 3 kernels, as ``tf.image.sobel_edges`` computes them.

    The border is padded by reflection (the edge pixel is not repeated). dy grows downwards, dx to the right.

    Args:
        image: (B, C, H, W) floating point, any range; H and W at least 2.
        backend: ``"auto"``, ``"triton"`` (GPU; fewer than 2^30 elements an image, any dtype but float64), ``"native"``
            (CPU) or ``"reference"``. Forward-mode derivatives and torch.func take the reference.

    Returns:
        (B, 2C, H, W) in the dtype of ``image``, channels c0_dy, c0_dx, c1_dy, c1_dx, ...; within 8 times the
        range of the image.

    Raises:
        TypeError: ``image`` is no floating-point tensor.
        ValueError: Wrong rank, or a side below 2.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    _checks.check_tensor(_OP, "image", image, "B", "C", "H", "W")
    if min(image.shape[-2:]) < 2:
        raise ValueError(f"{_OP}: height and width must be at least 2, got {tuple(image.shape[-2:])}")
    chosen = _backend.choose(
        _OP, backend, image.device,
        triton=lambda: _triton_gap(image), native=lambda: _backend.native_reason(_OP, image),
    )  # fmt: skip
    if chosen == "triton":
        return torch.ops.fastinpaint_triton.sobel_edges(image)
    if chosen == "native":
        return torch.ops.fastinpaint.sobel_edges(image)
    with _checks.without_autocast(image.device):
        return reference.sobel_edges(_checks.at_least_float32(image)).to(image.dtype)


def _triton_gap(image: Tensor) -> str | None:
    gap = _backend.triton_reason(image)
    if gap is None and image.shape[1:].numel() >= _TRITON_ELEMENTS:
        return f"it takes fewer than 2**30 elements for each image, got {tuple(image.shape)}"
    return gap


@custom_op("fastinpaint_triton::sobel_edges")
def _triton(image: Tensor) -> Tensor:
    from fastinpaint_kernels import sobel_edges as kernels

    return kernels.sobel_edges_forward(image)


@custom_op("fastinpaint_triton::sobel_edges_backward")
def _triton_backward(gradients: Tensor) -> Tensor:
    from fastinpaint_kernels import sobel_edges as kernels

    return kernels.sobel_edges_backward(gradients)


def _empty(namespace: str, of: Tensor, channels: int) -> Tensor:
    """A map like ``of`` with so many channels: Triton's keep the layout, native ones are contiguous."""
    last = of.is_contiguous(memory_format=torch.channels_last) and not of.is_contiguous()
    layout = torch.channels_last if last and namespace == "fastinpaint_triton" else torch.contiguous_format
    size = (of.shape[0], channels, *of.shape[2:])
    return torch.empty(size, dtype=of.dtype, device=of.device, memory_format=layout)


def _fake(namespace: str, image: Tensor) -> Tensor:
    return _empty(namespace, image, 2 * image.shape[1])


def _backward(namespace: str, ctx: Any, grad: Tensor) -> Tensor:
    result: Tensor = getattr(torch.ops, namespace).sobel_edges_backward(grad)
    return result


def _backward_fake(namespace: str, gradients: Tensor) -> Tensor:
    return _empty(namespace, gradients, gradients.shape[1] // 2)


def _backward_of_backward(namespace: str, ctx: Any, grad: Tensor) -> Tensor:
    result: Tensor = getattr(torch.ops, namespace).sobel_edges(grad)
    return result


def _register(namespace: str) -> None:
    register(
        namespace,
        _OP,
        fake=partial(_fake, namespace),
        backward=_backward,
        backward_fake=partial(_backward_fake, namespace),
        backward_of_backward=_backward_of_backward,
    )


_register("fastinpaint_triton")
if _backend.has_native(_OP):
    _register("fastinpaint")
