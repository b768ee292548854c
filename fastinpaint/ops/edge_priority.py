"""Priority mask of an edge map."""

from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import custom_op, register
from fastinpaint.reference import edge_priority as reference

_OP = "edge_priority"
_TRITON_REACH, _TRITON_PIXELS = 12, 2**31  # MAX_REACH of fastinpaint_kernels.edge_priority; of one map
_LARGEST = 1023  # kernel side in pixels, and number of blurs: what is far above would never end
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
        kernel_size: Side of the kernel in pixels, odd, at most 1023.
        sigma: Standard deviation in pixels, above 0.
        iterations: Number of blurs, 0 to 1023.
        backend: ``"auto"``, ``"triton"`` (GPU; blurs that together reach 12 pixels or less, any dtype but float64),
            ``"native"`` (CPU; 64 pixels or less) or ``"reference"``. Forward-mode derivatives and torch.func take the
            reference.

    Returns:
        (B, 1, H, W) in [0, 1] for edges in [0, 1]; the dtype of ``edges``, float32 for bool.

    Raises:
        TypeError: ``edges`` is neither bool nor floating point, or an option is no number or no integer.
        ValueError: Wrong shape or option.
        BackendUnavailable: ``backend`` cannot run the call.
    """
    boolean = isinstance(edges, Tensor) and edges.dtype == torch.bool
    _checks.check_tensor(_OP, "edges", edges, "B", 1, "H", "W", floating=not boolean)
    _checks.check_odd(_OP, "kernel_size", kernel_size, most=_LARGEST)
    _checks.check_number(_OP, "sigma", sigma)
    if not sigma > 0:
        raise ValueError(f"{_OP}: sigma must be above 0 pixels, got {sigma}")
    _checks.check_integer(_OP, "iterations", iterations, least=0, most=_LARGEST)
    reach = iterations * (kernel_size // 2)
    chosen = _backend.choose(
        _OP, backend, edges.device,
        triton=lambda: _triton_gap(edges, reach), native=lambda: _native_gap(edges, reach),
    )  # fmt: skip
    if chosen == "triton":
        return torch.ops.fastinpaint_triton.edge_priority(edges, kernel_size, float(sigma), iterations)
    if chosen == "native":
        return torch.ops.fastinpaint.edge_priority(
            edges.float() if boolean else edges, kernel_size, float(sigma), iterations
        )
    dtype = torch.float32 if boolean else edges.dtype
    with _checks.without_autocast(edges.device):
        wide = edges.float() if boolean else _checks.at_least_float32(edges)
        return reference.edge_priority(wide, kernel_size=kernel_size, sigma=sigma, iterations=iterations).to(dtype)


def _triton_gap(edges: Tensor, reach: int) -> str | None:
    gap = _backend.triton_reason(edges)
    if gap is None and reach > _TRITON_REACH:
        return f"the blurs reach {reach} pixels, above {_TRITON_REACH}"
    if gap is None and edges.shape[2] * edges.shape[3] >= _TRITON_PIXELS:
        return f"it takes fewer than 2**31 pixels for each map, got {edges.shape[2]} x {edges.shape[3]}"
    return gap


def _native_gap(edges: Tensor, reach: int) -> str | None:
    if reach > _NATIVE_REACH:
        return f"the blurs reach {reach} pixels, above {_NATIVE_REACH}"
    return _backend.native_reason(_OP, edges)


@custom_op("fastinpaint_triton::edge_priority")
def _triton(edges: Tensor, kernel_size: int, sigma: float, iterations: int) -> Tensor:
    from fastinpaint_kernels import edge_priority as kernels

    return kernels.edge_priority(edges, kernel_size, sigma, iterations)


def _fake(edges: Tensor, kernel_size: int, sigma: float, iterations: int) -> Tensor:
    return edges.new_empty(edges.shape, dtype=torch.float32 if edges.dtype == torch.bool else edges.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[1:]


def _backward(namespace: str, ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    """The blur is its own transpose, because the kernel is symmetric and the padding zero."""
    return getattr(torch.ops, namespace).edge_priority(grad, *ctx.options), None, None, None


def _register(namespace: str) -> None:
    register(namespace, _OP, fake=_fake, backward=_backward, setup_context=_setup_context)


_register("fastinpaint_triton")
if _backend.has_native(_OP):
    _register("fastinpaint")
