"""Crops of the photographs that ship with scikit-image."""

import numpy as np

from fastinpaint.demo.photographs import SEEN, UNSEEN, load_photographs


def crops(count: int, size: int) -> list[np.ndarray]:
    """``count`` different (size, size, 3) uint8 crops."""
    pictures = list(load_photographs((*SEEN, *UNSEEN), 256).values())
    rng = np.random.default_rng(0)
    chosen = []
    for index in range(count):
        top, left = rng.integers(0, 256 - size, 2, endpoint=True)
        chosen.append(pictures[index % len(pictures)][top : top + size, left : left + size].copy())
    return chosen
