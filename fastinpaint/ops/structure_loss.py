"""Pyramid structure loss: multi-scale gradients, weighted near edges."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops._registration import custom_op, register
from fastinpaint.ops.canny import MAX_SIGMA, canny_of_sizes
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
    _check(image, predictions, edges)
    _checks.check_number(_OP, "sigma", sigma, least=0, below=MAX_SIGMA)
    _checks.check_number(_OP, "edge_alpha", edge_alpha)
    _checks.check_number(_OP, "grad_alpha", grad_alpha)
    if edges is None:
        with torch.no_grad():
            edges = canny_of_sizes(image, [(p.shape[-2], p.shape[-1]) for p in predictions], sigma=sigma)
    chosen = _backend.choose(
        _OP, backend, image.device,
        triton=lambda: _triton_gap(image, predictions, edges), native=lambda: _native_gap(image, predictions, edges),
    )  # fmt: skip
    if chosen == "triton":
        run = torch.ops.fastinpaint_triton.structure_loss
        keep = torch.is_grad_enabled() and any(prediction.requires_grad for prediction in predictions)
        return run(image, _alike(predictions), list(edges), float(edge_alpha), float(grad_alpha), keep)[0]
    if chosen == "native":
        run = torch.ops.fastinpaint.structure_loss
        return run(image, list(predictions), list(edges), float(edge_alpha), float(grad_alpha))[0]
    with _checks.without_autocast(image.device):
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
            give gradients with respect to ``predictions`` only, and no second ones; forward-mode derivatives and
            torch.func take the reference.

    Returns:
        Scalar float32 (float64 for a float64 image), differentiable with respect to ``predictions`` and ``image``.

    Raises:
        TypeError: A tensor of the wrong type or dtype, or an option that is no number.
        ValueError: A wrong shape or sigma, no prediction, or a wrong number of edge maps.
        BackendUnavailable: ``backend`` cannot run the call.
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
    gap = _backend.triton_reason(image, *predictions) or _gradient_gap(image, edges)
    if gap is not None:
        return gap
    side = max(max(tensor.shape[-2:]) for tensor in (image, *predictions))
    if len(predictions) > _TRITON_SCALES or side > _TRITON_SIDE:
        return f"it takes {_TRITON_SCALES} scales of {_TRITON_SIDE} pixels, got {len(predictions)} of up to {side}"
    return None


def _native_gap(image: Tensor, predictions: Sequence[Tensor], edges: Sequence[Tensor]) -> str | None:
    if image.dtype == torch.float64:
        return "a float64 image is served by the reference"
    return _gradient_gap(image, edges) or _backend.native_reason("structure_loss", image, *predictions, *edges)


def _check(image: Tensor, predictions: Sequence[Tensor], edges: Sequence[Tensor] | None) -> None:
    _checks.check_tensor(_OP, "image", image, "B", 3, "H", "W")
    if isinstance(predictions, Tensor) or isinstance(edges, Tensor):
        raise TypeError(f"{_OP}: predictions and edges must be sequences of tensors, got one tensor")
    if not predictions:
        raise ValueError(f"{_OP}: predictions must hold at least one gradient map, got none")
    if edges is not None and len(edges) != len(predictions):
        raise ValueError(f"{_OP}: wanted one edge map for each of {len(predictions)} predictions, got {len(edges)}")
    _check_sides("image", image)
    batch = image.shape[0]
    maps = {"image": image}
    for index, prediction in enumerate(predictions):
        name = f"predictions[{index}]"
        maps[name] = _checks.check_tensor(_OP, name, prediction, batch, 6, "h", "w")
        _check_sides(name, prediction)
        if edges is not None:
            height, width = prediction.shape[-2:]
            edge_map = edges[index]
            boolean = isinstance(edge_map, Tensor) and edge_map.dtype == torch.bool
            name = f"edges[{index}]"
            maps[name] = _checks.check_tensor(_OP, name, edge_map, batch, 1, height, width, floating=not boolean)
    _checks.check_same_device(_OP, **maps)


def _check_sides(name: str, tensor: Tensor) -> None:
    if min(tensor.shape[2:]) < 2:
        raise ValueError(f"{_OP}: sides must be at least 2, got {name} {tuple(tensor.shape)}")


@custom_op("fastinpaint_triton::structure_loss")
def _triton(
    image: Tensor, predictions: list[Tensor], edges: list[Tensor], edge_alpha: float, grad_alpha: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fastinpaint_kernels import structure_loss as kernels

    return kernels.structure_loss_forward(image, predictions, edges, edge_alpha, grad_alpha, keep)


@custom_op("fastinpaint_triton::structure_loss_backward")
def _triton_backward(
    grad_terms: Tensor, coefficients: Tensor, priority: Tensor, signs: Tensor, predictions: list[Tensor]
) -> list[Tensor]:
    from fastinpaint_kernels import structure_loss as kernels

    return kernels.structure_loss_backward(grad_terms, coefficients, priority, signs, predictions)


def _fake(
    namespace: str,
    image: Tensor,
    predictions: list[Tensor],
    edges: list[Tensor],
    edge_alpha: float,
    grad_alpha: float,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    native = namespace == "fastinpaint"
    row = 64 if native else 1  # native rows are kept in whole words of signs
    sizes = [(e.shape[0] * e.shape[2], e.shape[3]) for e in edges] if keep else []
    saved = sum(rows * ((width + row - 1) // row * row) for rows, width in sizes)
    return (
        image.new_empty((len(predictions), 2), dtype=torch.float32),
        image.new_empty((len(predictions), 2), dtype=torch.float64 if native else torch.float32),
        image.new_empty((saved,), dtype=torch.float32),
        image.new_empty((saved,), dtype=torch.int16),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = len(inputs) - 3
    ctx.save_for_backward(*output[1:], *inputs[1])


def _backward(namespace: str, ctx: Any, grad_terms: Tensor | None, *_: None) -> tuple[Any, ...]:
    coefficients, priority, signs, *predictions = ctx.saved_tensors
    nothing = [None] * len(predictions)
    options = [None] * ctx.options
    if grad_terms is None:
        return None, nothing, nothing, *options
    if torch._C._functorch.is_legacy_batchedtensor(grad_terms):  # it has no rule for operators that return lists
        raise RuntimeError(f'{_OP}: batched gradients (is_grads_batched, vectorize=True) take backend="reference"')
    run = getattr(torch.ops, namespace).structure_loss_backward
    return None, run(grad_terms, coefficients, priority, signs, predictions), nothing, *options


def _backward_fake(
    grad_terms: Tensor, coefficients: Tensor, priority: Tensor, signs: Tensor, predictions: list[Tensor]
) -> list[Tensor]:
    return [torch.empty_like(prediction) for prediction in predictions]


def _register(namespace: str) -> None:
    register(
        namespace,
        "structure_loss",
        fake=partial(_fake, namespace),
        setup_context=_setup_context,
        backward=_backward,
        backward_fake=_backward_fake,
        public_name=_OP,
    )


_register("fastinpaint_triton")
if _backend.has_native("structure_loss"):
    _register("fastinpaint")
