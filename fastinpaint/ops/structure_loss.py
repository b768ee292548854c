"""Pyramid structure loss: multi-scale gradients, weighted near edges."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.ops.canny import canny
from fastinpaint.reference import structure_loss as reference
from fastinpaint.reference.nearest import nearest_resize

_OP = "pyramid_structure_loss"


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
            edges = [canny(nearest_resize(image, *p.shape[-2:]), sigma=sigma) for p in predictions]
    _backend.select(_OP, backend, {"reference": None})
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
        backend: ``"auto"`` or ``"reference"``.

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
