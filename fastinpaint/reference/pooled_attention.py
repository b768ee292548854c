"""Pooled attention: the reference for ``ops/pooled_attention.py``."""

import torch
from torch import Tensor


def pooled_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, N, d), (B, M, d), (B, M, dv) -> (B, N, dv): softmax(Q K^T) V without scale."""
    return torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
