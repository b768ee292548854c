"""Pyramid structure loss: the reference for ``ops/structure_loss.py``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastinpaint.reference.canny import canny
from fastinpaint.reference.edge_priority import edge_priority
from fastinpaint.reference.nearest import nearest_resize
from fastinpaint.reference.sobel_edges import sobel_edges


def structure_loss_terms(
    image: Tensor,
    predictions: Sequence[Tensor],
    *,
    edges: Sequence[Tensor] | None = None,
    sigma: float = 1.5,
    edge_alpha: float = 20.0,
    grad_alpha: float = 0.1,
) -> Tensor:
    """(scales, 2): the weighted edge and gradient term of each scale; see ``ops.structure_loss``."""
    terms = []
    for scale, prediction in enumerate(predictions):
        resized = nearest_resize(image, *prediction.shape[-2:])  # (B, 3, h, w)
        edge_map = canny(resized, sigma=sigma) if edges is None else edges[scale]
        weight = edge_alpha * edge_priority(edge_map.to(image.dtype))  # (B, 1, h, w)
        error = (prediction.to(image.dtype) - sobel_edges(resized)).abs()  # (B, 6, h, w)
        total = weight.sum()
        safe_total = torch.where(total > 0, total, 1.0)
        # (1,), because torch makes the tangent of a 0-dimensional tensor times a float a float64.
        edge_term = (weight * error).sum().view(1) / safe_total / 6
        gradient_term = grad_alpha * error.sum().view(1) / max(error.numel(), 1)
        terms.append(torch.cat([edge_term, gradient_term]))
    return torch.stack(terms)


def pyramid_structure_loss(
    image: Tensor,
    predictions: Sequence[Tensor],
    *,
    edges: Sequence[Tensor] | None = None,
    sigma: float = 1.5,
    edge_alpha: float = 20.0,
    grad_alpha: float = 0.1,
) -> Tensor:
    """Sum of ``structure_loss_terms``, a scalar."""
    return structure_loss_terms(
        image, predictions, edges=edges, sigma=sigma, edge_alpha=edge_alpha, grad_alpha=grad_alpha
    ).sum()
