"""Seamless blending of a prediction into the known pixels around a hole."""

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 4  # halvings; without remainder, or symbolic sizes become expressions that compilers take minutes for
_DIVISOR = 2**_LEVELS
_SWEEPS, _SWEEPS_SMALLEST = 5, 12  # iterations at each size


def poisson_blend(prediction: Tensor, image: Tensor, known: Tensor) -> Tensor:
    """Blend a prediction into the hole of an image so that only its gradients count.

    The result has the gradients of ``prediction`` in the hole and the values of ``image`` at its border: Poisson image
    editing (Pérez, Gangnet and Blake 2003), in its membrane form: the prediction plus the harmonic continuation of its
    error at the known pixels. Linear in ``prediction`` and ``image``, and differentiable.

    Args:
        prediction: (B, C, H, W), floating point, H and W divisible by 16.
        image: (B, C, H, W), of the same dtype; any value, even NaN, in the hole.
        known: (B, 1, H, W), bool, False in the hole.

    Returns:
        (B, C, H, W), equal to ``image`` where it is known up to rounding. Without a known pixel, the prediction.

    Raises:
        ValueError: Another size.
    """
    return prediction + harmonic_continuation(image - prediction, known)


def harmonic_continuation(values: Tensor, known: Tensor) -> Tensor:
    """Continue known values into a hole as smoothly as can be: the solution of Laplace's equation, approximately.

    Values are halved in size four times, each pixel the mean of the known ones under it. What is missing at the
    smallest size begins as the mean of what is known, at every other size as the next smaller one enlarged, and is
    smoothed by means over 3 x 3 pixels, a few times.

    Args:
        values: (B, C, H, W), floating point, H and W divisible by 16; any value, even NaN, in the hole.
        known: (B, 1, H, W), bool, False in the hole.

    Returns:
        (B, C, H, W), equal to ``values`` where they are known; 0 if nothing is.

    Raises:
        ValueError: Another size.
    """
    height, width = values.shape[-2:]
    if height % _DIVISOR or width % _DIVISOR:
        raise ValueError(f"expected height and width divisible by {_DIVISOR}, got {height} x {width}")
    return _continue(torch.where(known, values, 0.0), known, _LEVELS)


def _continue(values: Tensor, known: Tensor, levels: int) -> Tensor:
    """``values`` is 0 in the hole."""
    share = known.to(values.dtype)
    if levels == 0:
        mean = values.sum((2, 3), keepdim=True) / share.sum((2, 3), keepdim=True).clamp_min(1)
        return _smooth(torch.where(known, values, mean), values, known, _SWEEPS_SMALLEST)
    share = F.avg_pool2d(share, 2)
    half = F.avg_pool2d(values, 2) / share.clamp_min(0.125)  # one known pixel of four is 0.25
    coarse = _continue(half, share > 0, levels - 1)
    enlarged = F.interpolate(coarse, values.shape[-2:], mode="bilinear", align_corners=False)
    return _smooth(torch.where(known, values, enlarged), values, known, _SWEEPS)


def _smooth(start: Tensor, values: Tensor, known: Tensor, sweeps: int) -> Tensor:
    """Replace each pixel of the hole by the mean of the 3 x 3 pixels around it, ``sweeps`` times."""
    result = start
    for _ in range(sweeps):  # a pooling, not sums of slices: exporters take time for every node
        result = torch.where(known, values, F.avg_pool2d(result, 3, 1, 1, count_include_pad=False))
    return result
