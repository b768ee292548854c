"""Seeded masks as files: as training samples them, or of a kind and of a share of the picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastinpaint.data.images import PathLike
from fastinpaint.data.masks import Mask, MaskConfig, MaskSampler, box_mask, stroke_mask
from fastinpaint.files import atomic_write

KINDS = ("mixture", "irregular", "box")
BINS = tuple((low / 100, (low + 10) / 100) for low in range(0, 60, 10))
_LEAST = 0.01  # share of the picture that the lowest bin covers at least
_STROKES, _ATTEMPTS = 200, 50


def save_masks(
    folder: PathLike, count: int, height: int, width: int, config: MaskConfig | None = None, seed: int = 0
) -> list[Path]:
    """Write the masks of steps 0 to ``count`` - 1 as 8-bit PNG files (white = hole); returns their paths."""
    if count < 1:
        raise ValueError(f"expected at least 1 mask, got {count}")
    sampler = MaskSampler(config or MaskConfig(), height, width, seed)
    paths = [Path(folder) / f"mask-{step:06d}.png" for step in range(count)]
    for step, path in enumerate(paths):
        values = sampler.sample(step)[0, 0].mul(255).to(torch.uint8).numpy()
        _write(values, path)
    return paths


def save_binned_masks(
    folder: PathLike,
    count: int,
    height: int,
    width: int,
    bins: tuple[tuple[float, float], ...] = BINS,
    kind: str = "mixture",
    seed: int = 0,
) -> list[Path]:
    """Write ``count`` masks for each bin of hole ratios as 8-bit PNG files (white = hole).

    Args:
        folder: They are named ``10-20/mask-000000.png`` in it, by percent.
        count: For each bin.
        height: Pixels.
        width: Pixels.
        bins: Least share of the picture that a hole covers, and the share that it stays below.
        kind: See `draw_mask`.
        seed: At least 0; a mask depends on it, its bin, its number and its kind alone.

    Returns:
        Their paths.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 mask, got {count}")
    paths = []
    for low, high in bins:
        for number in range(count):
            rng = np.random.default_rng((seed, round(low * 1e4), round(high * 1e4), number, KINDS.index(kind)))
            mask = draw_mask(kind, height, width, low, high, rng)
            paths.append(Path(folder) / f"{low * 100:g}-{high * 100:g}" / f"mask-{number:06d}.png")
            _write(mask * 255, paths[-1])
    return paths


def draw_mask(kind: str, height: int, width: int, low: float, high: float, rng: np.random.Generator) -> Mask:
    """Draw a mask whose hole covers a share of at least ``low`` and below ``high`` of the picture.

    Args:
        kind: ``"irregular"``: brush strokes; ``"box"``: one box; ``"mixture"``: either, by chance.
        height: Pixels.
        width: Pixels.
        low: At least 0; below 0.01 it is 0.01.
        high: Above ``low``, at most 1.
        rng: The source of randomness.

    Raises:
        ValueError: Another kind, an impossible range, or a picture too small to hit it.
    """
    if kind not in KINDS:
        raise ValueError(f"a kind of mask must be one of {', '.join(KINDS)}, got {kind!r}")
    if not 0 <= low < high <= 1:
        raise ValueError(f"expected a range of shares with 0 <= low < high <= 1, got {low:g} and {high:g}")
    low = max(low, min(_LEAST, high / 2))
    draw = _box if kind == "box" or (kind == "mixture" and rng.random() < 0.5) else _strokes
    for _ in range(_ATTEMPTS):
        mask = draw(height, width, low, high, rng)
        if low <= mask.mean() < high:
            return mask
    raise ValueError(f"no {kind} mask of {height} x {width} pixels was found that covers {low:.1%} to {high:.1%}")


def _box(height: int, width: int, low: float, high: float, rng: np.random.Generator) -> Mask:
    area = rng.uniform(low, high) * height * width
    stretch = math.exp(rng.uniform(-0.7, 0.7))  # up to twice as tall as wide, or as wide as tall
    tall = min(max(round(math.sqrt(area) * stretch), 1), height)
    return box_mask(height, width, tall, min(max(round(area / tall), 1), width), rng)


def _strokes(height: int, width: int, low: float, high: float, rng: np.random.Generator) -> Mask:
    """Add strokes until they cover a share drawn from the range; one that would overshoot is left out."""
    target = rng.uniform(low, high)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(_STROKES):
        grown = mask | stroke_mask(height, width, rng, strokes=1)
        mask = grown if grown.mean() < high else mask
        if mask.mean() >= target:
            break
    return mask


def _write(values: Mask, path: Path) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")
