"""Nearest-neighbour resize with the index rule that the pyramid uses."""

import torch
from torch import Tensor


def nearest_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, height, width); output row i reads row floor(i * H / height).

    The rule is in integers, so no size suffers from a rounded scale factor.
    """
    if x.shape[-2:] == (height, width):
        return x
    rows = torch.arange(height, device=x.device) * x.shape[-2] // height
    columns = torch.arange(width, device=x.device) * x.shape[-1] // width
    return x[..., rows[:, None], columns]
