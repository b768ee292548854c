"""Bring pictures of any height and width to sizes that the generator takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 16  # pixels; the generator halves twice and its attention twice more


def mirror_pad(x: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """Extend (B, C, H, W) below and to the right by reflection, as often as needed, to multiples of ``multiple``."""
    height, width = x.shape[-2:]
    rows, columns = _mirrored(height, multiple, x.device), _mirrored(width, multiple, x.device)
    return x[..., rows, :][..., columns]


def _mirrored(size: int, multiple: int, device: torch.device) -> Tensor:
    period = max(2 * size - 2, 1)
    index = torch.arange(-(-size // multiple) * multiple, device=device) % period
    return torch.minimum(index, period - index) if size > 1 else index


def shrink(image: Tensor, mask: Tensor, max_side: int) -> tuple[Tensor, Tensor]:
    """Shrink so that the longer side is ``max_side``; a small pixel that any hole pixel touches is hole.

    Args:
        image: (B, C, H, W).
        mask: (B, 1, H, W), 1 = hole.
        max_side: Longest side in pixels, at least 1; smaller pictures come back as they are.

    Returns:
        Image and mask of the same smaller size; known pixels hold no trace of the hole's content.
    """
    height, width = image.shape[-2:]
    ratio = max_side / max(height, width)
    if ratio >= 1:
        return image, mask
    size = (max(round(height * ratio), 1), max(round(width * ratio), 1))
    return F.adaptive_avg_pool2d(image, size), F.adaptive_max_pool2d(mask, size)
