"""Contextual matching of two maps (Mechrez et al. 2018; ID-MRF, Wang et al. 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastinpaint.ops._checks import at_least_float32

SAMPLE_SIDE = 65  # at most 65 x 65 positions are matched
BANDWIDTH = 0.5


def matching_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    generator: torch.Generator | None = None,
    batch_mean: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean over the batch of -log of how well each position of the prediction matches its favourite of the target.

    Both maps are centred by the prediction's mean over batch and space and normalised per position. Distance
    d = (1 - cosine) / 2 of every target position to every predicted one, divided by its minimum over the prediction
    plus 1e-5; exp((1 - d) / 0.5) normalised over the prediction; maximum over the target, mean over the prediction.
    Above 65 x 65 positions a random sample of that many is matched, the same positions in both maps and all samples.

    Args:
        prediction: (B, C, H, W), B at least 1.
        target: (B, C, H, W).
        generator: Draws the sample, on the maps' device; None uses the global one.
        batch_mean: Turns the mean over these samples, (1, C, 1), into the mean over a batch of which they are a part,
            differentiably; None takes them as the whole batch.

    Returns:
        Scalar float32 or wider; near 0 when every position finds its own.

    Raises:
        ValueError: Shapes that differ.
    """
    if prediction.shape != target.shape or prediction.dim() != 4:
        raise ValueError(f"wanted two maps (B, C, H, W), got {tuple(prediction.shape)} and {tuple(target.shape)}")
    with torch.autocast(prediction.device.type, enabled=False):
        predicted = at_least_float32(prediction).flatten(2)  # (B, C, N)
        wanted = at_least_float32(target).flatten(2)
        count = predicted.shape[-1]
        if count > SAMPLE_SIDE**2:
            chosen = torch.randperm(count, generator=generator, device=predicted.device)[: SAMPLE_SIDE**2]
            predicted, wanted = predicted[..., chosen], wanted[..., chosen]
        centre = predicted.mean((0, 2), keepdim=True)
        centre = centre if batch_mean is None else batch_mean(centre)
        predicted, wanted = _unit(predicted - centre), _unit(wanted - centre)
        distance = (1 - wanted.transpose(1, 2) @ predicted) / 2  # (B, N target, N predicted)
        distance = distance / (distance.amin(2, keepdim=True) + 1e-5)
        match = torch.softmax((1 - distance) / BANDWIDTH, dim=2)
        return -match.amax(1).mean(1).log().mean()


def _unit(x: Tensor) -> Tensor:
    """Scale each position of (B, C, N) to length 1; a position of length 0 stays 0."""
    return x / x.square().sum(1, keepdim=True).clamp_min(1e-24).sqrt()
