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
    """Shrink so that the longer side is ``max_side``, by averages of known pixels.

    A small pixel is hole where all that it covers is hole, so that fine masks leave known pixels at every size.

    Args:
        image: (B, C, H, W); any value, even NaN, in the hole.
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
    known = mask < 0.5
    share = F.adaptive_avg_pool2d(known.to(image.dtype), size)
    total = F.adaptive_avg_pool2d(torch.where(known, image, 0.0), size)
    return total / share.clamp_min(1e-12), (share == 0).to(mask.dtype)
