"""Metrics of a filled picture beside the truth, by two definitions, of the whole picture and inside the hole.

MS-SSIM is torchmetrics'. The rest is own code in float64 with separable windows: torchmetrics lacks SSIM with sample
covariances and the universal quality index with Wang and Bovik's window, and its SSIM and VIF, whose windows are not
separable, are either off by up to 5e-5 (float32) or 15 times slower (float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from fastinpaint.extras import extra
from fastinpaint.ops.canny import rgb_to_gray

PSNR_LIMIT = 100.0  # dB, of pictures that are equal
SSIM_RADIUS = 5  # pixels, of the Gaussian window of 11 x 11
MS_SSIM_SMALLEST = 161  # pixels, the least side of which torchmetrics takes five scales
VIF_SMALLEST = 41
VIF_NOISE = 2.0  # variance
CACHED = 1 << 17  # numbers in planes that are blurred together on a CPU: 1 MiB
VIF_FLAT = 1e-10  # variance below which a window is flat
ORIGINAL_WINDOW = 51
UQI_WINDOW = 8

Score = tuple[Tensor, Tensor | None]  # (B,) of the whole picture, (B,) inside the hole or None
Metric = Callable[[Tensor, Tensor, Tensor | None], Score]


@dataclass(frozen=True)
class Definition:
    """How pictures become numbers: name, explanation, whether on grey pictures, and the metrics in their order."""

    name: str
    explanation: str
    grey: bool
    metrics: Mapping[str, Metric]
    smallest: Mapping[str, int]  # least side in pixels of metrics that have one


def measure(
    result: Tensor, truth: Tensor, hole: Tensor | None, definition: Definition, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Compute metrics, right to a relative 1e-5 (TF32 is switched off).

    Args:
        result: (B, 3, H, W) uint8, or floating point in [0, 1].
        truth: As ``result``.
        hole: (B, 1, H, W) bool, True in the hole; None gives metrics of whole pictures only.
        definition: ``STANDARD`` or ``ORIGINAL``.
        names: Which metrics; None: all that the picture is large enough for.

    Returns:
        Name to (B,) float64 for the whole picture; with ``_hole`` appended for the hole (NaN where it is empty).

    Raises:
        ValueError: Shapes that differ, or an unknown metric.
    """
    if result.shape != truth.shape or result.dim() != 4 or result.shape[1] != 3:
        raise ValueError(f"wanted two pictures (B, 3, H, W), got {tuple(result.shape)} and {tuple(truth.shape)}")
    if hole is not None and hole.shape != (len(result), 1, *result.shape[-2:]):
        raise ValueError(f"wanted a hole (B, 1, H, W) for {tuple(result.shape)}, got {tuple(hole.shape)}")
    unknown = [name for name in names or () if name not in definition.metrics]
    if unknown:
        raise ValueError(f"a metric must be one of {', '.join(definition.metrics)}, got {unknown[0]!r}")
    a, b = _unit(result), _unit(truth)
    if definition.grey:
        a, b = rgb_to_gray(a), rgb_to_gray(b)
    side = min(result.shape[-2:])
    scores: dict[str, Tensor] = {}
    for name in names or definition.metrics:
        if side >= definition.smallest.get(name, 1):
            with exact_convolutions():
                whole, inside = definition.metrics[name](a, b, hole)
            scores[name] = whole.double()
            if inside is not None:
                scores[f"{name}_hole"] = inside.double()
    return scores


def exact_convolutions() -> AbstractContextManager[None]:
    """Switch TF32 off, whose convolutions round to 10 bits, and nondeterministic algorithms too."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    return flags


def _unit(image: Tensor) -> Tensor:
    return image.double() if image.is_floating_point() else image.double() / 255


def _inside(values: Tensor, hole: Tensor | None) -> Tensor | None:
    """Mean of (B, C, H, W) over channels and the pixels of the hole: (B,)."""
    if hole is None:
        return None
    return (values.mean(1, keepdim=True) * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))


def mean_absolute_error(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """Mean of |a - b|, in units of [0, 1]."""
    error = (a - b).abs()
    return error.mean((1, 2, 3)), _inside(error, hole)


def ratio_of_sums(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """Sum |a - b| / sum (a + b), the original system's MAE; 0 for two black pictures."""
    error, total = (a - b).abs(), a + b
    whole = error.sum((1, 2, 3)) / total.sum((1, 2, 3)).clamp_min(1e-12)
    if hole is None:
        return whole, None
    return whole, (error * hole).sum((1, 2, 3)) / (total * hole).sum((1, 2, 3)).clamp_min(1e-12)


def peak_signal_to_noise(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """10 log10(1 / mean squared error) in dB, at most 100."""
    error = (a - b).square()
    inside = _inside(error, hole)
    return _decibel(error.mean((1, 2, 3))), None if inside is None else _decibel(inside)


def _decibel(error: Tensor) -> Tensor:
    return -10 * error.clamp_min(10 ** (-PSNR_LIMIT / 10)).log10()


def structural_similarity(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """SSIM with the Gaussian window of 11 x 11, sigma 1.5, range 1 (Wang et al. 2004).

    The whole picture's value is the mean where the window fits in, as scikit-image takes it (its
    ``gaussian_weights=True, use_sample_covariance=False``).
    """
    weights = _gaussian(2 * SSIM_RADIUS + 1, 1.5)
    return _similarity(_moments(a, b, weights), 1.0, SSIM_RADIUS, hole)


def structural_similarity_51(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """SSIM with a uniform window of 51 x 51 and sample covariances, range 1: scikit-image's ``win_size=51``."""
    size = ORIGINAL_WINDOW
    return _similarity(_moments(a, b, _uniform(size)), size**2 / (size**2 - 1), size // 2, hole)


def _similarity(moments: Sequence[Tensor], sample: float, radius: int, hole: Tensor | None) -> Score:
    """SSIM of moments (B, C, H, W); variances times ``sample``; the whole picture's mean leaves ``radius`` out."""
    mean_a, mean_b, square_a, square_b, product = moments
    variances = sample * (square_a - mean_a**2 + square_b - mean_b**2)
    covariance = sample * (product - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    maps = top / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    inner = maps[..., radius : maps.shape[-2] - radius, radius : maps.shape[-1] - radius]
    return inner.mean((1, 2, 3)), _inside(maps, hole)


def multiscale_similarity(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """MS-SSIM over five scales as torchmetrics computes it; of the whole picture only."""
    with extra("evaluate", "MS-SSIM"):
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(a.float(), b.float(), data_range=1.0, reduction="none"), None


def universal_quality(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """Universal image quality index over 8 x 8 windows (Wang and Bovik 2002)."""
    return _quality(a, b, hole, 1.0)


def universal_quality_sewar(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """The index as the package sewar computes it.

    Its formula is written for sums over the window but given means, so that variances are taken as
    E[x^2] - E[x]^2 / 64 and the values come out much higher; the last row and column of windows are left out.
    """
    return _quality(a, b, hole, 1.0 / UQI_WINDOW**2)


def _quality(a: Tensor, b: Tensor, hole: Tensor | None, weight: float) -> Score:
    """The index with variances E[x^2] - weight E[x]^2."""
    mean_a, mean_b, square_a, square_b, product = _moments(a, b, _uniform(UQI_WINDOW))
    both, either = mean_a * mean_b, mean_a**2 + mean_b**2
    covariance, variances = product - weight * both, square_a + square_b - weight * either
    flat = variances.abs() <= 1e-12 * (square_a + square_b)  # rounding leaves a little of windows of one colour
    luminance = torch.where(either > 0, 2 * both / either.clamp_min(1e-300), 1.0)
    contrast = torch.where(flat, 1.0, 2 * covariance / torch.where(flat, 1.0, variances))
    maps = luminance * contrast
    before, after = UQI_WINDOW // 2, UQI_WINDOW // 2 - (1 if weight == 1 else 0)
    inner = maps[..., before : maps.shape[-2] - after, before : maps.shape[-1] - after]
    return inner.mean((1, 2, 3)), _inside(maps, hole)


def information_fidelity(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """Visual information fidelity in the pixel domain, on [0, 255], for which its noise variance of 2 is meant."""
    return _fidelity(255 * a, 255 * b), None


def information_fidelity_unit(a: Tensor, b: Tensor, hole: Tensor | None) -> Score:
    """The same on [0, 1], as the original system calls it: the noise then hides nearly everything."""
    return _fidelity(a, b), None


def _fidelity(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, H, W) twice -> (B,): information that ``a`` keeps of ``b`` over four scales, a mean over channels."""
    kept, total = a.new_zeros(a.shape[:2]), a.new_zeros(a.shape[:2])  # (B, C)
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        weights = _gaussian(size, size / 5)
        if scale:
            a, b = (_blur(x, weights)[..., ::2, ::2] for x in (a, b))
        mean_a, mean_b, square_a, square_b, product = _blur(torch.cat([a, b, a * a, b * b, a * b]), weights).chunk(5)
        variance_a = (square_a - mean_a**2).clamp_min(0)
        variance_b = (square_b - mean_b**2).clamp_min(0)
        covariance = product - mean_a * mean_b
        gain = covariance / (variance_b + VIF_FLAT)
        noise = variance_a - gain * covariance
        flat_a, flat_b = variance_a < VIF_FLAT, variance_b < VIF_FLAT
        noise = torch.where(flat_b | (gain < 0), variance_a, noise)
        noise = torch.where(flat_a, 0.0, noise).clamp_min(VIF_FLAT)
        gain = torch.where(flat_a | flat_b | (gain < 0), 0.0, gain)
        variance_b = torch.where(flat_b, 0.0, variance_b)
        kept = kept + (1 + gain**2 * variance_b / (noise + VIF_NOISE)).log10().sum((2, 3))
        total = total + (1 + variance_b / VIF_NOISE).log10().sum((2, 3))
    return torch.where(total > 0, kept / total.clamp_min(1e-300), 1.0).mean(1)


def _gaussian(size: int, sigma: float) -> list[float]:
    weights = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [weight / sum(weights) for weight in weights]


def _uniform(size: int) -> list[float]:
    return [1 / size] * size


def _moments(a: Tensor, b: Tensor, weights: Sequence[float]) -> tuple[Tensor, ...]:
    """Means of a, b, a^2, b^2 and ab over the window around each pixel; the border is mirrored.

    An even window of n reaches n / 2 before its pixel and n / 2 - 1 after it.
    """
    stacked = torch.cat([a, b, a * a, b * b, a * b])
    before, after = len(weights) // 2, (len(weights) - 1) // 2
    for axis in (2, 3):
        length = stacked.shape[axis]
        index = torch.arange(-before, length + after, device=a.device).remainder(2 * length)
        stacked = stacked.index_select(axis, torch.minimum(index, 2 * length - 1 - index))
    return _blur(stacked, weights).chunk(5)


def _blur(x: Tensor, weights: Sequence[float]) -> Tensor:
    """(N, C, H, W) -> (N, C, H - n + 1, W - n + 1): the separable window where it fits in.

    Sums of shifted pictures: several times faster in float64 than a convolution on a CPU, whose caches hold a few
    planes at a time.
    """
    planes = x.flatten(0, 1)
    some = len(planes) if x.is_cuda else max(1, CACHED // max(1, planes[0].numel()))
    return torch.cat([_blur_planes(part, weights) for part in planes.split(some)]).unflatten(0, x.shape[:2])


def _blur_planes(x: Tensor, weights: Sequence[float]) -> Tensor:
    """(N, H, W) -> (N, H - n + 1, W - n + 1)."""
    for axis in (1, 2):
        length = x.shape[axis] - len(weights) + 1
        total = x.narrow(axis, 0, length) * weights[0]
        for offset, weight in enumerate(weights[1:], 1):
            total.add_(x.narrow(axis, offset, length), alpha=weight)
        x = total
    return x


STANDARD = Definition(
    "standard",
    "RGB in [0, 1]. MAE: mean absolute error. PSNR: peak 1, at most 100 dB. SSIM: Gaussian window 11 x 11, sigma 1.5. "
    "MS-SSIM: five scales. UQI: windows of 8 x 8. VIF: pixel domain, on [0, 255].",
    grey=False,
    metrics={
        "mae": mean_absolute_error,
        "psnr": peak_signal_to_noise,
        "ssim": structural_similarity,
        "ms_ssim": multiscale_similarity,
        "uqi": universal_quality,
        "vif": information_fidelity,
    },
    smallest={"ssim": 2 * SSIM_RADIUS + 1, "ms_ssim": MS_SSIM_SMALLEST, "uqi": UQI_WINDOW + 1, "vif": VIF_SMALLEST},
)
ORIGINAL = Definition(
    "as the original system",
    "Grey in [0, 1] (0.2125, 0.7154, 0.0721). MAE: sum |a - b| / sum (a + b). PSNR: peak 1, at most 100 dB. "
    "SSIM: uniform window 51 x 51, sample covariances. UQI: as sewar computes it. VIF: pixel domain, on [0, 1].",
    grey=True,
    metrics={
        "mae": ratio_of_sums,
        "psnr": peak_signal_to_noise,
        "ssim": structural_similarity_51,
        "uqi": universal_quality_sewar,
        "vif": information_fidelity_unit,
    },
    smallest={"ssim": ORIGINAL_WINDOW, "uqi": UQI_WINDOW + 1, "vif": VIF_SMALLEST},
)
HIGHER_IS_BETTER = {"mae": False, "psnr": True, "ssim": True, "ms_ssim": True, "uqi": True, "vif": True, "lpips": False}
