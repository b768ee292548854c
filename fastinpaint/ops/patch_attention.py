"""Attention over similar k x k patches."""

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import patch_attention as reference

_OP = "patch_attention"
AGGREGATIONS = ("correlation", "overlap_add")


def patch_attention(
    features: Tensor,
    *,
    kernel_size: int = 3,
    stride: int = 2,
    softmax_scale: float = 10.0,
    aggregation: str = "correlation",
    backend: str = "auto",
) -> Tensor:
    """Rebuild a feature map from its own patches, weighted by cosine similarity (paper, patch similarity).

    Keys are the k x k patches at ``stride`` with TensorFlow's SAME zero padding, each divided by
    max(L2 norm, 1e-4). beta(p, n) = softmax over n of ``softmax_scale`` * <patch around p, key n>. The result is
    y(p) = sum over offsets d and keys n of beta(p + d - centre, n) * patch_n(d) / 4, a correlation: that is what the
    original system computes. ``aggregation="overlap_add"`` takes beta(p - d + centre, n), a true overlap-add.

    Args:
        features: (B, C, H, W) floating point.
        kernel_size: Patch side k in pixels, odd.
        stride: Distance of neighbouring keys in pixels, at least 1.
        softmax_scale: Factor on the similarities.
        aggregation: ``"correlation"`` or ``"overlap_add"``.
        backend: ``"auto"`` or ``"reference"``.

    Returns:
        (B, C, H, W) in the dtype of ``features``; softmax and sums are float32 for half-precision inputs.

    Raises:
        TypeError: ``features`` is no floating-point tensor.
        ValueError: Wrong rank or option, or a backend that cannot serve.
    """
    _checks.check_tensor(_OP, "features", features, "(B, C, H, W)")
    _checks.check_odd(_OP, "kernel_size", kernel_size)
    if stride < 1:
        raise ValueError(f"{_OP}: stride must be at least 1, got {stride}")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"{_OP}: aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}")
    _backend.select(_OP, backend, {"reference": None})
    with torch.autocast(features.device.type, enabled=False):
        return reference.patch_attention(
            _checks.at_least_float32(features),
            kernel_size=kernel_size,
            stride=stride,
            softmax_scale=softmax_scale,
            aggregation=aggregation,
        ).to(features.dtype)
