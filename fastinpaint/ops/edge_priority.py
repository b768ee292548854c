"""Priority mask of an edge map."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import edge_priority as reference

_OP = "edge_priority"
_NATIVE_REACH = 64  # pixels; kMaxBlurRadius of the extension


def edge_priority(
    edges: Tensor,
    *,
    kernel_size: int = 5,
    sigma: float = 1.0,
    iterations: int = 2,
    backend: str = "auto",
) -> Tensor:
    """Blur an edge map repeatedly, so that errors near an edge weigh more (paper, pyramid structure loss).

    Each iteration convolves with the ``kernel_size`` x ``kernel_size`` Gaussian of ``cv2.getGaussianKernel`` and
    pads with zeros, so a stroke near the border loses weight to the outside.

    Args:
        edges: (B, 1, H, W), bool or floating point, 1 = edge.
        kernel_size: Side of the kernel in pixels, odd.
        sigma: Standard deviation in pixels, above 0.
        iterations: Number of blurs, at least 0.
        backend: ``"auto"``, ``"native"`` (blurs that reach 64 pixels or less) or ``"reference"``.

    Returns:
        (B, 1, H, W) in [0, 1] for edges in [0, 1]; the dtype of ``edges``, float32 for bool.

    Raises:
        TypeError: ``edges`` is neither bool nor floating point.
        ValueError: Wrong shape or option, or a backend that cannot serve.
    """
    boolean = isinstance(edges, Tensor) and edges.dtype == torch.bool
    _checks.check_tensor(_OP, "edges", edges, "(B, 1, H, W)", floating=not boolean)
    _checks.check_odd(_OP, "kernel_size", kernel_size)
    if not sigma > 0:
        raise ValueError(f"{_OP}: sigma must be above 0 pixels, got {sigma}")
    if iterations < 0:
        raise ValueError(f"{_OP}: iterations must be at least 0, got {iterations}")
    native = _native_gap(edges, iterations * (kernel_size // 2))
    if _backend.select(_OP, backend, {"native": native, "reference": None}) == "native":
        return torch.ops.fastinpaint.edge_priority(
            edges.float() if boolean else edges, kernel_size, float(sigma), iterations
        )
    dtype = torch.float32 if boolean else edges.dtype
    with torch.autocast(edges.device.type, enabled=False):
        wide = edges.float() if boolean else _checks.at_least_float32(edges)
        return reference.edge_priority(wide, kernel_size=kernel_size, sigma=sigma, iterations=iterations).to(dtype)


def _native_gap(edges: Tensor, reach: int) -> str | None:
    if reach > _NATIVE_REACH:
        return f"the blurs reach {reach} pixels, above {_NATIVE_REACH}"
    return _backend.native_reason(_OP, edges)


def _fake(edges: Tensor, kernel_size: int, sigma: float, iterations: int) -> Tensor:
    return edges.new_empty(edges.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[1:]


# The kernel is symmetric and the padding zero, so the blur is its own transpose.
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.fastinpaint.edge_priority(grad, *ctx.options), None, None, None


if _backend.has_native(_OP):
    torch.library.register_fake("fastinpaint::edge_priority", _fake)
    torch.library.register_autograd("fastinpaint::edge_priority", _backward, setup_context=_save)
