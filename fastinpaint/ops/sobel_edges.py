"""Sobel gradients of an image."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import sobel_edges as reference

_OP = "sobel_edges"
_TRITON_ELEMENTS = 2**30  # of one image; offsets in its gradients stay below 2^31


def sobel_edges(image: Tensor, *, backend: str = "auto") -> Tensor:
    """Sobel gradients with unnormalised 3 x 3 kernels, as ``tf.image.sobel_edges`` computes them.

    The border is padded by reflection (the edge pixel is not repeated). dy grows downwards, dx to the right.

    Args:
        image: (B, C, H, W) floating point, any range; H and W at least 2.
        backend: ``"auto"``, ``"triton"`` (GPU; fewer than 2^30 elements an image, any dtype but float64), ``"native"``
            (CPU) or ``"reference"``.

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
    gaps = {"triton": _triton_gap(image), "native": _backend.native_reason(_OP, image)}
    chosen = _backend.select(_OP, backend, _backend.ranked(image.device, **gaps))
    if chosen == "triton":
        return torch.ops.fastinpaint_triton.sobel_edges(image)
    if chosen == "native":
        return torch.ops.fastinpaint.sobel_edges(image)
    with torch.autocast(image.device.type, enabled=False):
        return reference.sobel_edges(_checks.at_least_float32(image)).to(image.dtype)


def _triton_gap(image: Tensor) -> str | None:
    _, channels, height, width = image.shape
    if channels * height * width >= _TRITON_ELEMENTS:
        return f"it takes fewer than 2**30 elements for each image, got {channels} x {height} x {width}"
    return _backend.triton_reason(image)


@torch.library.custom_op("fastinpaint_triton::sobel_edges", mutates_args=())
def _triton_forward(image: Tensor) -> Tensor:
    from fastinpaint_kernels import sobel_edges as kernels

    return kernels.sobel_edges_forward(image)


@torch.library.custom_op("fastinpaint_triton::sobel_edges_backward", mutates_args=())
def _triton_backward(gradients: Tensor) -> Tensor:
    from fastinpaint_kernels import sobel_edges as kernels

    return kernels.sobel_edges_backward(gradients)


def _fake(image: Tensor) -> Tensor:
    batch, channels, height, width = image.shape
    return image.new_empty((batch, 2 * channels, height, width))


def _backward_fake(gradients: Tensor) -> Tensor:
    batch, channels, height, width = gradients.shape
    return gradients.new_empty((batch, channels // 2, height, width))


def _in_layout_of(fake: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The result of a fake kernel in the memory layout of its argument."""

    def result(tensor: Tensor) -> Tensor:
        last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty_like(fake(tensor), memory_format=layout)

    return result


def _register(namespace: str, fake: Callable[[Tensor], Tensor], backward_fake: Callable[[Tensor], Tensor]) -> None:
    """Tell torch about shapes and gradients of the operator and of its transpose, each the other's gradient."""

    def run_backward(ctx: Any, grad: Tensor) -> Tensor:
        result: Tensor = getattr(torch.ops, namespace).sobel_edges_backward(grad)
        return result

    def run_transposed(ctx: Any, grad: Tensor) -> Tensor:
        result: Tensor = getattr(torch.ops, namespace).sobel_edges(grad)
        return result

    torch.library.register_fake(f"{namespace}::sobel_edges", fake)
    torch.library.register_autograd(f"{namespace}::sobel_edges", run_backward)
    torch.library.register_fake(f"{namespace}::sobel_edges_backward", backward_fake)
    torch.library.register_autograd(f"{namespace}::sobel_edges_backward", run_transposed)


_register("fastinpaint_triton", _in_layout_of(_fake), _in_layout_of(_backward_fake))
if _backend.has_native(_OP):
    _register("fastinpaint", _fake, _backward_fake)
