"""Canny edges, bit for bit those of scikit-image 0.26: the reference for ``ops/canny.py``.

Every intermediate is rounded to the image's type, float32 or float64, where scikit-image and SciPy round it, and
computed in the order in which they compute it; a sum in double, rounded afterwards, is theirs too.
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
MODES = ("constant", "nearest", "reflect", "mirror", "wrap")


def rgb_to_gray(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W): ``(0.2125 R + 0.7154 G) + 0.0721 B``, in that order; see ``ops.canny``."""
    red, green, blue = image.split(1, dim=1)
    return (GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green) + GRAY_WEIGHTS[2] * blue


def image_as_float(image: Tensor) -> Tensor:
    """The image as ``skimage.util.img_as_float`` has it.

    float32 and float64 stay, other floating-point types become float32; bool becomes 0 and 1, integers become their
    share of their type's largest value, both in float64.
    """
    if image.is_floating_point():
        return image if image.dtype in (torch.float32, torch.float64) else image.float()
    if image.dtype == torch.bool:
        return image.double()
    scaled = image.double() * (1.0 / torch.iinfo(image.dtype).max)
    return scaled.clamp(min=-1.0)


def canny(
    image: Tensor,
    *,
    sigma: float = 1.5,
    low_threshold: float = 0.1,
    high_threshold: float = 0.2,
    mask: Tensor | None = None,
    use_quantiles: bool = False,
    mode: str = "constant",
    cval: float = 0.0,
) -> Tensor:
    """(B, 1 or 3, H, W) float32 or float64 -> (B, 1, H, W) bool; see ``ops.canny``."""
    weights = gaussian_weights(sigma)
    return canny_of_weights(image, weights, low_threshold, high_threshold, mask, use_quantiles, mode, cval)


def canny_of_weights(
    image: Tensor,
    weights: Sequence[float],
    low_threshold: float,
    high_threshold: float,
    mask: Tensor | None = None,
    use_quantiles: bool = False,
    mode: str = "constant",
    cval: float = 0.0,
) -> Tensor:
    """``canny`` with the Gaussian's weights by distance."""
    image = image_as_float(image.detach())
    gray = rgb_to_gray(image) if image.shape[1] == 3 else image  # (B, 1, H, W)
    if gray.numel() == 0:
        return torch.zeros_like(gray, dtype=torch.bool)
    valid = torch.ones_like(gray[:1], dtype=torch.bool) if mask is None else mask
    smooth = gaussian(torch.where(valid, gray, 0.0), weights, mode, cval)
    if mode == "constant" or mask is not None:
        cover = gaussian(valid.to(gray.dtype), weights, mode, cval)
        smooth = smooth / (cover + torch.finfo(gray.dtype).eps)
    magnitude, keep = thin(*sobel(smooth))
    low, high = thresholds(magnitude, low_threshold, high_threshold, use_quantiles)
    weak = keep & erode(valid) & (magnitude.double() >= low) & (magnitude > 0)
    return hysteresis(weak, weak & (magnitude.double() >= high))


def thresholds(magnitude: Tensor, low: float, high: float, use_quantiles: bool) -> tuple[Tensor, Tensor]:
    """Both thresholds as scikit-image compares them: (1 or B, 1, 1, 1) float64 each.

    The low one is rounded to float32 whatever the image's type, and 0 becomes 1e-14; the high one is rounded to the
    image's type. Quantiles are NumPy's, of each image.
    """
    if use_quantiles:
        planes = magnitude.detach().cpu().numpy()
        pairs = [[float(q) for q in np.percentile(plane, [100.0 * low, 100.0 * high])] for plane in planes]
        both = torch.tensor(pairs, dtype=torch.float64)  # (B, 2)
    else:
        both = torch.tensor([[low, high]], dtype=torch.float64)
        both[:, 1] = both[:, 1].to(magnitude.dtype).double()
    both[:, 0] = both[:, 0].float().double()
    low_too = both[:, 0].where(both[:, 0] != 0, torch.tensor(NEVER_ZERO).double())
    shape = (-1, 1, 1, 1)
    return low_too.view(shape).to(magnitude.device), both[:, 1].view(shape).to(magnitude.device)


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


def gaussian(image: Tensor, weights: Sequence[float], mode: str = "constant", cval: float = 0.0) -> Tensor:
    """Blur along H, then W: each sum in double, rounded to the image's type. (B, 1, H, W).

    Outside the image lies what SciPy's ``mode`` says: ``cval``, or the image's own pixels.
    """
    radius = len(weights) - 1
    for axis in (2, 3):
        padded, size = _extended(image.double(), axis, radius, mode, cval), image.shape[axis]
        total = padded.narrow(axis, radius, size) * weights[0]
        for j in range(radius, 0, -1):
            pair = padded.narrow(axis, radius - j, size) + padded.narrow(axis, radius + j, size)
            total = total + pair * weights[j]
        image = total.to(image.dtype)
    return image


def _extended(image: Tensor, axis: int, radius: int, mode: str, cval: float) -> Tensor:
    """``radius`` pixels more before and behind the axis, as SciPy's ``mode`` makes them."""
    if mode == "constant":
        return F.pad(image, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), value=cval)
    size = image.shape[axis]
    i = torch.arange(-radius, size + radius, device=image.device)
    if mode == "nearest":
        i = i.clamp(0, size - 1)
    elif mode == "wrap":
        i = i % size
    elif mode == "reflect":  # d c b a | a b c d | d c b a
        i = torch.minimum(i % (2 * size), (-1 - i) % (2 * size))
    else:  # mirror: d c b | a b c d | c b a
        period = max(2 * size - 2, 1)
        i = torch.minimum(i % period, -i % period)
    return image.index_select(axis, i)


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along H and W, as ``scipy.ndimage.sobel``: edge pixels repeated, weights 1 2 1 unnormalised."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    height, width = image.shape[2:]
    down = (padded[:, :, 2:] - padded[:, :, :-2]).double()  # (B, 1, H, W + 2)
    across = (padded[..., 2:] - padded[..., :-2]).double()  # (B, 1, H + 2, W)
    along_h = 2 * down.narrow(3, 1, width) + (down.narrow(3, 0, width) + down.narrow(3, 2, width))
    along_w = 2 * across.narrow(2, 1, height) + (across.narrow(2, 0, height) + across.narrow(2, 2, height))
    return along_h.to(image.dtype), along_w.to(image.dtype)


def square_root(values: Tensor) -> Tensor:
    """The correctly rounded square root. On CPUs torch's comes from a vector library, and is not."""
    if values.dtype == torch.float32:
        return values.double().sqrt().float()
    return torch.from_numpy(np.sqrt(values.numpy())) if values.device.type == "cpu" else values.sqrt()


def thin(along_h: Tensor, along_w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient magnitude, and where neither neighbour across the edge exceeds it (interpolated bilinearly)."""
    magnitude = square_root(along_h * along_h + along_w * along_w)
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
