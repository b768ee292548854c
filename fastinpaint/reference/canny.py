"""Canny edges, bit for bit those of scikit-image 0.26: the truth for ``ops/canny.py``.

Every intermediate is rounded to float32 where scikit-image and SciPy round it, and computed in the order in which they
compute it; a sum in double, rounded afterwards, is theirs too.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastinpaint.reference.nearest import nearest_resize

GRAY_WEIGHTS = (0.2125, 0.7154, 0.0721)
NEVER_ZERO = 1e-14  # stands in for a low threshold of 0, so that a flat pixel is not an edge
FLOAT_EPS = torch.finfo(torch.float32).eps


def rgb_to_gray(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W): ``(0.2125 R + 0.7154 G) + 0.0721 B``, in that order; see ``ops.canny``."""
    red, green, blue = image.split(1, dim=1)
    return (GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green) + GRAY_WEIGHTS[2] * blue


def canny(
    image: Tensor,
    *,
    sigma: float = 1.5,
    low_threshold: float = 0.1,
    high_threshold: float = 0.2,
    mask: Tensor | None = None,
) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 1, H, W) bool; see ``ops.canny``."""
    return canny_of_weights(image, gaussian_weights(sigma), low_threshold, high_threshold, mask)


def canny_of_weights(
    image: Tensor, weights: Sequence[float], low_threshold: float, high_threshold: float, mask: Tensor | None = None
) -> Tensor:
    """``canny`` with the Gaussian's weights by distance."""
    image = image.detach().float()
    gray = rgb_to_gray(image) if image.shape[1] == 3 else image  # (B, 1, H, W)
    if gray.numel() == 0:
        return torch.zeros_like(gray, dtype=torch.bool)
    valid = torch.ones_like(gray[:1], dtype=torch.bool) if mask is None else mask
    smooth = gaussian(torch.where(valid, gray, 0.0), weights) / (gaussian(valid.float(), weights) + FLOAT_EPS)
    magnitude, keep = thin(*sobel(smooth))
    low, high = (torch.tensor(t, dtype=torch.float64).float() for t in (low_threshold, high_threshold))
    low = torch.where(low == 0, NEVER_ZERO, low).to(gray.device)
    weak = keep & erode(valid) & (magnitude >= low) & (magnitude > 0)
    return hysteresis(weak, weak & (magnitude >= high.to(gray.device)))


def canny_pyramid(
    image: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    sigma: float = 1.5,
    low_threshold: float = 0.1,
    high_threshold: float = 0.2,
) -> list[Tensor]:
    """``canny`` of the image resized to each (h, w), by its nearest pixels: list of (B, 1, h, w) bool."""
    resized = (nearest_resize(image, *size) for size in sizes)
    return [canny(i, sigma=sigma, low_threshold=low_threshold, high_threshold=high_threshold) for i in resized]


@functools.lru_cache(maxsize=64)
def gaussian_weights(sigma: float, reach: int | None = None) -> tuple[float, ...]:
    """Weights at distance 0, 1, ..., int(4 sigma + 0.5), as ``scipy.ndimage.gaussian_filter`` has them.

    They come from NumPy, in SciPy's formula, because the last bit of NumPy's ``exp`` depends on the processor. SciPy
    leaves an axis alone when sigma is at most 1e-15; the single weight 1 does the same.

    Args:
        sigma: Standard deviation in pixels, at least 0.
        reach: Greatest distance that is wanted; None: all. It changes no weight.
    """
    radius = int(4.0 * sigma + 0.5) if sigma > 1e-15 else 0
    x = np.arange(-radius, radius + 1)
    values = np.exp(-0.5 / (sigma * sigma) * x**2) if radius > 0 else np.ones(1)
    weights = values / values.sum()
    return tuple(weights[radius:][: None if reach is None else reach + 1].tolist())


def gaussian(image: Tensor, weights: Sequence[float]) -> Tensor:
    """Blur along H, then W: zeros outside, each sum in double and rounded to float32. (B, 1, H, W) float32."""
    radius = len(weights) - 1
    for axis, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, size = F.pad(image.double(), padding), image.shape[axis]
        total = padded.narrow(axis, radius, size) * weights[0]
        for j in range(radius, 0, -1):
            pair = padded.narrow(axis, radius - j, size) + padded.narrow(axis, radius + j, size)
            total = total + pair * weights[j]
        image = total.float()
    return image


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along H and W, as ``scipy.ndimage.sobel``: edge pixels repeated, weights 1 2 1 unnormalised."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    height, width = image.shape[2:]
    down = (padded[:, :, 2:] - padded[:, :, :-2]).double()  # (B, 1, H, W + 2)
    across = (padded[..., 2:] - padded[..., :-2]).double()  # (B, 1, H + 2, W)
    along_h = 2 * down.narrow(3, 1, width) + (down.narrow(3, 0, width) + down.narrow(3, 2, width))
    along_w = 2 * across.narrow(2, 1, height) + (across.narrow(2, 0, height) + across.narrow(2, 2, height))
    return along_h.float(), along_w.float()


def thin(along_h: Tensor, along_w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient magnitude, and where neither neighbour across the edge exceeds it (interpolated bilinearly)."""
    # A square root in double, rounded, is the correctly rounded one; a vector library's need not be.
    magnitude = (along_h * along_h + along_w * along_w).double().sqrt().float()
    height, width = magnitude.shape[2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def neighbour(dy: int, dx: int) -> Tensor:
        return padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steep = along_h.abs() > along_w.abs()
    same_sign = (along_h >= 0) == (along_w >= 0)
    smaller = torch.minimum(along_h.abs(), along_w.abs())
    weight = smaller / torch.maximum(along_h.abs(), along_w.abs())
    keep = torch.ones_like(steep)
    for side in (1, -1):
        diagonal = torch.where(same_sign, neighbour(side, side), neighbour(-side, side))
        vertical = torch.where(same_sign, neighbour(side, 0), neighbour(-side, 0))
        straight = torch.where(steep, vertical, neighbour(0, side))
        beyond = (diagonal * weight).double() + straight.double() * (1.0 - weight.double())
        keep &= beyond <= magnitude.double()
    return magnitude, keep


def erode(valid: Tensor) -> Tensor:
    """Pixels whose 3 x 3 neighbourhood is valid and inside the image. (B, 1, H, W) bool."""
    return -F.max_pool2d(-F.pad(valid.float(), (1, 1, 1, 1)), 3, stride=1) > 0


def hysteresis(weak: Tensor, strong: Tensor) -> Tensor:
    """Weak pixels that an 8-connected path of weak pixels joins to a strong one. (B, 1, H, W) bool.

    The outermost ring is never weak, so that a step from a weak pixel stays inside its own image.
    """
    width = weak.shape[3]
    steps = torch.tensor([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx], device=weak.device)
    waiting, edges = (weak & ~strong).flatten(), strong.flatten().clone()
    front = edges.nonzero()
    while front.numel():
        reached = (front + steps).flatten()
        front = reached[waiting[reached]].unique()[:, None]
        waiting[front] = False
        edges[front] = True
    return edges.view_as(weak)
