"""Holes to judge by: drawn from a seed, the same on every machine and for every model."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastinpaint.data.masks import MaskConfig, box_mask, stroke_mask

Hole = npt.NDArray[np.bool_]  # (H, W), True in the hole

BINS = tuple(f"{low}-{low + 10}" for low in range(0, 60, 10))  # percent of the picture
KINDS = ("box", "strokes", *BINS)
_REFERENCE_SIZE = 256  # pixels; box sides are meant for pictures of this size
_SMALLEST = 0.01  # share of the picture that the hole of bin 0-10 covers at least
_BRUSHES = MaskConfig(max_vertices=12, max_length=60, brush_width=(10, 24))
_STROKES, _ATTEMPTS = 200, 50


@dataclass(frozen=True)
class HoleOptions:
    """Sizes of drawn holes.

    Attributes:
        box_side: Least and greatest side of a box in pixels at 256 x 256; scales with the picture's short side.
        stroke_ratio: Least and greatest share of the picture that ``strokes`` cover.

    Raises:
        ValueError: An impossible range.
    """

    box_side: tuple[int, int] = (64, 96)
    stroke_ratio: tuple[float, float] = (0.1, 0.3)

    def __post_init__(self) -> None:
        low, high = self.box_side
        if not 1 <= low <= high:
            raise ValueError(f"box sides must satisfy 1 <= least <= greatest, got {low} and {high}")
        if not 0 < self.stroke_ratio[0] < self.stroke_ratio[1] < 1:
            least, greatest = self.stroke_ratio
            raise ValueError(f"stroke ratios must satisfy 0 < least < greatest < 1, got {least} and {greatest}")


def expand_kinds(names: tuple[str, ...]) -> tuple[str, ...]:
    """Replace ``bins`` by the six ratio bins. Raises ValueError for a name that is no kind of hole, or none at all."""
    kinds = [kind for name in names for kind in (BINS if name == "bins" else (name,))]
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"a kind of hole must be one of bins, {', '.join(KINDS)}, got {kind!r}")
    if not kinds:
        raise ValueError("at least one kind of hole is needed")
    return tuple(dict.fromkeys(kinds))


def draw_hole(
    kind: str, height: int, width: int, *, seed: int, name: str, number: int = 0, options: HoleOptions | None = None
) -> Hole:
    """Draw one hole, which depends on the arguments alone.

    Args:
        kind: ``"box"``: one box anywhere; ``"strokes"``: brush strokes of a share in ``options.stroke_ratio``;
            ``"0-10"`` ... ``"50-60"``: brush strokes whose share of the picture, in percent, lies in the bin.
        height: Pixels, at least 16.
        width: Pixels, at least 16.
        seed: At least 0.
        name: Of the picture, so that its hole stays the same when others come or go.
        number: Of the hole, where a picture gets several of a kind.
        options: Sizes.

    Raises:
        ValueError: Another kind, a picture below 16 pixels, or a negative seed.
    """
    if kind not in KINDS:
        raise ValueError(f"a kind of hole must be one of {', '.join(KINDS)}, got {kind!r}")
    if min(height, width) < 16 or seed < 0:
        raise ValueError(f"expected sides of at least 16 and a seed of at least 0, got {height} x {width}, {seed}")
    options = options or HoleOptions()
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), zlib.crc32(os.fsencode(name)), number))
    if kind == "box":
        return _box(height, width, options.box_side, rng)
    if kind == "strokes":
        return _strokes(height, width, *options.stroke_ratio, rng)
    low, high = (int(percent) / 100 for percent in kind.split("-"))
    return _strokes(height, width, max(low, _SMALLEST), high, rng)


def _box(height: int, width: int, sides: tuple[int, int], rng: np.random.Generator) -> Hole:
    scale = min(height, width) / _REFERENCE_SIZE
    tall, wide = (max(1, round(int(side) * scale)) for side in rng.integers(*sides, size=2, endpoint=True))
    return box_mask(height, width, min(tall, height - 1), min(wide, width - 1), rng).astype(bool)


def _strokes(height: int, width: int, low: float, high: float, rng: np.random.Generator) -> Hole:
    """Add strokes until they cover a share drawn from [low, high); one that would overshoot is left out."""
    target = rng.uniform(low, high)
    for _ in range(_ATTEMPTS):
        hole = np.zeros((height, width), bool)
        for _ in range(_STROKES):
            grown = hole | stroke_mask(height, width, rng, _BRUSHES, strokes=1).astype(bool)
            hole = grown if grown.mean() < high else hole
            if hole.mean() >= target:
                return hole
        if hole.mean() >= low and hole.any():
            return hole
    side = np.sqrt((low + high) / 2)
    return box_mask(height, width, max(1, round(side * height)), max(1, round(side * width)), rng).astype(bool)
