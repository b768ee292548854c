"""Pyramid structure loss: multi-scale gradients, weighted near edges."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops.canny import canny_of_sizes
from fastinpaint.reference import structure_loss as reference

_OP = "pyramid_structure_loss"
_TRITON_SCALES, _TRITON_SIDE = 8, 16384  # MAX_SCALES and MAX_SIDE of fastinpaint_kernels.structure_loss


def structure_loss_terms(
    image: Tensor,
    predictions: Sequence[Tensor],
    *,
    edges: Sequence[Tensor] | None = None,
    sigma: float = 1.5,
    edge_alpha: float = 20.0,
    grad_alpha: float = 0.1,
    backend: str = "auto",
) -> Tensor:
    """The weighted terms that ``pyramid_structure_loss`` sums; same arguments and errors.

    Returns:
        (scales, 2) float32 (float64 for a float64 image): column 0 the edge term, column 1 the gradient term.
    """
    _check(image, predictions, edges, sigma)
    if edges is None:
        with torch.no_grad():
            edges = canny_of_sizes(image, [(p.shape[-2], p.shape[-1]) for p in predictions], sigma=sigma)
    gaps = {"triton": _triton_gap(image, predictions, edges), "native": _native_gap(image, predictions, edges)}
    chosen = _backend.select(_OP, backend, _backend.ranked(image.device, **gaps))
    if chosen == "triton":
        run = torch.ops.fastinpaint_triton.structure_loss
        keep = torch.is_grad_enabled() and any(prediction.requires_grad for prediction in predictions)
        return run(image, _alike(predictions), list(edges), float(edge_alpha), float(grad_alpha), keep)[0]
    if chosen == "native":
        run = torch.ops.fastinpaint.structure_loss
        return run(image, list(predictions), list(edges), float(edge_alpha), float(grad_alpha))[0]
    with torch.autocast(image.device.type, enabled=False):
        wide = [_checks.at_least_float32(prediction) for prediction in predictions]
        return reference.structure_loss_terms(
            _checks.at_least_float32(image), wide, edges=edges, edge_alpha=edge_alpha, grad_alpha=grad_alpha
        )


def pyramid_structure_loss(
    image: Tensor,
    predictions: Sequence[Tensor],
    *,
    edges: Sequence[Tensor] | None = None,
    sigma: float = 1.5,
    edge_alpha: float = 20.0,
    grad_alpha: float = 0.1,
    backend: str = "auto",
) -> Tensor:
    """Supervise predicted gradient maps at several scales (paper, pyramid structure loss).

    For each prediction the image is resized to its size (nearest, row i from row floor(i * H / h)) and its Sobel
    gradients t are the target. With E = abs(prediction - t), P = ``edge_priority`` of the edge map and
    w = ``edge_alpha`` * P the scale adds ``grad_alpha`` * mean(E) + sum(w * E) / sum(w) / 6. A scale without a
    single edge in the whole batch adds 0 for the second term, where the original system gives NaN.

    Args:
        image: (B, 3, H, W) floating point in [-1, 1], H and W at least 2.
        predictions: Gradient maps (B, 6, h, w), any h and w of at least 2, channels as ``sobel_edges`` orders them.
        edges: Edge maps (B, 1, h, w), bool or floating point, one for each prediction; None computes ``canny`` of
            the resized image. On [-1, 1] its thresholds are half as strict as on [0, 1], as in the original system.
        sigma: Standard deviation of Canny's Gaussian in pixels; unused when ``edges`` are given.
        edge_alpha: Weight of the priority mask. It cancels in the quotient; 0 switches the edge term off.
        grad_alpha: Weight of the mean absolute error.
        backend: ``"auto"``, ``"triton"`` (GPU; up to 8 scales), ``"native"`` (CPU) or ``"reference"``. The first two
            give gradients with respect to ``predictions`` only.

    Returns:
        Scalar float32 (float64 for a float64 image), differentiable with respect to ``predictions`` and ``image``.

    Raises:
        TypeError: A tensor of the wrong type or dtype.
        ValueError: A wrong shape, no prediction, a wrong number of edge maps, or a backend that cannot serve.
    """
    return structure_loss_terms(
        image,
        predictions,
        edges=edges,
        sigma=sigma,
        edge_alpha=edge_alpha,
        grad_alpha=grad_alpha,
        backend=backend,
    ).sum()


def _alike(predictions: Sequence[Tensor]) -> list[Tensor]:
    """The predictions in one dtype, and all channels-last or all contiguous."""
    if len({prediction.dtype for prediction in predictions}) > 1:
        predictions = [prediction.float() for prediction in predictions]
    if all(prediction.is_contiguous(memory_format=torch.channels_last) for prediction in predictions):
        return list(predictions)
    return [prediction.contiguous() for prediction in predictions]


def _gradient_gap(image: Tensor, edges: Sequence[Tensor]) -> str | None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (image, *edges)):
        return "it has gradients with respect to predictions, not to image or edges"
    return None


def _triton_gap(image: Tensor, predictions: Sequence[Tensor], edges: Sequence[Tensor]) -> str | None:
    side = max(max(tensor.shape[-2:]) for tensor in (image, *predictions))
    if len(predictions) > _TRITON_SCALES or side > _TRITON_SIDE:
        return f"it takes {_TRITON_SCALES} scales of {_TRITON_SIDE} pixels, got {len(predictions)} of up to {side}"
    return _gradient_gap(image, edges) or _backend.triton_reason(image, *predictions)


def _native_gap(image: Tensor, predictions: Sequence[Tensor], edges: Sequence[Tensor]) -> str | None:
    if image.dtype == torch.float64:
        return "a float64 image is served by the reference"
    return _gradient_gap(image, edges) or _backend.native_reason("structure_loss", image, *predictions, *edges)


def _check(image: Tensor, predictions: Sequence[Tensor], edges: Sequence[Tensor] | None, sigma: float) -> None:
    _checks.check_tensor(_OP, "image", image, "(B, 3, H, W)")
    if isinstance(predictions, Tensor) or isinstance(edges, Tensor):
        raise TypeError(f"{_OP}: predictions and edges must be sequences of tensors, got one tensor")
    if not predictions:
        raise ValueError(f"{_OP}: predictions must hold at least one gradient map, got none")
    if edges is not None and len(edges) != len(predictions):
        raise ValueError(f"{_OP}: wanted one edge map for each of {len(predictions)} predictions, got {len(edges)}")
    batch = image.shape[0]
    for index, prediction in enumerate(predictions):
        name = f"predictions[{index}]"
        _checks.check_tensor(_OP, name, prediction, f"({batch}, 6, h, w)")
        _checks.check_same_device(_OP, image=image, **{name: prediction})
        height, width = prediction.shape[-2:]
        if min(height, width, *image.shape[-2:]) < 2:
            raise ValueError(f"{_OP}: sides must be at least 2, got {name} {tuple(prediction.shape)}")
        if edges is not None:
            edge_map = edges[index]
            boolean = isinstance(edge_map, Tensor) and edge_map.dtype == torch.bool
            layout = f"({batch}, 1, {height}, {width})"
            _checks.check_tensor(_OP, f"edges[{index}]", edge_map, layout, floating=not boolean)
            _checks.check_same_device(_OP, image=image, **{f"edges[{index}]": edge_map})
    if edges is None and not sigma >= 0:
        raise ValueError(f"{_OP}: sigma must be at least 0 pixels, got {sigma}")


@torch.library.custom_op("fastinpaint_triton::structure_loss", mutates_args=())
def _triton_forward(
    image: Tensor, predictions: list[Tensor], edges: list[Tensor], edge_alpha: float, grad_alpha: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastinpaint_kernels import structure_loss as kernels

    return kernels.structure_loss_forward(image, predictions, edges, edge_alpha, grad_alpha, keep)


@torch.library.custom_op("fastinpaint_triton::structure_loss_backward", mutates_args=())
def _triton_backward(
    grad_terms: Tensor, coefficients: Tensor, priority: Tensor, signs: Tensor, predictions: list[Tensor]
) -> list[Tensor]:
    from fastinpaint_kernels import structure_loss as kernels

    return kernels.structure_loss_backward(grad_terms, coefficients, priority, signs, predictions)


def _triton_fake(
    image: Tensor, predictions: list[Tensor], edges: list[Tensor], edge_alpha: float, grad_alpha: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = sum(edge_map.numel() for edge_map in edges) if keep else 0
    return (
        image.new_empty((len(predictions), 2), dtype=torch.float32),
        image.new_empty((len(predictions), 2), dtype=torch.float32),
        image.new_empty((saved,), dtype=torch.float32),
        image.new_empty((saved,), dtype=torch.int16),
    )


def _native_fake(
    image: Tensor, predictions: list[Tensor], edges: list[Tensor], edge_alpha: float, grad_alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = sum(p.shape[0] * p.shape[2] * ((p.shape[3] + 63) // 64 * 64) for p in predictions)
    return (
        image.new_empty((len(predictions), 2), dtype=torch.float32),
        image.new_empty((len(predictions), 2), dtype=torch.float64),
        image.new_empty((saved,), dtype=torch.float32),
        image.new_empty((saved,), dtype=torch.int16),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = len(inputs) - 3
    ctx.save_for_backward(*output[1:], *inputs[1])


def _backward_fake(
    grad_terms: Tensor, coefficients: Tensor, priority: Tensor, signs: Tensor, predictions: list[Tensor]
) -> list[Tensor]:
    return [torch.empty_like(prediction) for prediction in predictions]


def _register(namespace: str, fake: Callable[..., Any]) -> None:
    """Tell torch about shapes and gradients of the operator and of its backward pass."""

    def run_backward(ctx: Any, grad_terms: Tensor | None, *_: None) -> tuple[Any, ...]:
        coefficients, priority, signs, *predictions = ctx.saved_tensors
        nothing = [None] * len(predictions)
        options = [None] * ctx.options
        if grad_terms is None:
            return None, nothing, nothing, *options
        run = getattr(torch.ops, namespace).structure_loss_backward
        return None, run(grad_terms, coefficients, priority, signs, predictions), nothing, *options

    torch.library.register_fake(f"{namespace}::structure_loss", fake)
    torch.library.register_autograd(f"{namespace}::structure_loss", run_backward, setup_context=_save)
    torch.library.register_fake(f"{namespace}::structure_loss_backward", _backward_fake)
    torch.library.register_autograd(f"{namespace}::structure_loss_backward", _backend.no_second_derivative(_OP))


_register("fastinpaint_triton", _triton_fake)
if _backend.has_native("structure_loss"):
    _register("fastinpaint", _native_fake)
