"""Instance norm with residual, ReLU and reflect padding: the reference for ``ops/instance_norm.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    relu: bool = False,
    padding: int = 0,
) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2 padding, W + 2 padding) in the layout and dtype of ``x``, statistics in float32."""
    y = _normalised(x, weight, bias, eps)
    if scale is not None:
        y = scale * (F.relu(y) if relu else y)
    if residual is not None:
        y = residual + y
    if relu and scale is None:
        y = F.relu(y)
    return F.pad(y, (padding,) * 4, mode="reflect") if padding else y


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if x.numel() and (x.is_contiguous() or x.stride(1) != 1):
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    # torch's own operator would copy a channels-last map and return a contiguous one.
    wide = x if x.dtype == torch.float64 else x.float()
    centred = wide - wide.mean((2, 3), keepdim=True)
    factor = torch.rsqrt((centred * centred).mean((2, 3), keepdim=True) + eps)  # (B, C, 1, 1)
    if weight is not None:
        factor = factor * weight[:, None, None]
    y = centred * factor if bias is None else torch.addcmul(bias[:, None, None], centred, factor)
    return y.to(x.dtype)
