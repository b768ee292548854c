"""Frechet distance between two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 2048  # pictures below which the distance depends on their number more than on the model


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) in float64.

    Args:
        a: (N, D) features, N at least 2.
        b: (M, D) features, M at least 2.

    Raises:
        ValueError: Fewer than two rows, or widths that differ.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"wanted (N, D) and (M, D) features, N and M at least 2, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    # trace((C_a C_b)^(1/2)) is the sum of the singular values of X Y^T, where C_a = X^T X and C_b = Y^T Y: (N, M),
    # small where pictures are few, and without the square root of a singular matrix.
    x, y = centred_a / (len(a) - 1) ** 0.5, centred_b / (len(b) - 1) ** 0.5
    x, y = (torch.linalg.qr(z, mode="r")[1] if len(z) > z.shape[1] else z for z in (x, y))  # at most (D, D)
    cross = torch.linalg.svdvals(x @ y.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * cross)
