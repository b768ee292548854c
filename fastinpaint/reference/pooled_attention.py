"""Pooled attention: the reference for ``ops/pooled_attention.py``."""

import torch
from torch import Tensor


def pooled_attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """(B, N, d), (B, M, d), (B, M, dv) -> (B, N, dv): softmax(Q K^T) V without scale.

    Keys where ``key_mask`` (B, M) is False have weight 0.
    """
    if key_mask is None:
        return torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
    masked = ~key_mask
    key, value = key.masked_fill(masked[..., None], 0.0), value.masked_fill(masked[..., None], 0.0)
    logits = query @ key.transpose(1, 2)  # (B, N, M)
    lowest = torch.finfo(logits.dtype).min  # not -inf: of a row of -inf the softmax is NaN
    return torch.softmax(logits.masked_fill(masked[:, None], lowest), dim=-1) @ value
