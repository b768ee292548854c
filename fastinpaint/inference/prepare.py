"""Network inputs that say nothing about what lies in the hole, for any height and width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinpaint.models.inputs import assemble_input
from fastinpaint.ops.canny import canny

MULTIPLE = 16  # pixels; the generator halves twice and its attention twice more


def blind_input(image: Tensor, mask: Tensor) -> Tensor:
    """Assemble the generator's input from the known pixels alone.

    The original system takes edges and gradients of the whole picture and then masks them; along the hole they still
    tell what is in it: one pixel wide for gradients, a Gaussian's radius for edges, further by hysteresis. Here Canny
    is given the known region, and hole pixels beside a known one take the mean of their known neighbours.

    Args:
        image: (B, 3, H, W) in [-1, 1]; any value, even NaN, in the hole.
        mask: (B, 1, H, W) or (1, 1, H, W), 1 = hole.

    Returns:
        (B, 11, H, W), equal for any two images that differ in the hole only.
    """
    known = (mask < 0.5).expand(image.shape[0], -1, -1, -1)  # (B, 1, H, W)
    visible = torch.where(known, image, 0.0)
    edges = canny((visible + 1) / 2, mask=known)
    return assemble_input(_continue_into_hole(visible, known), mask, edges)


def _continue_into_hole(visible: Tensor, known: Tensor) -> Tensor:
    """Set hole pixels to the mean of the known ones among their 8 neighbours, 0 where there is none."""
    weight = F.avg_pool2d(known.to(visible.dtype), 3, stride=1, padding=1)  # (B, 1, H, W)
    mean = F.avg_pool2d(visible, 3, stride=1, padding=1) / weight.clamp_min(1e-6)
    return torch.where(known, visible, mean)


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
