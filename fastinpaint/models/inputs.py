"""Both ways of assembling the generator's input: from the whole picture, as the original does, or from known pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinpaint.ops.canny import canny
from fastinpaint.ops.sobel_edges import sobel_edges

CANNY_SIGMA = 1.5  # pixels


def assemble_input(image: Tensor, mask: Tensor, edges: Tensor | None = None) -> Tensor:
    """Stack the known pixels, edges and gradients with the mask.

    Channels: image * (1 - mask) (3); (1 - edges) * (1 - mask) + mask (1), so 0 on a known edge and 1 elsewhere;
    mask (1); sobel_edges(image) * (1 - mask) (6).

    Gradients and edges are taken of the whole image, so within a pixel (gradients) or a few (edges) of the hole they
    depend on what the image holds inside it, as in the original system.

    Args:
        image: (B, 3, H, W) floating point in [-1, 1].
        mask: (B, 1, H, W) or (1, 1, H, W), bool or floating point, 1 = hole.
        edges: (B, 1, H, W) or (1, 1, H, W), bool or floating point, 1 = edge. None computes ``canny`` of
            (image + 1) / 2 with sigma 1.5.

    Returns:
        (B, 11, H, W) in the dtype of ``image``.

    Raises:
        TypeError: ``image`` is no floating-point tensor.
        ValueError: A wrong shape.
    """
    _check(image, mask, "mask")
    if edges is None:
        with torch.no_grad():
            edges = canny((image + 1) / 2, sigma=CANNY_SIGMA)
    else:
        _check(image, edges, "edges")
    mask = mask.to(image.dtype).expand(image.shape[0], -1, -1, -1)
    known = 1 - mask
    shown_edges = (1 - edges.to(image.dtype)) * known + mask
    return torch.cat([image * known, shown_edges, mask, sobel_edges(image) * known], 1)


def assemble_known_input(image: Tensor, mask: Tensor) -> Tensor:
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
    edges = canny((visible + 1) / 2, sigma=CANNY_SIGMA, mask=known)
    return assemble_input(_continue_into_hole(visible, known), mask, edges)


def _continue_into_hole(visible: Tensor, known: Tensor) -> Tensor:
    """Set hole pixels to the mean of the known ones among their 8 neighbours, 0 where there is none."""
    weight = F.avg_pool2d(known.to(visible.dtype), 3, stride=1, padding=1)  # (B, 1, H, W)
    mean = F.avg_pool2d(visible, 3, stride=1, padding=1) / weight.clamp_min(1e-6)
    return torch.where(known, visible, mean)


def _check(image: Tensor, plane: Tensor, name: str) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise TypeError(f"image must be a floating-point tensor, got {getattr(image, 'dtype', type(image))}")
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
    batch, _, height, width = image.shape
    if plane.shape not in ((batch, 1, height, width), (1, 1, height, width)):
        wanted = f"({batch} or 1, 1, {height}, {width})"
        raise ValueError(f"{name} must be {wanted} for an image {tuple(image.shape)}, got {tuple(plane.shape)}")
