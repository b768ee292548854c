"""Attention of all positions over pooled keys."""

import torch
from torch import Tensor

from fastinpaint.ops import _backend, _checks
from fastinpaint.reference import pooled_attention as reference

_OP = "pooled_attention"


def pooled_attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str = "auto") -> Tensor:
    """softmax(query key^T) value, without the usual 1 / sqrt(d) (paper, attention layer).

    Logits, softmax and sums are float32 for half-precision inputs, also under autocast: unscaled logits would lose
    their order in half precision.

    Args:
        query: (B, N, d) floating point.
        key: (B, M, d), M at least 1, the dtype of ``query``.
        value: (B, M, dv), the dtype of ``query``.
        backend: ``"auto"`` or ``"reference"``.

    Returns:
        (B, N, dv) in the dtype of ``query``; each row a convex combination of the rows of ``value``.

    Raises:
        TypeError: A tensor of the wrong type, or dtypes that differ.
        ValueError: Shapes that do not fit, different devices, or a backend that cannot serve.
    """
    _check(query, key, value)
    _backend.select(_OP, backend, {"reference": None})
    with torch.autocast(query.device.type, enabled=False):
        wide = (_checks.at_least_float32(tensor) for tensor in (query, key, value))
        return reference.pooled_attention(*wide).to(query.dtype)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    _checks.check_tensor(_OP, "query", query, "(B, N, d)")
    batch, _, width = query.shape
    _checks.check_tensor(_OP, "key", key, f"({batch}, M, {width})")
    _checks.check_tensor(_OP, "value", value, f"({batch}, {key.shape[1]}, dv)")
    if key.shape[1] == 0:
        raise ValueError(f"{_OP}: key must hold at least one position, got {tuple(key.shape)}")
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"{_OP}: dtypes must be equal, got {query.dtype}, {key.dtype}, {value.dtype}")
    _checks.check_same_device(_OP, query=query, key=key, value=value)
